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
        place, step, fastest = self.start, self.first, self.fastest
        for position in wanted:
            if self._next(place, step, position)[0] != position:
                return False
            place, step = position, max(-fastest, min(position - place, fastest))
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
            onward = position - previous
            if not -fastest <= onward <= fastest:
                onward = math.copysign(fastest, onward)
            behind, target, previous = position - onward - place, position, position
            if behind > change:
                target = place + onward + braking(behind, math.inf, change)
            elif behind < -change:
                target = place + onward - braking(-behind, math.inf, change)
            target, kind = self._next(place, step, target)
            place, step = target, target - place
            if not -fastest <= step <= fastest:
                step = math.copysign(fastest, step)
            places.append(place)
            kinds.append(kind)
        return places, kinds

    def _next(self, place: float, step: float, target: float) -> tuple[float, int]:
        """The place nearest to `target` that may follow `place`, reached by `step`, and the limit that decides it."""
        lower, upper, fastest, change, _, _ = self
        wanted = move = target - place
        kind = 3
        if move > step + change + TOLERANCE:
            move = step + change
        elif move < step - change - TOLERANCE:
            move = step - change
        size = abs(move)
        if size >= fastest - TOLERANCE:
            kind = 1
            if size > fastest + TOLERANCE:
                move, size = math.copysign(fastest, move), fastest
        room = upper - place if move > 0.0 else place - lower
        if size * (size / change + 1.0) > room:  # else there is room to brake, and the rest need not be worked out
            most = max(braking(room, fastest, change), (step if move > 0.0 else -step) - change)
            if size >= most - TOLERANCE:
                kind = 2
                if size > most + TOLERANCE:
                    move = math.copysign(most, move)
        if move != wanted:
            target = place + move
        if target <= lower:
            return lower, 0
        return (upper, 0) if target >= upper else (target, kind)


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
