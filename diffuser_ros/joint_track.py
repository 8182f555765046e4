"""One joint on its way through the points of a command, kept within its limits. Plain numbers, for a command has few of them.

Limits give way in this order, where they contradict each other: acceleration, velocity, position (never).

Braking. A step d (radians from one point to the next) that shrinks by A (acceleration times dt squared) a step goes on for
d + (d - A) + (d - 2A) + ... until it is zero. No step may be so large that this does not fit before the position limit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ['KINDS', 'TOLERANCE', 'JointTrack', 'braking']

KINDS = ('position', 'velocity', 'braking', 'acceleration')
"""What can decide where a joint goes instead of where it is asked to."""
TOLERANCE = 1e-9
"""A step beyond its limit by less than this is left as it is [rad]; positions have no such tolerance."""


class JointTrack(NamedTuple):
    """One joint during one command.

    lower, upper  positions [rad]
    fastest       largest step from point to point [rad]
    change        largest change from one step to the next [rad], at most twice `fastest`
    start, first  where it begins, and the step that led there, at most `fastest` [rad]
    """

    lower: float
    upper: float
    fastest: float
    change: float
    start: float
    first: float

    def keeps(self, wanted: list[float]) -> bool:
        """Whether nothing better can be made of these positions, though a limit may have had to give way in them."""
        place, step = self.start, self.first
        for position in wanted:
            low, high, _ = self._reach(place, step)
            if not (low - TOLERANCE <= position <= high + TOLERANCE and self.lower <= position <= self.upper):
                return False
            place, step = position, max(-self.fastest, min(position - place, self.fastest))
        return True

    def follow(self, wanted: list[float]) -> tuple[list[float], list[int]]:
        """Positions within the limits that follow the wanted ones, and for each the limit (index of KINDS) that decides if it
        is not the wanted one. What is left behind is caught up with as fast as is possible without passing a target at rest."""
        lower, upper, fastest, change, place, step = self
        reach = len(wanted) * fastest + _in_sight(2.0 * fastest, change)  # what lies farther off is no different
        nearest, farthest = max(lower, place - reach), min(upper, place + reach)
        wanted = [max(nearest, min(position, farthest)) for position in wanted]
        previous = wanted[0] - (wanted[1] - wanted[0]) if len(wanted) > 1 else wanted[0]
        places, kinds = [], []
        for position in wanted:
            onward = max(-fastest, min(position - previous, fastest))
            behind, target, previous = position - onward - place, position, position
            if not -change <= behind <= change:
                target = place + onward + math.copysign(braking(abs(behind), math.inf, change), behind)
            low, high, brakes = self._reach(place, step)
            if not (low - TOLERANCE <= target <= high + TOLERANCE and lower <= target <= upper):
                target = max(low, min(target, high))
            if target in (lower, upper):
                kind = 0
            elif abs(target - place) >= fastest - TOLERANCE:
                kind = 1
            else:
                kind = 2 if brakes and target == (high if step > 0.0 else low) else 3
            place, step = target, max(-fastest, min(target - place, fastest))
            places.append(place)
            kinds.append(kind)
        return places, kinds

    def _reach(self, place: float, step: float) -> tuple[float, float, bool]:
        """The lowest and the highest place that may follow `place`, reached by `step`, and whether it is a position limit ahead
        that slows the joint down."""
        lower, upper, fastest, change, _, _ = self
        most, least = braking(upper - place, fastest, change), -braking(place - lower, fastest, change)
        slower, faster = max(step - change, -fastest), min(step + change, fastest)
        low, high = place + max(slower, min(least, faster)), place + max(slower, min(most, faster))
        return max(lower, min(low, upper)), max(lower, min(high, upper)), (most < faster if step > 0.0 else least > slower)


def braking(room: float, fastest: float, change: float) -> float:
    """The largest step, up to `fastest`, after which a joint can be braked by `change` a step within `room`, step included."""
    if room <= change:
        return max(min(room, fastest), 0.0)
    if room >= _in_sight(fastest, change):
        return fastest
    more = math.floor(0.5 * (math.sqrt(1.0 + 8.0 * room / change) - 1.0))  # steps until it stands, beside this one
    return (room + 0.5 * change * more * (more + 1)) / (more + 1)


def _in_sight(fastest: float, change: float) -> float:
    """A room in which a joint can be braked from any speed."""
    return fastest * (fastest / change + 2.0)
