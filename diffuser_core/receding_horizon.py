"""The controller that a robot runs: replan at every tick from the measured state, starting from the last plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
    """

    def __init__(self, planner: Planner, sampling: Sampling = DEFAULT_SAMPLING, *, committed: Sequence[str] = (),
                 commit: int = 0, fade: int = 0) -> None:
        if commit < 0 or fade < 0:
            raise ValueError(f'commit and fade count plan steps and cannot be negative, got {commit} and {fade}')
        self.planner = planner
        self.sampling = sampling
        self._committed = planner.channels.indices(committed)
        self._commit = commit
        self._fade = fade
        self.plan: Plan | None = None
        self.replans = 0

    def restart(self, plan: Plan | None = None) -> None:
        """Forget the current plan, so that the next one is made from pure noise, or go on from `plan`."""
        self.plan = plan

    def update(self, observation: np.ndarray, conditions: Conditions, now: float, *, guide: Guide | None = None,
               budget: float | None = None) -> Plan:
        """Plan from `observation` (observations,) at time `now` [s] and keep the result; other arguments as `Planner.plan`.

        A plan that has run out, or that starts after `now`, is no warm start.
        """
        last = self.plan
        if last is not None and not last.t0 <= now <= last.t0 + last.step_dt * (last.horizon - 1):
            last = None
        if last is not None and (self._commit or self._fade):
            conditions = self._prefixed(conditions, last.shifted(now, conditions.horizon))
        self.plan = self.planner.plan(observation, conditions, guide=guide, warm_start=last, sampling=self.sampling, t0=now,
                                      budget=budget)
        self.replans += 1
        return self.plan

    def _prefixed(self, conditions: Conditions, shifted: np.ndarray) -> Conditions:
        """`conditions` plus the committed channels of the last plan, shifted to the present; what is known stays as it is."""
        mask, values, weights = conditions.mask.copy(), conditions.values.copy(), conditions.weights.copy()
        strength = chunking_weights(len(mask), self._commit, self._fade)
        for t in range(1, len(mask)):
            free = self._committed[~conditions.mask[t, self._committed]]
            if strength[t] == 0.0:
                break
            values[t, free] = shifted[t, free]
            mask[t, free] = strength[t] == 1.0
            weights[t, free] = 0.0 if strength[t] == 1.0 else strength[t]
        return Conditions(mask, values, weights)
