"""Inpainting: known values at any (planning step, channel).

The current state is a condition on step 0, a goal a condition on the last step. Both are the same mechanism: data that
overwrite the trajectory after every denoising step (paper, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffuser_core.trajectory import Channels

__all__ = ['Conditions']


@dataclass(frozen=True)
class Conditions:
    """Known entries of a trajectory in physical units: `values` where `mask` is true, both (horizon, channels)."""

    mask: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        if self.mask.shape != self.values.shape or self.mask.ndim != 2:
            raise ValueError(f'conditions need a mask and values of one shape (horizon, channels), got '
                             f'{self.mask.shape} and {self.values.shape}')
        if not np.isfinite(self.values[self.mask]).all():
            t, c = np.argwhere(self.mask & ~np.isfinite(self.values))[0]
            raise ValueError(f'the condition on step {t}, channel {c} is not a finite number')

    @classmethod
    def none(cls, horizon: int, channels: Channels) -> Conditions:
        """No known entries."""
        shape = (horizon, len(channels))
        return cls(np.zeros(shape, dtype=bool), np.zeros(shape))

    def known(self, t: int, channels: Channels, values: Mapping[str, float]) -> Conditions:
        """These conditions plus `values` (channel name -> physical value) at planning step `t` (negative: from the end).

        Raises IndexError for a step outside the horizon and KeyError for an unknown channel.
        """
        horizon = len(self.mask)
        if not -horizon <= t < horizon:
            raise IndexError(f'a condition on step {t} does not fit a horizon of {horizon} steps')
        mask, known = self.mask.copy(), self.values.copy()
        columns = channels.indices(list(values))
        mask[t, columns] = True
        known[t, columns] = np.fromiter(values.values(), dtype=np.float64, count=len(values))
        return Conditions(mask, known)
