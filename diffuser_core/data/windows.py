"""Training windows over segments: what the denoiser sees."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffuser_core.trajectory import Channels

__all__ = ['Symmetries', 'Windows', 'match_channels']


def match_channels(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names that match any shell-style pattern, in the order of `names`; ValueError naming a pattern that matches none."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f'no channel matches {pattern!r}; there are {", ".join(names)}')
    return [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]


@dataclass(frozen=True)
class Symmetries:
    """Changes of a trajectory that leave it equally likely.

    permutations  (P, channels) column orders: relabelling of exchangeable objects
    mirror        (channels,) signs of a reflection, or all ones if there is none
    """

    permutations: torch.Tensor
    mirror: torch.Tensor

    @classmethod
    def of(cls, channels: Channels, exchangeable: Sequence[str], mirrored: Sequence[str]) -> Symmetries:
        """`exchangeable` are prefixes ('red' of 'red.x') whose channels may swap; `mirrored` are patterns that change sign."""
        orders = []
        for order in itertools.permutations(exchangeable):
            to = dict(zip(exchangeable, order))
            renamed = ['.'.join([to.get(head, head), *rest]) for head, *rest in (n.split('.') for n in channels.names)]
            orders.append(channels.indices(renamed))
        signs = torch.ones(len(channels))
        if mirrored:
            signs[torch.from_numpy(channels.indices(match_channels(channels.names, mirrored)))] = -1.0
        return cls(torch.from_numpy(np.stack(orders)), signs)


class Windows:
    """Draws windows of `horizon` rows, `stride` ticks apart, from segments; a window that outlasts its segment holds the
    segment's last row, so that a plan may end early and rest.

    rows      (N, channels) in physical units
    segments  (S, 2) first and last row of each
    goal      columns shown as a goal on the last step in `goal_share` of the windows. The others are drawn without a goal,
              from the first three quarters of their segment: after that the data would teach to rest.
    actions   how many of the first columns are actions, which the planner does not know on the first row
    prefix    in a quarter of the windows the actions of the first 1 to `prefix` rows are known too: those that are carried out
              while a plan is made
    latest    (S,) last row at which a window may start, for motions that do not rest at their end: windows then start at any of
              the rows up to there, all equally likely
    weights   (N,) for windows that start anywhere: they start at a row in proportion to its weight, instead of equally likely
    jitter    (channels,) largest standard deviation of the noise added to the first row, physical units. Plans are learnt that
              return from there to the demonstrated way; without it a small error of the arm is taken for what it wants.
    """

    START_SHARE = 0.1
    PREFIX_SHARE = 0.25

    def __init__(self, rows: torch.Tensor, segments: torch.Tensor, *, horizon: int, stride: int, goal: Sequence[int],
                 goal_share: float, symmetries: Symmetries, jitter: torch.Tensor,
                 latest: torch.Tensor | None = None, actions: int = 0, prefix: int = 0,
                 weights: torch.Tensor | None = None) -> None:
        lengths = segments[:, 1] - segments[:, 0] + 1
        if len(segments) == 0 or int(lengths.min()) < 2:
            raise ValueError('training needs at least one segment of two rows')
        self._rows, self._first, self._last = rows, segments[:, 0], segments[:, 1]
        self._ends = torch.cumsum(lengths if latest is None else latest - segments[:, 0] + 1, 0)
        self._anywhere = latest is not None
        self._cumulated: torch.Tensor | None = None
        if weights is not None:
            if latest is None:
                raise ValueError('weights are for windows that start anywhere')
            starts = torch.cat([torch.arange(int(a), int(b) + 1, device=rows.device) for a, b in zip(segments[:, 0], latest)])
            self._cumulated = torch.cumsum(weights[starts].double(), 0)
            if not float(self._cumulated[-1]) > 0.0:
                raise ValueError('no window has a weight above zero: data.tilt is too large for this data')
        self._offsets = torch.arange(horizon, device=rows.device) * stride
        self._goal = torch.tensor(list(goal), dtype=torch.int64, device=rows.device)
        self._goal_share = goal_share
        self._symmetries = symmetries
        self._jitter = jitter
        self._horizon = horizon
        self._actions, self._prefix = actions, prefix

    def sample(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows (count, horizon, channels) in physical units and the mask of what the planner will know."""
        windows, mask, _ = self.sample_with_starts(count, generator)
        return windows, mask

    def _weighted_places(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Which of all possible starts, in the order of the rows."""
        assert self._cumulated is not None
        total = self._cumulated[-1]
        drawn = torch.rand(count, generator=generator, device=total.device, dtype=torch.float64) * total
        return torch.searchsorted(self._cumulated, drawn, right=True).clamp_max(len(self._cumulated) - 1)

    def sample_with_starts(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `sample`, and the rows (count,) at which the windows start."""
        device = self._rows.device

        def uniform() -> torch.Tensor:
            return torch.rand(count, generator=generator, device=device)

        place = (uniform() * self._ends[-1]).long() if self._cumulated is None else self._weighted_places(count, generator)
        segment = torch.searchsorted(self._ends, place, right=True).clamp_max(len(self._first) - 1)
        first, last = self._first[segment], self._last[segment]
        with_goal = uniform() < self._goal_share if len(self._goal) else torch.zeros(count, dtype=torch.bool, device=device)
        span = (last - first).float() * torch.where(with_goal, 1.0, 0.75)
        start = first + (uniform() * (span + 1.0)).long()
        start = torch.where(uniform() < self.START_SHARE, first, start)
        if self._anywhere:
            before = torch.where(segment > 0, self._ends[segment - 1], torch.zeros_like(place))
            start = first + (place - before)
        index = torch.minimum(start[:, None] + self._offsets, last[:, None])
        windows = self._rows[index]

        order = self._symmetries.permutations
        chosen = order[(uniform() * len(order)).long().clamp_max(len(order) - 1)]
        windows = windows.gather(2, chosen[:, None, :].expand(-1, self._horizon, -1))
        signs = torch.where(uniform()[:, None] < 0.5, self._symmetries.mirror, torch.ones_like(self._symmetries.mirror))
        windows = windows * signs[:, None, :]

        size = uniform()[:, None] * self._jitter
        windows[:, 0] += size * torch.randn(windows[:, 0].shape, generator=generator, device=device)

        mask = torch.zeros_like(windows, dtype=torch.bool)
        mask[:, 0, self._actions:] = True
        if self._prefix:
            rows = torch.where(uniform() < self.PREFIX_SHARE, 1 + (uniform() * self._prefix).long(), 0)
            mask[:, :, :self._actions] |= (torch.arange(self._horizon, device=device) < rows[:, None])[:, :, None]
        if len(self._goal):
            mask[:, -1, self._goal] = with_goal[:, None]
        return windows, mask, start
