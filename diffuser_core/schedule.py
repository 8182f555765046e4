"""The noise schedule: everything that depends on the denoising level `i` alone.

Cosine schedule of Nichol & Dhariwal (2021), eq. 17, with s = 0.008 and betas clipped to 0.999, as Diffuser uses it.
Level `i` runs from 0 (least noise) to `levels - 1` (almost pure noise).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

Coefficient = torch.Tensor | float

__all__ = ['NoiseSchedule', 'cosine_betas', 'strided_levels']


def cosine_betas(levels: int, offset: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Betas of the cosine schedule, float64, shape `(levels,)`.

    Raises ValueError if there is not at least one level.
    """
    if levels < 1:
        raise ValueError(f'a noise schedule needs at least 1 level, got {levels}')
    edge = np.cos((np.arange(levels + 1, dtype=np.float64) / levels + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1.0 - edge[1:] / edge[:-1], 0.0, max_beta)


@dataclass(frozen=True)
class NoiseSchedule:
    """Cumulative signal share of each level.

    `alpha_bar[i]` is the share of the clean trajectory's variance left at level `i`; shape `(levels,)`, float64.
    """

    alpha_bar: torch.Tensor

    @classmethod
    def cosine(cls, levels: int) -> NoiseSchedule:
        """The cosine schedule with this many levels."""
        return cls(torch.from_numpy(np.cumprod(1.0 - cosine_betas(levels))))

    @property
    def levels(self) -> int:
        """Number of denoising levels."""
        return len(self.alpha_bar)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """`alpha_bar` as Python numbers, for sampling: all trajectories share a level there."""
        return tuple(self.alpha_bar.tolist())

    def level(self, i: int, device: torch.device) -> torch.Tensor:
        """Level `i` as networks take it, (1,), int64; all levels are made once a device."""
        if device not in self._numbers:
            self._numbers[device] = torch.arange(self.levels, device=device).split(1)
        return self._numbers[device][i]

    @cached_property
    def _numbers(self) -> dict[torch.device, tuple[torch.Tensor, ...]]:
        return {}

    def signal_and_noise(self, i: torch.Tensor | int, dtype: torch.dtype = torch.float32) -> tuple[Coefficient, Coefficient]:
        """Coefficients of the clean trajectory and of the noise at levels `i` (batch,), shaped (batch, 1, 1), or at one level."""
        if isinstance(i, int):
            return math.sqrt(self.shares[i]), math.sqrt(1.0 - self.shares[i])
        alpha_bar = self.alpha_bar.to(i.device)[i].view(-1, 1, 1)
        return alpha_bar.sqrt().to(dtype), (1.0 - alpha_bar).sqrt().to(dtype)


def strided_levels(top: int, steps: int) -> list[int]:
    """`steps` levels spread evenly from `top - 1` down to 0, without repeats.

    `top` is a count: planning from pure noise starts at `top = schedule.levels`; a warm start uses fewer. One step
    alone denoises straight from `top - 1`.
    """
    if top < 1 or steps < 1:
        raise ValueError(f'denoising needs at least one level and one step, got {top} levels and {steps} steps')
    if steps >= top:
        return list(range(top - 1, -1, -1))
    if steps == 1:
        return [top - 1]
    return [round(x) for x in np.linspace(top - 1, 0, steps)]
