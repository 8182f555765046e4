"""A transposed convolution written as an ordinary one.

Some runtimes have fast ordinary convolutions and slow transposed ones. In a transposed one, input t adds through tap k to
output o = stride t - padding + k. So output o = stride q + r reads inputs t = q - j through taps k = stride j + r + padding:
for each of the `stride` phases r that is an ordinary convolution, and one with `stride` times the channels gives all phases,
which are then interleaved.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ['PhaseConv']


class PhaseConv(nn.Module):
    """conv_transpose1d(x, weight, bias, stride, padding) of x (batch, inputs, length) -> (batch, outputs, stride * length).

    weight (inputs, outputs, taps) as torch's transposed convolution has it. Where the transposed convolution ends earlier, its
    output is the beginning of this one. ValueError for a padding with which it would end later.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: int) -> None:
        super().__init__()
        taps = weight.shape[2]
        if taps - 2 * padding > stride:
            raise ValueError(f'{taps} taps with stride {stride} and padding {padding} give more than {stride} values a step')
        shifts = [[(k - r - padding) // stride for k in range(taps) if (k - r - padding) % stride == 0] for r in range(stride)]
        least, most = min(map(min, shifts)), max(map(max, shifts))
        phases = weight.new_zeros(stride, weight.shape[1], weight.shape[0], most - least + 1)
        for r, shift in enumerate(shifts):
            for j in shift:
                phases[r, :, :, most - j] = weight[:, :, stride * j + r + padding].T
        self.register_buffer('weight', phases.flatten(0, 1), persistent=False)
        self.register_buffer('bias', None if bias is None else bias.repeat(stride), persistent=False)
        self.stride, self.pads = stride, (most, -least)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, after = self.pads
        if before != after:
            x, before = functional.pad(x, self.pads), 0
        out = functional.conv1d(x, self.weight, self.bias, padding=before)
        if self.stride == 1:
            return out
        return out.unflatten(1, (self.stride, -1)).permute(0, 2, 3, 1).flatten(2)
