"""Scripted demonstrator for block stacking: puts one slab on another or on the ground.

A *segment* is 'put block i on block j'. Its motion is planned in cylindrical coordinates of the tip (azimuth [rad],
radius [m], height [m]) and turned into joint targets by the closed-form inverse kinematics at every tick: lift to a
clearance height, transit, straight descent, grip, lift, transit, straight descent, release, short retreat, rest. All
profiles are trapezoidal in speed. Since azimuth is joint 1, which cannot pass +-2.97 rad, transits never wrap around.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffuser_core.envs.kuka_kinematics import forward_kinematics, inverse_kinematics, tip_cylindrical
from diffuser_core.envs.stacking import BLOCKS, GROUND, SLAB_HEIGHT, TICK, Relation, format_relation
from diffuser_core.envs.stacking_moves import blocks_above

SEGMENT_LIMIT = 124
"""A segment never takes more ticks; one that would is driven faster."""
RATES = np.array([3.0, 0.8, 0.85])
"""Peak speeds at speed factor 1: azimuth [rad/s], radius [m/s], height [m/s]."""
JOINT_RATE = 2.0
RAMP = 0.17
"""Time to reach the peak speed [s]."""
CLEARANCE = 0.08
"""Least gap between the carried slab and the top of the highest tower [m]."""
GRIP_GAP = 0.001
GRIP_SPREAD = 0.02
"""Standard deviation of a grip off the middle, outwards and leftwards [m]."""
PLACE_GAP = 0.003
RETREAT = 0.12
OVERLAP_TICKS = 3
"""A transit begins this many ticks before the lift ahead of it ends."""
DWELL_BEFORE_GRIP, DWELL_AFTER_GRIP, DWELL_AFTER_RELEASE, REST = 3, 2, 2, 2
NEAR = 0.04
"""A tip this close to its target's axis [m], and at least as far above it, goes there straight, not over the towers."""
_TOOL_DOWN_TOLERANCE = 0.02


def plan_segment(
    observation: ArrayLike,
    relation: Relation,
    *,
    ground: ArrayLike | None = None,
    speed: float = 1.0,
    clearance: float = CLEARANCE,
    place_offset: tuple[float, float] = (0.0, 0.0),
    grip_offset: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float64]:
    """Actions (ticks, 8) that put block `upper` on `lower` of `relation`, from the state `observation` (39,).

    The arm may hold the upper block already. ground (2,) [m]: where to put it if `lower` is the ground;
    speed: factor on all peak speeds, raised where the segment would take more than `SEGMENT_LIMIT` ticks;
    clearance [m]: see `CLEARANCE`; place_offset [m]: (x, y) added to the place where the slab is set down;
    grip_offset [m]: where the tip takes hold, outwards and leftwards of the slab's middle as seen from the base. The slab is set
    down where it should be all the same.
    ValueError if the relation cannot be carried out from this state.
    """
    state = np.asarray(observation, dtype=np.float64)
    if not speed > 0.0:
        raise ValueError(f"speed must be positive, got {speed}")
    blocks = state[7:].reshape(len(BLOCKS), 8)
    _check_feasible(blocks, relation)
    upper, lower = relation
    if lower == GROUND:
        if ground is None:
            raise ValueError(f"cannot put {format_relation(relation)}: no place was given")
        set_down = np.array([*np.asarray(ground, dtype=np.float64), SLAB_HEIGHT / 2.0])
    else:
        set_down = blocks[lower, :3] + np.array([0.0, 0.0, SLAB_HEIGHT])
    set_down[:2] += place_offset
    while True:
        actions = np.array(list(_segment_actions(state, upper, set_down, speed, clearance, grip_offset)))
        if len(actions) <= SEGMENT_LIMIT:
            return actions
        speed *= 1.03


def draw_offset(rng: np.random.Generator) -> tuple[float, float]:
    """How far (x, y) [m] a slab is set down off its place."""
    x, y = np.clip(rng.normal(0.0, 0.003, 2), -0.008, 0.008)
    return float(x), float(y)


