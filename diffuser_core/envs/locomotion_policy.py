"""A running robot driven by plans of torques: candidates drawn with a return predictor as their guide, the best one followed.

As for mazes, planning and following are apart: `replan` may take as long as it takes, in another thread if need be; `command`
reads the newest plan at every tick. `act` does both in turn, for simulations that wait, which is what the paper does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffuser_core.checkpoint import Checkpoint
from diffuser_core.envs.locomotion_motion import LocomotionDecision, LocomotionMotion, RunGoal, end_of
from diffuser_core.planner import Planner, Sampling
from diffuser_core.presets import DOMAINS, paper
from diffuser_core.receding_horizon import RecedingHorizon
from diffuser_core.trajectory import RETURN

__all__ = ['AIM', 'LocomotionPolicy', 'LocomotionSettings', 'aim_of']

AIM = 1.0
"""What planners aim at whose checkpoints do not say; chosen on validation seeds."""


@dataclass(frozen=True)
class LocomotionSettings:
    """How plans are made. The defaults did best on validation seeds (docs/results.md).

    guide_scale  factor of the return's gradient, where the return is measured in deviations of the returns in the data; 0: plans
                 are not bent
    candidates   plans drawn at once, of which the one with the largest predicted return is followed
    warm         whether plans start from the last one; else each is made from noise, as the paper does
    aim          for planners that are told the return they shall reach: how far above the mean of the data, in deviations; None:
                 as their checkpoint says, see `aim_of`
    """

    guide_scale: float = 0.0
    candidates: int = 1
    warm: bool = False
    sampling: Sampling = Sampling(steps=1, warm_steps=1, warm_level=0.5, rule='score')
    aim: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.guide_scale < math.inf or self.candidates < 1 or not math.isfinite(self.aim or 0.0):
            raise ValueError(f'guide_scale is a number from 0 up, candidates at least 1 and aim finite, got {self.guide_scale}, '
                             f'{self.candidates} and {self.aim}')

    @classmethod
    def paper(cls, domain: str, deviation: float) -> LocomotionSettings:
        """Those of the released code for 'hopper-medium-expert', ...; `deviation` of the returns that the predictor learnt."""
        preset = paper(domain if domain in DOMAINS else domain.partition('-')[0])
        if preset.guide is None:
            raise ValueError(f'the domain {domain!r} has no guide in the paper')
        return cls(preset.guide.scale * deviation, preset.guide.candidates, False, preset.sampling())


def aim_of(checkpoint: Checkpoint) -> float:
    """The return that suits a planner best that is told one, in deviations above the mean of its data."""
    return AIM if checkpoint.aim is None else checkpoint.aim


class LocomotionPolicy:
    """Drives one robot for reward; `act`, or `replan` and `command`, at every tick of a planning step. Not thread-safe.

    Without a return predictor in the checkpoint, `guide_scale` must be 0 and `candidates` 1: plans then imitate the data.

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
        torques = planner.channels.names[:planner.channels.actions]
        self._horizon = RecedingHorizon(planner, settings.sampling, committed=torques, moving=torques)
        self._motion = self._still
        self._wish = self._wished()
        self.goal: RunGoal | None = None
        self._replans = 0

    def _wished(self) -> dict[str, float]:
        """The return that plans are told to have, if they are told one."""
        if RETURN not in self.planner.channels.names:
            return {}
        column, normalizer = self.planner.channels.names.index(RETURN), self.planner.checkpoint.normalizer
        aim = aim_of(self.planner.checkpoint) if self.settings.aim is None else self.settings.aim
        return {RETURN: float(normalizer.offset[column] + aim * normalizer.scale[column])}

    @property
    def _still(self) -> LocomotionMotion:
        """No plan."""
        return LocomotionMotion(None, self.planner.channels.actions, self._tail)

    @property
    def replans(self) -> int:
        """Plans made since the last reset."""
        return self._replans

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed."""
        self.goal, self._motion = None, self._still
        self._replans = 0
        self.planner.reseed(seed)

    def set_goal(self, goal: RunGoal, observation: Mapping[str, float]) -> None:
        """Run; KeyError if the observation lacks a channel."""
        self.planner.channels.vector({**observation, **self._wish})
        self.goal = goal

    def clear_goal(self) -> None:
        """The torques are zero from now on."""
        self.goal, self._motion = None, self._still

    def adopt(self, motion: LocomotionMotion | None) -> None:
        """The robot follows `motion` instead, or none; one of other channels is not known here."""
        known = motion is not None and motion.plan is not None and motion.plan.channels == self.planner.channels
        self._motion = motion if known and motion is not None else self._still

    def begin(self, now: float) -> None:
        """The motion that `replan` gave last is followed since `now` [s]; a plan that waited for it begins there."""
        self._motion = self._motion.begun(now)

    def resting(self, observation: Mapping[str, float]) -> LocomotionMotion:
        """No torques."""
        return self._still

    def replan(self, observation: Mapping[str, float], now: float, delay: float = 0.0, budget: Any = None) -> LocomotionMotion:
        """What to follow from the state (channel name -> value) at time `now` [s] on, if it is followed `delay` [s] later: for so
        long it does what the last plan says.

        KeyError if the observation lacks a channel, ValueError if it is not finite.
        """
        last = self._motion.plan
        if last is not None and not last.t0 <= now <= end_of(last):
            last = None
        self._horizon.follow(last)
        state = self.planner.channels.vector({**observation, **self._wish})
        conditions, committed = self._horizon.prefixed(self.planner.conditions(), now, delay)
        plan = self.planner.plan(state, conditions, guide=self._guide, warm_start=last if self.settings.warm else None,
                                 sampling=self.settings.sampling, t0=now, count=self.settings.candidates, select=self._select,
                                 budget=budget)
        plan = replace(plan, provenance={**plan.provenance, 'committed': committed})
        self._motion = LocomotionMotion(plan, self.planner.channels.actions, self._tail, waits=last is None and delay > 0.0)
        self._replans += 1
        return self._motion

    def command(self, observation: Mapping[str, float], now: float) -> LocomotionDecision:
        """Torques for the following ticks at time `now` [s] from the newest plan; zero without one, or after its end."""
        self.begin(now)
        return self._motion.decide(observation, now)

    def act(self, observation: Mapping[str, float], now: float) -> LocomotionDecision:
        """Plan, then decide."""
        self.replan(observation, now)
        return self.command(observation, now)
