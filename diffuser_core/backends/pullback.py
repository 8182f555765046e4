"""The return predictor together with its gradient as one forward graph.

Automatic differentiation records a graph at every call, and other runtimes cannot execute it. Here every layer returns its output
and a function that pulls the gradient back through it (its vector-Jacobian product), so value and gradient are plain forward
operations, which can be traced and exported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from diffuser_core.value_network import ValueNetwork

__all__ = ['ValueAndGradient']

Pullback = Callable[[torch.Tensor], torch.Tensor]


def _conv(layer: nn.Conv1d, x: torch.Tensor) -> tuple[torch.Tensor, Pullback]:
    stride, padding, kernel = layer.stride[0], int(layer.padding[0]), layer.kernel_size[0]
    length = x.shape[-1]

    def pull(gradient: torch.Tensor) -> torch.Tensor:
        left_over = (length + 2 * padding - kernel) % stride
        return functional.conv_transpose1d(gradient, layer.weight, stride=stride, padding=padding, output_padding=left_over)
    return layer(x), pull


def _group_norm(layer: nn.GroupNorm, x: torch.Tensor) -> tuple[torch.Tensor, Pullback]:
    grouped = x.unflatten(1, (layer.num_groups, -1)).flatten(2)
    centred = grouped - grouped.mean(-1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + layer.eps)
    standard = centred * inverse
    weight = layer.weight[:, None]
    out = standard.reshape(x.shape) * weight + layer.bias[:, None]

    def pull(gradient: torch.Tensor) -> torch.Tensor:
        g = (gradient * weight).reshape(standard.shape)
        g = g - g.mean(-1, keepdim=True) - standard * (g * standard).mean(-1, keepdim=True)
        return (g * inverse).reshape(gradient.shape)
    return out, pull


def _mish(x: torch.Tensor) -> tuple[torch.Tensor, Pullback]:
    e = torch.exp(x.clamp(max=20.0))
    n = e * (e + 2.0)
    share = n / (n + 2.0)  # tanh(log(1 + e^x))

    def pull(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (share + x * (1.0 - share * share) * (e / (e + 1.0)))
    return x * share, pull


def _conv_block(block: Any, x: torch.Tensor) -> tuple[torch.Tensor, Pullback]:
    conv, norm, _ = block
    x, through_conv = _conv(conv, x)
    x, through_norm = _group_norm(norm, x)
    x, through_mish = _mish(x)
    return x, lambda gradient: through_conv(through_norm(through_mish(gradient)))


def _residual(block: Any, x: torch.Tensor, embedded: torch.Tensor) -> tuple[torch.Tensor, Pullback]:
    hidden, through_first = _conv_block(block.first, x)
    hidden, through_second = _conv_block(block.second, hidden + block.level(embedded)[:, :, None])
    if isinstance(block.skip, nn.Conv1d):
        skipped, through_skip = _conv(block.skip, x)
    else:
        skipped, through_skip = x, lambda gradient: gradient
    return hidden + skipped, lambda gradient: through_first(through_second(gradient)) + through_skip(gradient)


class ValueAndGradient(nn.Module):
    """(noisy (batch, horizon, channels), i) -> J (batch,) and dJ / dnoisy (batch, horizon, channels), without automatic
    differentiation; the same weights as `network`."""

    def __init__(self, network: ValueNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        network: Any = self.network
        embedded = network.embedding(i)
        x = noisy.transpose(1, 2)
        pullbacks: list[Pullback] = []
        layers = [*(tuple(pair) for pair in network.down), *((block,) for block in network.narrow)]
        for blocks, shrink in zip(layers, network.shrink):
            for block in blocks:
                x, pull = _residual(block, x, embedded)
                pullbacks.append(pull)
            x, pull = _conv(shrink, x)
            pullbacks.append(pull)
        if network.config.head == 'pooled':
            largest, where = x.max(dim=-1, keepdim=True)
            features = torch.cat([x.mean(-1), largest[..., 0]], dim=-1)
        else:
            features = x.flatten(1)
        first, _, last = network.head
        hidden, through_mish = _mish(first(torch.cat([features, network.level(embedded).expand(x.shape[0], -1)], dim=-1)))
        value = last(hidden).squeeze(-1)

        size = features.shape[1]
        gradient = (through_mish(last.weight.expand(x.shape[0], -1)) @ first.weight)[:, :size]
        if network.config.head == 'pooled':
            by_mean, by_largest = gradient.chunk(2, dim=1)
            at_largest = torch.arange(x.shape[-1], device=x.device) == where
            gradient = by_mean[..., None] / x.shape[-1] + at_largest * by_largest[..., None]
        else:
            gradient = gradient.reshape(x.shape)
        for pull in reversed(pullbacks):
            gradient = pull(gradient)
        return value, gradient.transpose(1, 2)
