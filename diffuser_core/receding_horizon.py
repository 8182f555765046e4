"""The controller that a robot runs: replan at every tick from the measured state, starting from the last plan."""

from __future__ import annotations

import numpy as np

from diffuser_core.conditions import Conditions
from diffuser_core.planner import Planner, Sampling
from diffuser_core.trajectory import Plan

__all__ = ['RecedingHorizon']


class RecedingHorizon:
    """Keeps the current plan and renews it.

    The last plan is shifted by the time that has passed, whatever that is: plan steps and control ticks need not agree.
    It is then noised and denoised again with the new state inpainted (paper, section 5.4). `replans` counts plans made.
    """

    def __init__(self, planner: Planner, sampling: Sampling = Sampling()) -> None:
        self.planner = planner
        self.sampling = sampling
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
        self.plan = self.planner.plan(observation, conditions, warm_start=last, sampling=self.sampling, t0=now)
        self.replans += 1
        return self.plan
