"""A running robot driven by plans of torques: candidates drawn with a return predictor as their guide, the best one followed.

As for mazes, planning and following are apart: `replan` may take as long as it takes, in another thread if need be; `command`
reads the newest plan at every tick. `act` does both in turn, for simulations that wait, which is what the paper does.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffuser_core.planner import Planner, Sampling
from diffuser_core.presets import DOMAINS, paper
from diffuser_core.trajectory import Plan

__all__ = ['LocomotionDecision', 'LocomotionPolicy', 'LocomotionSettings']

CLOCK_TOLERANCE = 1e-6
"""Shares of a step by which a tick may be early and still counts as that step's: times are sums of rounded numbers."""


@dataclass(frozen=True)
class LocomotionSettings:
    """How plans are made. The defaults did best on validation seeds (docs/results.md).

    guide_scale  factor of the return's gradient, where the return is measured in deviations of the returns in the data; 0: plans
                 are not bent
    candidates   plans drawn at once, of which the one with the largest predicted return is followed
    warm         whether plans start from the last one; else each is made from noise, as the paper does
    """

    guide_scale: float = 0.0
    candidates: int = 8
    warm: bool = False
    sampling: Sampling = Sampling(steps=2, warm_steps=2, warm_level=0.5, rule='score')

    def __post_init__(self) -> None:
        if not 0.0 <= self.guide_scale < float('inf') or self.candidates < 1:
            raise ValueError(f'guide_scale is a number from 0 up and candidates at least 1, got {self.guide_scale} and '
                             f'{self.candidates}')

    @classmethod
    def paper(cls, domain: str, deviation: float) -> LocomotionSettings:
        """Those of the released code for 'hopper-medium-expert', ...; `deviation` of the returns that the predictor learnt."""
        preset = paper(domain if domain in DOMAINS else domain.partition('-')[0])
        if preset.guide is None:
            raise ValueError(f'the domain {domain!r} has no guide in the paper')
        return cls(preset.guide.scale * deviation, preset.guide.candidates, False, preset.sampling())


@dataclass(frozen=True)
class LocomotionDecision:
    """What to do from now on.

    actions  (ticks, actions) torques in [-1, 1] for the following ticks
    plan     the plan behind them; None where there is none, and the torques are zero
    """

    actions: NDArray[np.float64]
    plan: Plan | None


class LocomotionPolicy:
    """Drives one robot for reward; `act`, or `replan` and `command`, at every tick of a planning step.

    Without a return predictor in the checkpoint, `guide_scale` must be 0 and `candidates` 1: plans then imitate the data.
    `replan` is called from one thread at a time, everything else from one thread, which may be another.

    tail  ticks of actions a decision holds
    """

    def __init__(self, planner: Planner, settings: LocomotionSettings | None = None, *, tail: int = 4) -> None:
        if planner.channels.actions < 1 or not planner.channels.observations:
            raise ValueError(f'the checkpoint does not fit: it needs actions and observations, got '
                             f'{", ".join(planner.channels.names)}')
        if tail < 1:
            raise ValueError(f'tail is at least 1, got {tail}')
        self.settings = settings = LocomotionSettings() if settings is None else settings
        self.planner = planner
        value = planner.checkpoint.value
        if value is None and (settings.guide_scale or settings.candidates > 1):
            raise ValueError('the checkpoint has no return predictor: guide_scale must be 0 and candidates 1')
        judge = None if value is None else planner.value_guide()
        self._select = judge if settings.candidates > 1 else None
        self._guide = settings.guide_scale / value.scale * judge if value and judge and settings.guide_scale else None
        self._tail = tail
        self._lock = threading.Lock()
        self._plan: Plan | None = None
        self._lives = 0     # counts resets: a plan for an earlier life is thrown away
        self._replans = 0

    @property
    def replans(self) -> int:
        """Plans made since the last reset."""
        return self._replans

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed; not while a plan is being made."""
        with self._lock:
            self._plan = None
            self._lives += 1
        self._replans = 0
        self.planner.reseed(seed)

    def replan(self, observation: Mapping[str, float], now: float) -> Plan | None:
        """Plan from the state (channel name -> value) at time `now` [s]; None if the policy was reset meanwhile.

        KeyError if the observation lacks a channel, ValueError if it is not finite.
        """
        with self._lock:
            last, life = self._plan, self._lives
        state = self.planner.channels.vector(observation)
        if not self.settings.warm or last is not None and not last.t0 <= now <= self._end(last):
            last = None
        plan = self.planner.plan(state, guide=self._guide, warm_start=last, sampling=self.settings.sampling, t0=now,
                                 count=self.settings.candidates, select=self._select)
        with self._lock:
            if life != self._lives:
                return None
            self._plan = plan
            self._replans += 1
        return plan

    def command(self, observation: Mapping[str, float], now: float) -> LocomotionDecision:
        """Torques for the following ticks at time `now` [s] from the newest plan; zero without one, or after its end."""
        with self._lock:
            plan = self._plan
        actions = np.zeros((self._tail, self.planner.channels.actions))
        if plan is None or now > self._end(plan):
            return LocomotionDecision(actions, None)
        first = max(0, int((now - plan.t0) / plan.step_dt + CLOCK_TOLERANCE))
        ahead = plan.actions[first:first + self._tail]
        actions[:len(ahead)] = np.clip(ahead, -1.0, 1.0)
        return LocomotionDecision(actions, plan)

    def act(self, observation: Mapping[str, float], now: float) -> LocomotionDecision:
        """Plan, then decide."""
        self.replan(observation, now)
        return self.command(observation, now)

    @staticmethod
    def _end(plan: Plan) -> float:
        return plan.t0 + plan.step_dt * (plan.horizon - 1 + CLOCK_TOLERANCE)
