"""The last check before a command leaves: finite, inside the limits of the robot, no jump; and what had to be changed for it.

Joints are limited each for itself, point after point, in this order of precedence: position, velocity, acceleration. Times stay,
so a limited command leaves the planned path and comes back to it later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffuser_ros.joint_track import KINDS, TOLERANCE, JointTrack

__all__ = ['ActionFilter', 'Commanded', 'Filtered', 'Limits', 'SafetyFilter', 'UnsafeCommand']

ROUNDING = 1e-6
"""A change smaller than this is rounding of the network's 32-bit numbers and not counted as a clamp [rad]."""
SLOWEST = 1e-6
"""Limits of velocity and acceleration below this are a mistake [rad/s, rad/s^2]."""


class UnsafeCommand(ValueError):
    """A command that no clamping makes safe; the message says why."""


@dataclass(frozen=True)
class Limits:
    """What the joints of a robot may be asked for, arrays (joints,).

    lower, upper  positions [rad]; minus and plus infinity for a joint that turns on and on
    velocity      [rad/s]
    acceleration  [rad/s^2]; infinity for none
    jump          the largest distance of a command's first point from where a joint is commanded, and measured, to be [rad]

    ValueError, one sentence, for other shapes, numbers that are none, and lower limits that are not below the upper ones.
    """

    names: tuple[str, ...]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    velocity: NDArray[np.float64]
    acceleration: NDArray[np.float64]
    jump: float

    def __post_init__(self) -> None:
        for field in ('lower', 'upper', 'velocity', 'acceleration'):
            values = np.array(getattr(self, field), dtype=np.float64)
            if values.shape != (len(self.names),):
                raise ValueError(f'{field} limits of {len(self.names)} joints need as many numbers, got shape {values.shape}')
            values.setflags(write=False)
            object.__setattr__(self, field, values)
        for name, lower, upper, velocity, acceleration in zip(
                self.names, self.lower.tolist(), self.upper.tolist(), self.velocity.tolist(), self.acceleration.tolist()):
            if not lower < upper:
                raise ValueError(f'{name}: the lower limit {lower:g} rad is not below the upper one {upper:g} rad')
            if not SLOWEST <= velocity < math.inf:
                raise ValueError(f'{name}: the velocity limit must be positive and finite, got {velocity:g} rad/s')
            if not SLOWEST <= acceleration:
                raise ValueError(f'{name}: the acceleration limit must be positive, got {acceleration:g} rad/s^2')
        if not self.jump > 0.0:
            raise ValueError(f'the largest jump must be positive, got {self.jump:g} rad')


class Commanded(NamedTuple):
    """Where a robot is commanded to be at one moment: positions [rad] and velocities [rad/s], each (joints,)."""

    position: NDArray[np.float64]
    velocity: NDArray[np.float64]

    @classmethod
    def along(cls, start: NDArray[np.float64], points: NDArray[np.float64], step_dt: float, elapsed: float) -> Commanded:
        """`elapsed` [s] after a command from `start` (joints,) through `points` (n, joints), one every `step_dt`, was begun:
        on a straight line between two of them, at its velocity; at rest in the last one after that."""
        step = math.ceil(elapsed / step_dt - 1e-6) - 1
        if step >= len(points):
            return cls(points[-1], np.zeros_like(points[-1]))
        step = max(step, 0)
        before = points[step - 1] if step else start
        velocity = (points[step] - before) / step_dt
        return cls(before + (max(elapsed, 0.0) - step * step_dt) * velocity, velocity)


@dataclass(frozen=True)
class Filtered:
    """A command that can be sent.

    points  (n, joints or actions), as asked for where nothing had to be changed
    counts  how many of its values were changed, by the limit that decided: position, velocity, braking, acceleration of joints;
            bounds, change of actions; kinds that did not occur are left out
    text    the same as one sentence with the largest change; empty if nothing was changed
    """

    points: NDArray[np.float64]
    counts: Mapping[str, int]
    text: str

    @property
    def changed(self) -> int:
        """How many values were changed."""
        return sum(self.counts.values())


