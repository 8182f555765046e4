"""Planning takes time, during which the robot goes on: how long it will be, and simulations of planning that is slow."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from diffuser_core.motion import Motion, Observation, Policy

__all__ = ['DelayForecast', 'DelayedPolicy', 'Injected', 'SlowChannel']

Item = TypeVar('Item')


class DelayForecast:
    """How long the next plan will take to be followed [s]: what 9 of 10 of the newest `memory` delays did not exceed.

    The first `ignore` delays do not count: they pay for what is set up on first use. 0 until there is one that counts.
    """

    def __init__(self, memory: int = 20, ignore: int = 1) -> None:
        self._delays: deque[float] = deque(maxlen=memory)
        self._ignore = ignore

    def add(self, delay: float) -> None:
        """A delay was measured [s]; ValueError if it is negative or not finite."""
        if not 0.0 <= delay < math.inf:
            raise ValueError(f'a delay must be finite and not negative, got {delay} s')
        if self._ignore:
            self._ignore -= 1
        else:
            self._delays.append(delay)

    @property
    def seconds(self) -> float:
        """The forecast."""
        if not self._delays:
            return 0.0
        ordered = sorted(self._delays)
        return ordered[math.ceil(0.9 * len(ordered)) - 1]


@dataclass(frozen=True)
class Injected:
    """What planning is made to suffer in a simulation that waits: `delay` [s] plus up to `jitter` [s], drawn uniformly, and
    `loss`, the share of plans that never arrive. The same seed suffers the same. ValueError for what cannot be."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0.0 <= self.delay < math.inf and 0.0 <= self.jitter < math.inf and 0.0 <= self.loss < 1.0):
            raise ValueError(f'delay and jitter must be finite and not negative and the loss lie in [0, 1), got {self.delay} s, '
                             f'{self.jitter} s and {self.loss}')

    @property
    def any(self) -> bool:
        """Whether there is anything to suffer."""
        return bool(self.delay or self.jitter or self.loss)


class SlowChannel(Generic[Item]):
    """Hands things on when their simulated delay is over, one at a time."""

    def __init__(self, injected: Injected) -> None:
        self._injected = injected
        self._under_way: tuple[float, Item, bool] | None = None
        self.restart()

    def restart(self) -> list[Item]:
        """Begin the sequence of delays again; what was on its way."""
        dropped = [] if self._under_way is None else [self._under_way[1]]
        self._rng = np.random.default_rng(self._injected.seed)
        self._under_way = None
        return dropped

    @property
    def busy(self) -> bool:
        """Whether something is on its way."""
        return self._under_way is not None

    def send(self, item: Item, now: float) -> None:
        """Send an item at `now` [s]; RuntimeError while another is on its way."""
        if self.busy:
            raise RuntimeError('the channel takes one thing at a time')
        late, lost = self._rng.uniform(0.0, 1.0, 2)
        arrives = now + self._injected.delay + late * self._injected.jitter
        self._under_way = arrives, item, bool(lost < self._injected.loss)

    def received(self, now: float) -> Iterator[tuple[Item, bool]]:
        """What should have arrived by `now` [s], and whether it was lost on the way."""
        if self._under_way is not None and now >= self._under_way[0] - 1e-9:
            (_, item, lost), self._under_way = self._under_way, None
            yield item, lost


class DelayedPolicy:
    """A policy whose plans arrive late, as on a slower computer, while the robot goes on; deterministic, for simulations.

    tick_dt    time between two calls of `act` [s]
    committed  whether a plan is told how long it takes, so that its beginning agrees with what is done meanwhile; otherwise it
               is made as if it arrived at once
    """

    def __init__(self, policy: Policy, injected: Injected, *, tick_dt: float, committed: bool = True) -> None:
        self._policy, self._committed = policy, committed
        self.tick_dt = tick_dt
        self._channel: SlowChannel[tuple[Motion, float]] = SlowChannel(injected)
        self.reset()

    @property
    def replans(self) -> int:
        """Plans made so far."""
        return self._policy.replans

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed."""
        self._policy.reset(seed)
        self._restart()

    def _restart(self) -> None:
        self._channel.restart()
        self._forecast = DelayForecast(ignore=0)
        self._motion: Motion | None = None

    def set_goal(self, goal: Any, observation: Observation) -> None:
        """Pursue `goal`."""
        self._policy.set_goal(goal, observation)
        self._restart()

    def clear_goal(self) -> None:
        """Drop the goal."""
        self._policy.clear_goal()
        self._restart()

    def act(self, observation: Observation, now: float) -> Any:
        """Take in what has arrived by `now` [s], begin to plan if nothing is under way, and decide by the newest plan."""
        self._take_in(now)
        if not self._channel.busy:
            delay = self._forecast.seconds if self._committed else 0.0
            self._channel.send((self._policy.replan(observation, now, delay), now), now)
            self._take_in(now)  # without any delay a plan is followed in the tick that made it
        motion = self._policy.resting(observation) if self._motion is None else self._motion
        return motion.decide(observation, now)

    def _take_in(self, now: float) -> None:
        for (motion, asked), lost in self._channel.received(now):
            if lost:
                continue
            self._forecast.add(now - asked)
            self._motion = motion.begun(now)
            self._policy.begin(now)
