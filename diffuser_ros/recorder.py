"""Keeps the run log of a planner node in the order in which its policy sees what happens.

A planning process learns of a new goal when its present run has ended; so while a run is under way, whatever happens is kept back
until its result has been written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import PlannerStats

from diffuser_ros.inference import Request, Result
from diffuser_ros.run_setup import Setup

if TYPE_CHECKING:
    from diffuser_ros.run_log import RunLog

__all__ = ['Recorder']

GOAL_FIELDS = ('task', 'relations', 'channels', 'values')


class Recorder:
    """Writes to `log`. Calls come in the order in which the node does things."""

    def __init__(self, log: RunLog, setup: Setup) -> None:
        self._log = log
        self._setup = setup
        self._goal: tuple[dict[str, Any], Mapping[str, float]] | None = None
        self._under_way: int | None = None
        self._kept: list[Callable[[], None]] = []
        self._numbers: dict[int, int] = {}  # of motions, by those of their requests
        log.start(setup)

    def close(self) -> None:
        """Write what was kept back, without the plan that was waited for, and end."""
        self._flush()
        self._log.close()

    def goal(self, request: Any, observation: Mapping[str, float]) -> None:
        """A goal was set by a request with the fields of SetGoal."""
        fields = {name: getattr(request, name) for name in GOAL_FIELDS}
        goal = {name: value if isinstance(value, str) else list(value) for name, value in fields.items()}
        self._goal = goal, observation
        self._do(lambda: self._log.goal(goal, observation))

    def clear(self) -> None:
        """The goal was cleared."""
        self._goal = None
        self._do(self._log.clear)

    def reset(self, seed: int) -> None:
        """The policy was reset."""
        self._goal = None
        self._do(lambda: self._log.reset(seed))

    def changed(self, parameters: Mapping[str, Any]) -> None:
        """Parameters have changed."""
        self._do(lambda: self._log.change(parameters))

    def began_anew(self, setup: Setup | None = None, follows: int = 0) -> None:
        """A fresh policy has taken over, made by `setup` or as the one before, with the goal in force; it was told of the motion
        of the request `follows`. A plan that was waited for never comes."""
        self._setup = setup or self._setup
        self._flush()
        self._log.load(self._setup)
        if self._goal is not None:
            self._log.goal(*self._goal, follows=self._numbers.get(follows, 0))

    def offered(self, request: Request) -> None:
        """A plan was asked for."""
        self._under_way = request.number

    def came(self, result: Result) -> None:
        """A plan, or why there is none, has come."""
        request = result.request
        if request.number != self._under_way:
            return
        plan = None if result.motion is None else result.motion.plan
        self._numbers[request.number] = self._log.replan(
            request.observation, request.now, plan, delay=request.delay, error=result.why, began=request.began, pace=result.pace,
            refused=result.refused)
        for old in [number for number in self._numbers if number < request.number - 100]:
            del self._numbers[old]
        self._flush()

    def ticked(self, observation: Mapping[str, float], now: float, follows: int, command: np.ndarray, stats: PlannerStats, *,
               adopted: int, stamp: Time) -> None:
        """A tick: it followed the motion of the request `follows`, or held (0), and `command` went out; the motion of the request
        `adopted` arrived in it (0: none)."""
        reason, text = stats.reason, stats.reason_text

        def write() -> None:
            self._log.tick(observation, now, self._numbers.get(follows, 0), command, reason, text,
                           adopted=self._numbers.get(adopted, 0), stamp=stamp)
            self._log.stats(stats)

        self._do(write)

    def _do(self, write: Callable[[], Any]) -> None:
        if self._under_way is None:
            write()
        else:
            self._kept.append(write)

    def _flush(self) -> None:
        self._under_way = None
        kept, self._kept = self._kept, []
        for write in kept:
            write()