def draw_grip(rng: np.random.Generator) -> tuple[float, float]:
    """Half of the grips are off the middle, for a planner's sometimes are: the data say how to go on."""
    outwards, leftwards = np.clip(rng.normal(0.0, GRIP_SPREAD, 2), -2.0 * GRIP_SPREAD, 2.0 * GRIP_SPREAD)
    return (float(outwards), float(leftwards)) if rng.random() < 0.5 else (0.0, 0.0)


def _check_feasible(blocks: NDArray[np.float64], relation: Relation) -> None:
    name, (upper, lower) = format_relation(relation), relation
    if upper == lower:
        raise ValueError(f"cannot put {name}: a block cannot stand on itself")
    held = int(blocks[:, 7].argmax()) if (blocks[:, 7] > 0.5).any() else None
    if held not in (None, upper):
        raise ValueError(f"cannot put {name}: the gripper already holds {BLOCKS[held]}")
    for block in {upper, lower} - {GROUND, held}:
        covering = [n for n in blocks_above(blocks[:, :3], block, held) if n != upper]
        if covering:
            raise ValueError(f"cannot put {name}: {BLOCKS[covering[0]]} lies on {BLOCKS[block]}")


def _segment_actions(
    state: NDArray[np.float64],
    upper: int,
    set_down: NDArray[np.float64],
    speed: float,
    clearance: float,
    grip_offset: tuple[float, float],
) -> Iterator[NDArray[np.float64]]:
    blocks = state[7:].reshape(len(BLOCKS), 8)
    holding = bool(blocks[upper, 7] > 0.5)
    highest = max(z for n, z in enumerate(blocks[:, 2]) if n != upper or not holding)
    cruise = float(highest) + SLAB_HEIGHT / 2.0 + SLAB_HEIGHT + clearance
    joints = state[:7]
    tip = np.array([joints[0], *tip_cylindrical(joints)[1:]])
    above = SLAB_HEIGHT / 2.0 + GRIP_GAP
    if holding:
        grip_offset, above = _grip(tip, blocks[upper, :3])
    pick = _tip_over(blocks[upper, :3], grip_offset, above)
    place = _tip_over(set_down, grip_offset, above + PLACE_GAP)

    if not _is_tool_down(joints, tip):
        tip = np.clip(tip, (-2.5, 0.5, cruise), (2.5, 0.65, max(cruise, 0.45)))
        upright = inverse_kinematics(*tip)
        for share in _trapezoid(float(np.abs(upright - joints).max()), JOINT_RATE * speed):
            yield np.append(joints + share * (upright - joints), float(holding))

    def hold(where: NDArray[np.float64], ticks: int, grip: float) -> Iterator[NDArray[np.float64]]:
        for _ in range(ticks):
            yield np.append(inverse_kinematics(*where), grip)

    def follow(path: NDArray[np.float64], grip: float) -> Iterator[NDArray[np.float64]]:
        for where in path:
            yield np.append(inverse_kinematics(*where), grip)

    def descend(start: NDArray[np.float64], end: NDArray[np.float64], grip: float) -> Iterator[NDArray[np.float64]]:
        aside = math.hypot(*((start - end)[:2] * (end[1], 1.0)))
        if not aside < NEAR or start[2] - end[2] < aside:
            over = np.array([*end[:2], cruise])
            yield from follow(_lift_and_transit(start, over, speed), grip)
            start = over
        yield from follow(_straight(start, end, speed), grip)

    if not holding:
        yield from descend(tip, pick, 0.0)
        yield from hold(pick, DWELL_BEFORE_GRIP, 0.0)
        yield from hold(pick, DWELL_AFTER_GRIP, 1.0)
        tip = pick
    yield from descend(tip, place, 1.0)
    retreat = np.array([*place[:2], place[2] + RETREAT])
    yield from hold(place, 1, 1.0)
    yield from hold(place, DWELL_AFTER_RELEASE, 0.0)
    yield from follow(_straight(place, retreat, speed), 0.0)
    yield from hold(retreat, REST, 0.0)


