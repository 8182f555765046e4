"""Whether what the robot says of itself can be true: speeds that it can reach, a clock that goes on as ours does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from diffuser_msgs.msg import PlannerStats

__all__ = ['StateMonitor']

WINDOW = 0.1
"""States are compared with the one before and with one up to so much older [s]: between two states that follow each other closely
a channel moves less than may be noise, however fast it is."""


class StateMonitor:
    """Compares every state with those before it.

    max_speed        channel -> the largest speed that is possible [unit of the channel per second]; others are not looked at
    factor           how many times faster than that a channel may seem to move, for stamps are not exact
    jump_tolerance   what a channel may move besides, for measurements are not exact [unit of the channel]
    clock_tolerance  by how much the stamps may go back or ahead from one state to the next, measured by their arrivals [s];
                     infinity where they need not follow the clock, as in a simulation that waits for commands
    recovery         after a fault so many states in a row have to agree with those before them, until all is well; 5 are enough
                     for 120 states a second, 50 for 1000

    So a fault ends by itself: a robot that was carried elsewhere, or a clock that was set, is taken as it is once it is steady. A
    fault that goes on does not end: neither a channel that stays too fast, nor a clock that goes to and fro.

    ValueError, one sentence, for settings that make no sense.
    """

    def __init__(self, max_speed: Mapping[str, float], *, factor: float = 1.5, jump_tolerance: float = 0.05,
                 clock_tolerance: float = 0.5, recovery: int = 5) -> None:
        for what, value in {**{f'the largest speed of {name}': speed for name, speed in max_speed.items()},
                            'the factor': factor, 'the clock tolerance': clock_tolerance}.items():
            if not value > 0.0:
                raise ValueError(f'{what} must be positive, got {value}')
        if not jump_tolerance >= 0.0:
            raise ValueError(f'the jump tolerance must not be negative, got {jump_tolerance}')
        if recovery < 1:
            raise ValueError(f'at least one state has to agree after a fault, got {recovery}')
        self._max_speed = dict(max_speed)
        self._factor, self._jump, self._clock, self._recovery = factor, jump_tolerance, clock_tolerance, recovery
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next state is the first one, as after the robot was put elsewhere on purpose."""
        self._recent: deque[tuple[Mapping[str, float], float]] = deque()  # states that agree, and the time by their stamps [s]
        self._stamp = self._arrival = 0.0
        self._fault: tuple[int, str] | None = None
        self._agreeing = 0

    def check(self, observation: Mapping[str, float], stamp: float, arrival: float) -> tuple[int, str]:
        """The reason code of PlannerStats for a state, OK, IMPLAUSIBLE_STATE or CLOCK_JUMPED, and why, as one sentence.

        observation  channel -> value; ValueError if it lacks one that is to be looked at
        stamp        the time of the state by the robot's clock [s]
        arrival      when it came, by a clock that is never set [s]

        The same state with the same stamp once more is a resend: it changes nothing. States that differ and have the same stamp
        come from a driver that sets none; they are judged by their arrivals.
        """
        missing = [name for name in self._max_speed if name not in observation]
        if missing:
            raise ValueError(f'the observation lacks the channel {", ".join(missing)}')
        values = {name: observation[name] for name in self._max_speed}
        passed, waited = stamp - self._stamp, arrival - self._arrival
        self._stamp, self._arrival = stamp, arrival
        if not self._recent:
            self._recent.append((values, 0.0))
            return PlannerStats.OK, ''
        last, time = self._recent[-1]
        if passed == 0.0 and values == last:
            return self._verdict()
        time += abs(passed) or abs(waited)
        fault = self._jumped(passed, waited) or self._too_fast(values, time)
        if fault is not None:
            self._recent.clear()
            self._fault, self._agreeing = fault, 0
            self._recent.append((values, 0.0))
            return fault
        self._recent.append((values, time))
        while time - self._recent[0][1] > WINDOW:
            self._recent.popleft()
        self._agreeing += 1
        return self._verdict()

    def _verdict(self) -> tuple[int, str]:
        """Of a state that agrees with those before it."""
        if self._fault is None or self._agreeing >= self._recovery:
            self._fault = None
            return PlannerStats.OK, ''
        reason, text = self._fault
        return reason, f'{text}; {self._agreeing} of {self._recovery} states that must agree since then have come'

    def _jumped(self, passed: float, waited: float) -> tuple[int, str] | None:
        """Whether stamps went on by another time than arrivals [s]."""
        ahead = passed - waited
        if passed == 0.0 or abs(ahead) <= self._clock:
            return None
        return PlannerStats.CLOCK_JUMPED, (
            f'the stamps of states went {"ahead" if ahead > 0.0 else "back"} by {abs(ahead):.3f} s against their arrivals, '
            f'allowed are {self._clock:g} s')

    def _too_fast(self, values: Mapping[str, float], time: float) -> tuple[int, str] | None:
        """The channel that moved farthest beyond what it can, since the state before or since the oldest that is kept."""
        worst, text = 0.0, ''
        for old, then in (self._recent[-1], self._recent[0]):
            for name, speed in self._max_speed.items():
                moved = abs(values[name] - old[name])
                beyond = moved - self._factor * speed * (time - then) - self._jump
                if not beyond <= worst:  # also if it is not a number
                    worst = math.inf if math.isnan(beyond) else beyond
                    text = (f'{name} moved by {moved:.4g} in {1e3 * (time - then):.1f} ms, and cannot move faster than {speed:g} '
                            'a second')
        return (PlannerStats.IMPLAUSIBLE_STATE, text) if text else None
