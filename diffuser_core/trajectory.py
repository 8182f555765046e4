"""What the columns of a trajectory are: named channels with units, actions first, then observations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ['RETURN', 'Channels', 'Plan']

RETURN = 'return'
"""The channel of the return from a step on. It is not observed but wished for."""


@dataclass(frozen=True)
class Channels:
    """Names and units of a trajectory's columns, in order; the first `actions` of them are actions.

    A plan of states alone (as the paper's block stacking) has `actions = 0`.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    actions: int = 0

    def __post_init__(self) -> None:
        if len(self.names) != len(self.units):
            raise ValueError(f'{len(self.names)} channel names need as many units, got {len(self.units)}')
        repeated = sorted({n for n in self.names if self.names.count(n) > 1})
        if repeated:
            raise ValueError(f'channel names must differ; repeated: {", ".join(repeated)}')
        if not 0 <= self.actions <= len(self.names):
            raise ValueError(f'{self.actions} of {len(self.names)} channels cannot be actions')

    def __len__(self) -> int:
        return len(self.names)

    @property
    def observations(self) -> tuple[str, ...]:
        """Names of the observation channels."""
        return self.names[self.actions:]

    def indices(self, names: Sequence[str]) -> np.ndarray:
        """Columns of these channels, in the order asked; KeyError naming the unknown ones and what there is."""
        unknown = [n for n in names if n not in self.names]
        if unknown:
            raise KeyError(f'unknown channel {", ".join(unknown)}; this trajectory has {", ".join(self.names)}')
        return np.array([self.names.index(n) for n in names], dtype=np.int64)

    def things(self, fields: Sequence[str]) -> list[list[int]]:
        """Columns of each thing that has all these fields: for 'x', 'y' those of 'red.x', 'red.y', of 'tip.x', 'tip.y', ...; no
        thing if there are no fields."""
        heads = dict.fromkeys(name.rpartition('.')[0] for name in self.names if fields)
        wanted = [[f'{head}.{field}' for field in fields] for head in heads]
        return [self.indices(names).tolist() for names in wanted if set(names) <= set(self.names)]

    def vector(self, values: Mapping[str, float]) -> np.ndarray:
        """The observation channels' values in order, shape `(observations,)`; KeyError naming the missing ones."""
        missing = [n for n in self.observations if n not in values]
        if missing:
            raise KeyError(f'the observation lacks channel {", ".join(missing)}')
        return np.array([values[n] for n in self.observations], dtype=np.float64)


@dataclass(frozen=True)
class Plan:
    """A planned trajectory in physical units.

    values     (horizon, channels), float64; row 0 is the time `t0`
    channels   what the columns are
    t0         time of row 0 [s], on the clock of whoever asked
    step_dt    seconds between rows
    provenance how it was made: denoising levels visited, seed, whether it was warm-started, whether the time ran out, its value

    ValueError for another shape and for times that are not finite.
    """

    values: np.ndarray
    channels: Channels
    t0: float
    step_dt: float
    provenance: Mapping[str, object]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) < 1 or self.values.shape[1] != len(self.channels):
            raise ValueError(f'a plan needs values of shape (horizon, {len(self.channels)}), got {self.values.shape}')
        if not (math.isfinite(self.t0) and 0.0 < self.step_dt < math.inf):
            raise ValueError(f'a plan needs a finite start and a positive finite step_dt, got {self.t0} and {self.step_dt} s')

    @property
    def horizon(self) -> int:
        """Number of rows."""
        return len(self.values)

    @property
    def states(self) -> np.ndarray:
        """Planned observations, (horizon, observations)."""
        return self.values[:, self.channels.actions:]

    @property
    def actions(self) -> np.ndarray:
        """Planned actions, (horizon, actions)."""
        return self.values[:, :self.channels.actions]

    def at(self, times: np.ndarray) -> np.ndarray:
        """Values at these times [s], (times, channels): linear between rows, the first / last row outside."""
        position = ((np.asarray(times, dtype=np.float64) - self.t0) / self.step_dt).clip(0.0, self.horizon - 1.0)
        before = np.minimum(position.astype(np.int64), self.horizon - 2)
        share = (position - before)[:, None]
        return (1.0 - share) * self.values[before] + share * self.values[before + 1]

    def shifted(self, t0: float, horizon: int | None = None) -> np.ndarray:
        """This plan's values on the time grid of `horizon` rows (default: its own) that starts at `t0`, (horizon, channels);
        the end is held."""
        return self.at(t0 + self.step_dt * np.arange(self.horizon if horizon is None else horizon))
