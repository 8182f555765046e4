"""What the locomotion policy decides, to be followed by whoever drives the robot: the planned torques, read by the clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffuser_core.motion import Observation
from diffuser_core.trajectory import Plan

__all__ = ['LocomotionDecision', 'LocomotionMotion', 'RunGoal']

CLOCK_TOLERANCE = 1e-6
"""Shares of a step by which a tick may be early and still counts as that step's: times are sums of rounded numbers."""


@dataclass(frozen=True)
class RunGoal:
    """As much reward as there is to be had: a running robot has no other goal."""


@dataclass(frozen=True)
class LocomotionDecision:
    """What to do from now on.

    actions  (ticks, actions) torques in [-1, 1] for the following ticks
    plan     the plan behind them; None where there is none, and the torques are zero
    reached  never: running has no end
    """

    actions: NDArray[np.float64]
    plan: Plan | None
    reached: bool = False


@dataclass(frozen=True)
class LocomotionMotion:
    """See `diffuser_core.motion.Motion`; without a plan, and after its end, the torques are zero.

    actions  how many there are; tail: ticks of them that a decision holds
    """

    plan: Plan | None
    actions: int
    tail: int
    waits: bool = False

    @property
    def shown(self) -> Plan | None:
        """The plan."""
        return self.plan

    def begun(self, now: float) -> LocomotionMotion:
        """The same with a plan that is followed from `now` on, if it has been waiting for that."""
        if not self.waits or self.plan is None:
            return self
        return replace(self, plan=replace(self.plan, t0=max(now, self.plan.t0)), waits=False)

    def decide(self, observation: Observation, now: float) -> LocomotionDecision:
        """Torques for the ticks from `now` [s] on, as planned; the observation plays no part."""
        torques, plan = np.zeros((self.tail, self.actions)), self.plan
        if plan is None or now > end_of(plan):
            return LocomotionDecision(torques, None)
        first = max(0, int((now - plan.t0) / plan.step_dt + CLOCK_TOLERANCE))
        ahead = plan.actions[first:first + self.tail]
        torques[:len(ahead)] = np.clip(ahead, -1.0, 1.0)
        return LocomotionDecision(torques, plan)


def end_of(plan: Plan) -> float:
    """Until when a plan can be followed [s]."""
    return plan.t0 + plan.step_dt * (plan.horizon - 1 + CLOCK_TOLERANCE)