def _grip(tip: NDArray[np.float64], position: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """Where a tip (azimuth, radius, height) holds a slab at `position` (3,): outwards, leftwards of its middle; how far above."""
    azimuth, radius, height = tip
    c, s = math.cos(azimuth), math.sin(azimuth)
    x, y, z = position
    return (radius - (c * x + s * y), s * x - c * y), height - z


def _is_tool_down(joints: NDArray[np.float64], tip: NDArray[np.float64]) -> bool:
    """Whether the closed-form inverse kinematics reaches (nearly) these joints at their own tip position."""
    if forward_kinematics(joints)[1][2, 2] > -0.99:
        return False
    try:
        return bool(np.abs(inverse_kinematics(*tip) - joints).max() < _TOOL_DOWN_TOLERANCE)
    except ValueError:
        return False


def _tip_over(position: NDArray[np.float64], grip: tuple[float, float], above: float) -> NDArray[np.float64]:
    """Azimuth, radius and height (3,) of a tip that holds, `grip` off its middle, a slab at `position` (3,), from `above` it.

    The slab turns with the arm, so in the tip's own directions (outwards, leftwards) its middle is always at minus `grip`.
    """
    x, y, z = position
    outwards, leftwards = grip
    radius = outwards + math.sqrt(max(math.hypot(x, y) ** 2 - leftwards**2, 0.0))
    return np.array([math.atan2(y, x) + math.atan2(leftwards, radius - outwards), radius, z + above])


def _duration(distance: float, rate: float) -> float:
    """Time [s] over `distance` with a trapezoidal profile of peak `rate`, or a triangular one if it is short."""
    return distance / rate + RAMP if distance >= rate * RAMP else 2.0 * math.sqrt(distance * RAMP / rate)


def _shares(ticks: int) -> NDArray[np.float64]:
    """Share of the way covered after each of `ticks` ticks, by a trapezoid of speed with ramps of at most `RAMP`."""
    if ticks == 0:
        return np.zeros(0)
    end = ticks * TICK
    ramp = min(RAMP, end / 2.0)
    time = np.arange(1, ticks + 1) * TICK
    peak = 1.0 / (end - ramp)
    cruise = peak * (time - ramp / 2.0)
    return np.where(
        time < ramp,
        peak * time**2 / (2.0 * ramp),
        np.where(time > end - ramp, 1.0 - peak * np.maximum(end - time, 0.0) ** 2 / (2.0 * ramp), cruise),
    )


def _ticks(distances: NDArray[np.float64], rates: NDArray[np.float64]) -> int:
    longest = max(_duration(float(d), float(r)) for d, r in zip(np.abs(distances), rates, strict=True))
    return math.ceil(longest / TICK - 1e-9)


def _trapezoid(distance: float, rate: float) -> NDArray[np.float64]:
    return _shares(_ticks(np.array([distance]), np.array([rate])))


def _straight(start: NDArray[np.float64], end: NDArray[np.float64], speed: float) -> NDArray[np.float64]:
    """Tip targets (ticks, 3) from start (excluded) to end, all coordinates in step."""
    return start + _shares(_ticks(end - start, RATES * speed))[:, None] * (end - start)


def _lift_and_transit(start: NDArray[np.float64], end: NDArray[np.float64], speed: float) -> NDArray[np.float64]:
    """Tip targets (ticks, 3): the height first rises to that of `end`, then azimuth and radius follow.

    The two overlap by `OVERLAP_TICKS`; where the start is higher than the end they begin together.
    """
    lift = _shares(_ticks((end - start)[2:], RATES[2:] * speed))
    transit = _shares(_ticks((end - start)[:2], RATES[:2] * speed))
    wait = max(0, len(lift) - OVERLAP_TICKS) if end[2] > start[2] else 0
    ticks = max(len(lift), wait + len(transit))
    share = np.ones((ticks, 3))
    share[: len(lift), 2] = lift
    share[:wait, :2] = 0.0
    share[wait : wait + len(transit), :2] = transit[:, None]
    return start + share * (end - start)
