"""Time to plan in: how an anytime planner decides whether another denoising step still fits."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ['Budget']


class Budget:
    """`seconds` from now, on a monotonic `clock`. Another step fits if there is time left for the longest step so far.

    The first step is always taken, so a plan costs at least one network call. ValueError unless `seconds` is positive.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        if not seconds > 0.0:
            raise ValueError(f'a time budget must be positive, got {seconds} s')
        self._clock = clock
        self._last = clock()
        self._end = self._last + seconds
        self._longest = 0.0

    def another(self) -> bool:
        """Called when a step has ended: whether the next one is expected to end in time."""
        now = self._clock()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        return now + self._longest <= self._end
