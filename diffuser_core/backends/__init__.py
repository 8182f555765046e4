"""How a network is executed."""

from __future__ import annotations

import warnings

import torch

from diffuser_core.sampler import Network
from diffuser_core.unet import TemporalUNet

__all__ = ['execute']


def execute(network: TemporalUNet, backend: str, horizon: int, channels: int, device: torch.device) -> Network:
    """The network as one graph ('traced'): the same numbers without Python's overhead; any batch and horizon."""
    if backend != 'traced':
        raise ValueError(f"unknown backend {backend!r}; there is 'traced'")
    x = torch.zeros(1, horizon, channels, device=device)
    context = network.encode(x, torch.zeros_like(x, dtype=torch.bool))
    inputs = (x, torch.zeros(1, dtype=torch.int64, device=device), *(() if context is None else (context,)))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # the check of the horizon is not part of the graph; the planner pads
        graph = torch.jit.trace(network, inputs, check_trace=False)
    return graph if context is not None else lambda noisy, i, _: graph(noisy, i)
