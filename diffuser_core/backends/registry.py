"""Backends by name.

'eager'          the module as it is
'traced'         one TorchScript graph: the same numbers without Python's overhead; any batch and horizon; the default
'compiled'       torch.compile: compiles on first use of a shape, which takes a C++ compiler and half a minute
'cudagraph'      the whole denoising loop as one CUDA graph, GPU only; see cuda_graph.py
'openvino'       OpenVINO in float32, CPU only; compiles on first use of a shape, under two seconds
'openvino-bf16'  the same with bfloat16 arithmetic: about 1 % of error a call, which guides can amplify
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from diffuser_core.backends.level_tables import with_level_tables
from diffuser_core.backends.pullback import ValueAndGradient
from diffuser_core.sampler import Network
from diffuser_core.unet import TemporalUNet
from diffuser_core.value_network import ValueNetwork

__all__ = ['BACKENDS', 'execute', 'value_gradient', 'value_only']

BACKENDS = ('eager', 'traced', 'compiled', 'cudagraph', 'openvino', 'openvino-bf16')


def execute(network: TemporalUNet, backend: str, horizon: int, channels: int, device: torch.device, *,
            levels: int | None = None) -> Network:
    """`network` on `device` as a function (noisy, i, context) of any batch and horizon.

    `horizon` and `channels` are those of an example. With `levels`, the number of levels of the schedule, what depends on the
    level alone is computed once (level_tables.py). ValueError for an unknown backend, or one that this machine or device lacks.
    """
    if levels is not None:
        network = with_level_tables(network, levels)
    x = torch.zeros(1, horizon, channels, device=device)
    with torch.no_grad():
        context = network.encode(x, torch.zeros_like(x, dtype=torch.bool))
    inputs = (x, torch.zeros(1, dtype=torch.int64, device=device), *(() if context is None else (context,)))
    graph = _executed(network, backend, inputs, device)
    return graph if context is not None else lambda noisy, i, _: graph(noisy, i)


def value_gradient(network: ValueNetwork, backend: str, device: torch.device, *, levels: int | None = None) \
        -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(noisy (batch, horizon, channels), i) -> J (batch,) and dJ / dnoisy, all normal units, as one forward graph.

    `levels` and errors as for `execute`.
    """
    if levels is not None:
        network = with_level_tables(network, levels)
    return _executed(ValueAndGradient(network).eval(), backend, _judged(network, device), device)


def value_only(network: ValueNetwork, backend: str, device: torch.device, *, levels: int | None = None) \
        -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(noisy (batch, horizon, channels), i) -> J (batch,), as `value_gradient` but without a gradient."""
    if levels is not None:
        network = with_level_tables(network, levels)
    return _executed(network, backend, _judged(network, device), device)


def _judged(network: ValueNetwork, device: torch.device) -> tuple[torch.Tensor, ...]:
    """An example of what a return predictor judges."""
    x = torch.zeros(2, network.horizon, network.channels, device=device)
    return x, torch.zeros(1, dtype=torch.int64, device=device)


def _executed(module: torch.nn.Module, backend: str, inputs: tuple[torch.Tensor, ...], device: torch.device) -> Callable:
    if backend == 'eager':
        return module
    if backend == 'traced':
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')  # checks of shapes are not part of the graph; the planner makes its own
            return torch.jit.trace(module, inputs, check_trace=False)
    if backend == 'compiled':
        return torch.compile(module, dynamic=False)
    if backend == 'cudagraph':
        if device.type != 'cuda':
            raise ValueError(f"the backend 'cudagraph' runs on a CUDA GPU only, not on {device}: use 'traced' or 'openvino'")
        return module  # the graph is made of the whole loop, around it
    if backend in ('openvino', 'openvino-bf16'):
        if device.type != 'cpu':
            raise ValueError(f'the backend {backend!r} runs on the CPU only, not on {device}')
        from diffuser_core.backends.openvino_graph import OpenVinoGraph
        return OpenVinoGraph(module, inputs, precision='bf16' if backend.endswith('bf16') else 'f32')
    raise ValueError(f'unknown backend {backend!r}; there are {", ".join(BACKENDS)}')
