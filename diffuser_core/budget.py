"""Time to plan in: how an anytime planner decides whether another denoising step still fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

__all__ = ['Budget', 'Pace', 'SamePace']


class Pace(Protocol):
    """Asked after every denoising step but the last whether another may follow."""

    def another(self) -> bool: ...


class Budget:
    """`seconds` from now, on a monotonic `clock`. Another step fits if there is time left for the longest step so far.

    The first step is always taken, so a plan costs at least one network call. `answers` keeps what was answered, for `SamePace`.
    ValueError unless `seconds` is positive.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        if not seconds > 0.0:
            raise ValueError(f'a time budget must be positive, got {seconds} s')
        self._clock = clock
        self._last = clock()
        self._end = self._last + seconds
        self._longest = 0.0
        self.answers: list[bool] = []

    def another(self) -> bool:
        """Called when a step has ended: whether the next one is expected to end in time."""
        now = self._clock()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        self.answers.append(now + self._longest <= self._end)
        return self.answers[-1]


class SamePace:
    """Gives the `answers` that a Budget gave, in order, so that a plan can be made again; ValueError when they run out."""

    def __init__(self, answers: Iterable[bool]) -> None:
        self._answers = iter(answers)

    def another(self) -> bool:
        """The next answer."""
        try:
            return next(self._answers)
        except StopIteration:
            raise ValueError('the plan takes more denoising steps than the one whose pace it is to keep') from None