class SafetyFilter:
    """Makes joint commands safe to send; keeps nothing from one command to the next.

    What comes out is finite, lies within the position limits, begins within `jump` of where the robot is, and is what went in,
    bit for bit, if that is within the limits. Filtering it again changes nothing. Let a robot begin within its position and
    velocity limits and slowly enough to be braked before a position limit (as it does after every command that was filtered
    with the same limits). Then no step is faster than the velocity limit, no step differs from the one before by more than the
    acceleration limit, and the robot can still be stopped within all limits after any of the points. If it begins otherwise,
    the acceleration limit gives way to the velocity limit, and both to the position limit.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def filter(self, points: ArrayLike, measured: ArrayLike, step_dt: float, before: Commanded | None = None) -> Filtered:
        """The command through `points` (n, joints) [rad] after 1, 2, ... times `step_dt` [s], made safe.

        measured  (joints,), where the robot is [rad]
        before    where it is commanded to be at this moment; None: it stands where it was measured

        UnsafeCommand for a wrong shape, numbers that are not finite, and a first point, as asked for or as limited, farther
        than the largest jump from where the robot is measured or commanded to be.
        """
        limits = self.limits
        asked = _checked(points, len(limits.names), 'joints')
        here = _state(measured, asked, 'measured positions')
        if not 0.0 < step_dt < math.inf:
            raise UnsafeCommand(f'the time between two points must be positive and finite, got {step_dt} s')
        start, moving = here, np.zeros_like(here)
        if before is not None:
            start, moving = (_state(v, asked, w) for v, w in zip(before, ('commanded positions', 'commanded velocities')))
        self._refuse_jump(asked[0], here, 'measured')
        self._refuse_jump(asked[0], start, 'commanded')

        fastest = limits.velocity * step_dt
        # Beyond twice the fastest step no change of step is possible, so that this stands for infinity too.
        change = np.minimum(limits.acceleration * step_dt ** 2, 2.0 * fastest)
        first = (moving * step_dt).clip(-fastest, fastest)
        with np.errstate(over='ignore', invalid='ignore'):
            wrong = ~self._within(asked, start, first, fastest, change).all(axis=0)
        if not wrong.any():
            return Filtered(asked, {}, '')
        safe, kinds = asked.copy(), np.zeros(asked.shape, dtype=np.int64)
        for joint in np.flatnonzero(wrong).tolist():
            track = JointTrack(*(float(v[joint]) for v in (limits.lower, limits.upper, fastest, change, start, first)))
            wanted = asked[:, joint].tolist()
            if not track.keeps(wanted):
                safe[:, joint], kinds[:, joint] = track.follow(wanted)
        self._refuse_jump(safe[0], here, 'measured')
        self._refuse_jump(safe[0], start, 'commanded')
        return self._told(asked, safe, kinds)

    def stop(self, before: Commanded, points: int, step_dt: float) -> NDArray[np.float64]:
        """Joint positions (points, joints) [rad], one every `step_dt` [s], that bring a robot to rest as soon as its limits allow
        and keep it there. Filtering them changes nothing."""
        fastest = self.limits.velocity * step_dt
        step, place = (before.velocity * step_dt).clip(-fastest, fastest), before.position
        stopping = np.empty((points, len(place)))
        for n in range(points):
            step = np.sign(step) * np.maximum(np.abs(step) - self.limits.acceleration * step_dt ** 2, 0.0)
            stopping[n] = place = (place + step).clip(self.limits.lower, self.limits.upper)
        return stopping

    def _refuse_jump(self, point: NDArray[np.float64], where: NDArray[np.float64], how: str) -> None:
        distance = np.abs(point - where)
        if not (distance <= self.limits.jump).all():
            joint = int(distance.argmax())
            raise UnsafeCommand(f'the command begins with {self.limits.names[joint]} at {point[joint]:.5g} rad, which is {how} '
                                f'at {where[joint]:.5g} rad, farther off than the largest jump of {self.limits.jump:g} rad')

    def _within(self, points: NDArray[np.float64], start: NDArray[np.float64], first: NDArray[np.float64],
                fastest: NDArray[np.float64], change: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the points (n, joints) keep all limits, if those before them do."""
        lower, upper = self.limits.lower, self.limits.upper
        steps = np.empty((len(points) + 1, len(start)))
        steps[0], steps[1] = first, points[0] - start
        np.subtract(points[1:], points[:-1], out=steps[2:])
        moves = steps[1:]
        size = np.abs(moves)
        more = np.floor(size / change)  # steps that it takes to stop, beside this one
        stopping = more * (size - 0.5 * change * (more + 1.0))
        room = np.where(moves > 0.0, upper - points, points - lower)
        return ((points >= lower) & (points <= upper) & (size <= fastest + TOLERANCE) & (stopping <= room + TOLERANCE)
                & (np.abs(moves - steps[:-1]) <= change + TOLERANCE))

    def _told(self, asked: NDArray[np.float64], safe: NDArray[np.float64], kinds: NDArray[np.int64]) -> Filtered:
        """The filtered command with counts and text."""
        limits = self.limits
        with np.errstate(over='ignore'):
            by = np.abs(safe - asked)
        counts = _counts(KINDS, kinds[by > ROUNDING])
        point, joint = (int(n) for n in np.unravel_index(int(by.argmax()), by.shape))
        why = (f'position limit {safe[point, joint]:.5g} rad', f'velocity limit {limits.velocity[joint]:g} rad/s',
               f'braking before its position limit at {limits.acceleration[joint]:g} rad/s^2',
               f'acceleration limit {limits.acceleration[joint]:g} rad/s^2')[kinds[point, joint]]
        return Filtered(safe, counts, _text(counts, limits.names[joint], point, asked[point, joint], safe[point, joint],
                                            f' rad, {why}'))


