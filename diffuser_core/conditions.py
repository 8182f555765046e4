"""Conditions: known and wanted values at any (planning step, channel).

The current state is a condition on step 0, a goal a condition on the last step, a committed prefix one on the first steps. All
are the same mechanism: data that overwrite the trajectory after every denoising step (paper, section 3.3). Wanted values
are softer: they draw the trajectory by a weight below 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from diffuser_core.trajectory import Channels

__all__ = ['Conditions']


@dataclass(frozen=True)
class Conditions:
    """Entries of a trajectory in physical units, all arrays (horizon, channels).

    mask     where `values` are known: plans hold them exactly
    values   known or wanted values; elsewhere without meaning
    weights  in [0, 1], how strongly the other entries of `values` are wanted; 0 leaves them free
    """

    mask: np.ndarray
    values: np.ndarray
    weights: np.ndarray = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.weights is None:
            object.__setattr__(self, 'weights', np.zeros(self.mask.shape))
        if not self.mask.shape == self.values.shape == self.weights.shape or self.mask.ndim != 2:
            raise ValueError(f'conditions need a mask, values and weights of one shape (horizon, channels), got '
                             f'{self.mask.shape}, {self.values.shape} and {self.weights.shape}')
        if not ((self.weights >= 0.0) & (self.weights <= 1.0)).all():
            t, c = np.argwhere(~((self.weights >= 0.0) & (self.weights <= 1.0)))[0]
            raise ValueError(f'the weight of the condition on step {t}, channel {c} must lie in [0, 1], got {self.weights[t, c]}')
        if self.mask.dtype != bool:
            raise ValueError(f'the mask of conditions needs truth values, got {self.mask.dtype}')
        used = self.mask | (self.weights > 0.0)
        if not np.isfinite(self.values[used]).all():
            t, c = np.argwhere(used & ~np.isfinite(self.values))[0]
            raise ValueError(f'the condition on step {t}, channel {c} is not a finite number')

    @property
    def horizon(self) -> int:
        """Number of planning steps."""
        return len(self.mask)

    @classmethod
    def none(cls, horizon: int, channels: Channels) -> Conditions:
        """No known entries; ValueError for a horizon below 2."""
        if horizon < 2:
            raise ValueError(f'a plan needs a horizon of at least 2 steps, got {horizon}')
        shape = (horizon, len(channels))
        return cls(np.zeros(shape, dtype=bool), np.zeros(shape))

    def known(self, t: int, channels: Channels, values: Mapping[str, float]) -> Conditions:
        """These conditions plus `values` (channel name -> physical value) at planning step `t` (negative: from the end).

        Raises IndexError for a step outside the horizon and KeyError for an unknown channel.
        """
        return self._with(t, channels, values, 1.0)

    def preferred(self, t: int, channels: Channels, values: Mapping[str, float], weight: float) -> Conditions:
        """These conditions plus wanted `values` at step `t`, drawn with `weight` in (0, 1); errors as for `known`."""
        if not 0.0 < weight < 1.0:
            raise ValueError(f'the weight of a wanted value lies between 0 and 1, got {weight}; known() takes exact values')
        return self._with(t, channels, values, weight)

    def _with(self, t: int, channels: Channels, values: Mapping[str, float], weight: float) -> Conditions:
        if not -self.horizon <= t < self.horizon:
            raise IndexError(f'a condition on step {t} does not fit a horizon of {self.horizon} steps')
        mask, known, weights = self.mask.copy(), self.values.copy(), self.weights.copy()
        columns = channels.indices(list(values))
        mask[t, columns] = weight == 1.0
        weights[t, columns] = 0.0 if weight == 1.0 else weight
        known[t, columns] = np.fromiter(values.values(), dtype=np.float64, count=len(values))
        return Conditions(mask, known, weights)

    def padded(self, rows: int) -> Conditions:
        """These conditions for `rows` more steps, on which those of the last step hold: a plan that ends at rest stays there."""
        if rows == 0:
            return self

        def grown(array: np.ndarray) -> np.ndarray:
            return np.pad(array, ((0, rows), (0, 0)), mode='edge')
        return Conditions(grown(self.mask), grown(self.values), grown(self.weights))
