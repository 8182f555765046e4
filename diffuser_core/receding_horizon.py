"""The controller that a robot runs: replan at every tick from the measured state, starting from the last plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffuser_core.conditions import Conditions
from diffuser_core.planner import DEFAULT_SAMPLING, Planner, Sampling
from diffuser_core.trajectory import Plan

__all__ = ['RecedingHorizon']


class RecedingHorizon:
    """Keeps the current plan and renews it.

    The last plan is shifted by the time that has passed, whatever that is: plan steps and control ticks need not agree.
    It is then noised and denoised again with the new state inpainted (paper, section 5.4). `replans` counts plans made.

    committed  channels of the last plan that are kept
    commit     for how many steps after the present they are kept: the new plan goes on from a motion instead of from a
               standstill, which matters where states hold positions but no velocities
    """

    def __init__(self, planner: Planner, sampling: Sampling = DEFAULT_SAMPLING, *, committed: Sequence[str] = (),
                 commit: int = 0) -> None:
        self.planner = planner
        self.sampling = sampling
        self._committed = planner.channels.indices(committed)
        self._commit = commit
        self.plan: Plan | None = None
        self.replans = 0

    def restart(self, plan: Plan | None = None) -> None:
        """Forget the current plan, so that the next one is made from pure noise, or go on from `plan`."""
        self.plan = plan

    def update(self, observation: np.ndarray, conditions: Conditions, now: float) -> Plan:
        """Plan from `observation` (observations,) at time `now` [s] and keep the result.

        A plan that has run out, or that starts after `now`, is no warm start.
        """
        last = self.plan
        if last is not None and not last.t0 <= now <= last.t0 + last.step_dt * (last.horizon - 1):
            last = None
        if last is not None and self._commit:
            conditions = self._prefixed(conditions, last.shifted(now))
        self.plan = self.planner.plan(observation, conditions, warm_start=last, sampling=self.sampling, t0=now)
        self.replans += 1
        return self.plan

    def _prefixed(self, conditions: Conditions, shifted: np.ndarray) -> Conditions:
        """`conditions` plus the committed channels of the last plan, shifted to the present."""
        mask, values = conditions.mask.copy(), conditions.values.copy()
        rows = np.s_[1:1 + self._commit]
        mask[rows, self._committed] = True
        values[rows, self._committed] = shifted[rows, self._committed]
        return Conditions(mask, values)
