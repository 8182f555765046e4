"""The controller that a robot runs: replan at every tick from the measured state, starting from the last plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffuser_core.budget import Pace
from diffuser_core.conditions import Conditions
from diffuser_core.guides import Guide
from diffuser_core.planner import DEFAULT_SAMPLING, Planner, Sampling
from diffuser_core.trajectory import Plan

__all__ = ['RecedingHorizon', 'chunking_weights']


def chunking_weights(horizon: int, committed: int, fading: int) -> np.ndarray:
    """How strongly a new plan is drawn to the last one, step by step: the soft mask of real-time chunking.

    1 on the present and the `committed` steps after it, then falling over `fading` steps, exponentially, to 0; (horizon,).
    Source: Black et al. 2025 (arXiv 2506.07339), eq. 5.
    """
    t = np.arange(horizon, dtype=np.float64)
    share = np.clip((committed + fading + 1 - t) / (fading + 1), 0.0, 1.0)
    return np.where(t <= committed, 1.0, share * np.expm1(share) / np.expm1(1.0))


class RecedingHorizon:
    """Keeps the current plan and renews it.

    The last plan is shifted by the time that has passed, whatever that is: plan steps and control ticks need not agree.
    It is then noised and denoised again with the new state inpainted (paper, section 5.4). `replans` counts plans made.

    committed  channels of the last plan that are kept
    commit     for how many steps after the present they are kept: the new plan goes on from a motion instead of from a
               standstill, which matters where states hold positions but no velocities
    fade       for how many steps after those the new plan is still drawn to the last one, ever less (real-time chunking)
    moving     those of the committed channels that are kept, for as long as a plan takes to arrive, even if it is drawn from
               noise: the robot moves on meanwhile
    """

    def __init__(self, planner: Planner, sampling: Sampling = DEFAULT_SAMPLING, *, committed: Sequence[str] = (),
                 commit: int = 0, fade: int = 0, moving: Sequence[str] = ()) -> None:
        if commit < 0 or fade < 0:
            raise ValueError(f'commit and fade count plan steps and cannot be negative, got {commit} and {fade}')
        self.planner = planner
        self.sampling = sampling
        self._committed = planner.channels.indices(committed)
        self._moving = planner.channels.indices(moving)
        self._commit = commit
        self._fade = fade
        self.plan: Plan | None = None
        self._followed: Plan | None = None
        self.replans = 0

    def restart(self, plan: Plan | None = None) -> None:
        """Forget the current plan, so that the next one is made from pure noise, or from `plan`. The robot follows what it
        followed until the next plan comes."""
        self.plan = plan

    def follow(self, plan: Plan | None) -> None:
        """The robot follows `plan`, which is the current one; None: it rests."""
        self.plan = self._followed = plan

    @property
    def resting(self) -> bool:
        """Whether the robot follows no plan."""
        return self._followed is None

    def begin(self, now: float) -> None:
        """The current plan is followed from `now` [s] on: its first row is moved to that time if it was earlier."""
        if self.plan is not None and now > self.plan.t0:
            self.follow(replace(self.plan, t0=now))

    def update(self, observation: np.ndarray, conditions: Conditions, now: float, *, guide: Guide | None = None,
               budget: float | Pace | None = None, ahead: float = 0.0) -> Plan:
        """Plan from `observation` (observations,) at time `now` [s] and keep the result; other arguments as `Planner.plan`.

        ahead  time [s] that passes until the robot follows the new plan: for so long it agrees with the one followed until then

        A plan that has run out, or that starts after `now`, is no warm start. ValueError for a time ahead that is negative or not
        finite.
        """
        conditions, steps = self.prefixed(conditions, now, ahead)
        plan = self.planner.plan(observation, conditions, guide=guide, warm_start=self._current(self.plan, now),
                                 sampling=self.sampling, t0=now, budget=budget)
        self.follow(replace(plan, provenance={**plan.provenance, 'committed': steps}))
        self.replans += 1
        assert self.plan is not None
        return self.plan

    def prefixed(self, conditions: Conditions, now: float, ahead: float) -> tuple[Conditions, int]:
        """`conditions` plus what is kept of the plan that the robot follows, and for how many steps that is."""
        if not 0.0 <= ahead < math.inf:
            raise ValueError(f'the time until a plan is followed must be finite and not negative, got {ahead} s')
        steps = math.ceil(ahead / self.planner.step_dt - 1e-9)
        last = self._current(self.plan, now)
        if last is not None:
            steps = max(steps, self._commit)
            if steps or self._fade:
                return self._kept(conditions, last.shifted(now, conditions.horizon), self._committed, steps, self._fade), steps
        followed = self._current(self._followed, now)
        if last is None and followed is not None and steps and len(self._moving):
            return self._kept(conditions, followed.shifted(now, conditions.horizon), self._moving, steps, 0), steps
        return conditions, 0

    @staticmethod
    def _current(plan: Plan | None, now: float) -> Plan | None:
        """The plan, unless it has run out or starts after `now`."""
        if plan is None or not plan.t0 <= now <= plan.t0 + plan.step_dt * (plan.horizon - 1):
            return None
        return plan

    def _kept(self, conditions: Conditions, shifted: np.ndarray, channels: np.ndarray, steps: int, fade: int) -> Conditions:
        """`conditions` plus these channels of a plan, shifted to the present; what is known stays as it is.

        An action lasts until the next step: those of the steps before `steps` are kept, and states up to that one.
        """
        mask, values, weights = conditions.mask.copy(), conditions.values.copy(), conditions.weights.copy()
        strength = chunking_weights(len(mask) + 1, steps, fade)
        actions = channels < self.planner.channels.actions
        for t in range(len(mask)):
            for kept, share in ((channels[actions], strength[t + 1]), (channels[~actions], strength[t] if t else 0.0)):
                free = kept[~conditions.mask[t, kept]]
                if share > 0.0:
                    values[t, free] = shifted[t, free]
                    mask[t, free] = share == 1.0
                    weights[t, free] = 0.0 if share == 1.0 else share
        return Conditions(mask, values, weights)