class ActionFilter:
    """Makes actions safe to send: finite, within bounds, and not changing faster than allowed.

    names         of the actions
    lower, upper  bounds, a number or (actions,)
    change        the largest change from one tick to the next, a number or (actions,); infinity for none

    What is within the bounds comes out bit for bit; filtering again changes nothing. Bounds come before the largest change.
    ValueError for bounds that are none.
    """

    def __init__(self, names: Sequence[str], *, lower: ArrayLike = -1.0, upper: ArrayLike = 1.0,
                 change: ArrayLike = math.inf) -> None:
        self.names = tuple(names)
        self._lower, self._upper, self._change = (
            np.broadcast_to(np.asarray(v, dtype=np.float64), len(self.names)) for v in (lower, upper, change))
        for name, low, high, most in zip(self.names, self._lower, self._upper, self._change):
            if not low <= high:
                raise ValueError(f'{name}: the lower bound {low:g} is above the upper one {high:g}')
            if not most > 0.0:
                raise ValueError(f'{name}: the largest change must be positive, got {most:g}')

    def filter(self, actions: ArrayLike, before: ArrayLike | None = None) -> Filtered:
        """The `actions` (ticks, actions) made safe, if `before` (actions,) is what was commanded last; None: nothing was.

        UnsafeCommand for a wrong shape and numbers that are not finite.
        """
        asked = _checked(actions, len(self.names), 'actions')
        safe = asked.clip(self._lower, self._upper)
        kinds = np.zeros(asked.shape, dtype=np.int64)
        last = safe[0] if before is None else _state(before, asked, 'actions before')
        if np.isfinite(self._change).any():
            for n, action in enumerate(safe):
                slow = action.clip(last - self._change, last + self._change).clip(self._lower, self._upper)
                close = np.abs(action - last) <= self._change + TOLERANCE
                kinds[n] = ~close
                last = safe[n] = np.where(close, action, slow)
        by = np.abs(safe - asked)
        if not by.any():
            return Filtered(asked, {}, '')
        counts = _counts(('bounds', 'change'), kinds[by > ROUNDING])
        tick, column = (int(n) for n in np.unravel_index(int(by.argmax()), by.shape))
        why = f'largest change {self._change[column]:g} a tick' if kinds[tick, column] else f'bound {safe[tick, column]:g}'
        return Filtered(safe, counts, _text(counts, self.names[column], tick, asked[tick, column], safe[tick, column],
                                            f', {why}'))


def _checked(rows: ArrayLike, columns: int, what: str) -> NDArray[np.float64]:
    """A copy of `rows` as numbers; UnsafeCommand if they are no finite rows of `columns`."""
    try:
        values = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UnsafeCommand(f'a command needs rows of {columns} {what}, got what are no numbers: {error}') from None
    if values.ndim != 2 or len(values) == 0 or values.shape[1] != columns:
        raise UnsafeCommand(f'a command needs rows of {columns} {what}, got shape {values.shape}')
    if not np.isfinite(values).all():
        raise UnsafeCommand('the command holds numbers that are not finite')
    return values


def _state(values: ArrayLike, asked: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    """Numbers, one a column of the command; UnsafeCommand if they are not."""
    state = np.asarray(values, dtype=np.float64)
    if state.shape != asked.shape[1:]:
        raise UnsafeCommand(f'a command of {asked.shape[1]} columns needs as many {what}, got shape {state.shape}')
    if not np.isfinite(state).all():
        raise UnsafeCommand(f'the {what} hold numbers that are not finite')
    return state


def _counts(names: Sequence[str], kinds: NDArray[np.int64]) -> dict[str, int]:
    """How often each kind occurs, by name, of those that do."""
    return {name: count for name, count in zip(names, np.bincount(kinds, minlength=len(names)).tolist()) if count}


def _text(counts: Mapping[str, int], name: str, row: int, asked: float, sent: float, why: str) -> str:
    """What a filter changed, as one sentence; empty for nothing but rounding."""
    if not counts:
        return ''
    total = sum(counts.values())
    kinds = ', '.join(f'{count} by {kind}' for kind, count in counts.items())
    return (f'{total} value{"s" * (total > 1)} changed ({kinds}), most of all {name} in point {row + 1} from {asked:.5g} to '
            f'{sent:.5g}{why}')
