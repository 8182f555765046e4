"""Scripted demonstrator for block stacking: puts one slab on another, and builds towers that way.

A *segment* is 'put block i on block j'. Its motion is planned in cylindrical coordinates of the tip (azimuth [rad],
radius [m], height [m]) and turned into joint targets by the closed-form inverse kinematics at every tick: lift to a
clearance height, transit, straight descent, grip, lift, transit, straight descent, release, short retreat, rest. All
profiles are trapezoidal in speed. Since azimuth is joint 1, which cannot pass +-2.97 rad, transits never wrap around.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffuser_core.envs.kuka_kinematics import forward_kinematics, inverse_kinematics, tip_cylindrical
from diffuser_core.envs.stacking import (
    BLOCKS,
    HORIZONTAL_TOLERANCE,
    SLAB_HEIGHT,
    TICK,
    Relation,
    format_relation,
    tower_relations,
)

if TYPE_CHECKING:
    from diffuser_core.envs.kuka_stack import KukaStackEnv

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
_TOOL_DOWN_TOLERANCE = 0.02


@dataclass(frozen=True)
class Demonstration:
    """One recorded tower.

    observations (ticks + 1, 39), actions (ticks, 8) and rewards (ticks,) as in `KukaStackEnv`; segment (ticks,) the
    index into `relations` of the segment each action belongs to; success: all relations of the tower stand at the end.
    """

    observations: NDArray[np.float64]
    actions: NDArray[np.float64]
    rewards: NDArray[np.float64]
    segment: NDArray[np.int64]
    relations: tuple[Relation, ...]
    success: bool


def plan_segment(
    observation: ArrayLike,
    relation: Relation,
    *,
    speed: float = 1.0,
    clearance: float = CLEARANCE,
    place_offset: tuple[float, float] = (0.0, 0.0),
    grip_offset: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float64]:
    """Actions (ticks, 8) that put block `upper` on block `lower` of `relation`, from the state `observation` (39,).

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
    while True:
        actions = np.array(list(_segment_actions(state, blocks, relation, speed, clearance, place_offset, grip_offset)))
        if len(actions) <= SEGMENT_LIMIT:
            return actions
        speed *= 1.03


def demonstrate(env: KukaStackEnv, order: Sequence[int], speed: float, rng: np.random.Generator) -> Demonstration:
    """Build the tower `order` (block indices, bottom to top) from the state the environment is in now.

    Relations that already stand at the foot of the tower are not done again. speed: see `plan_segment`; rng draws the
    clearance and where exactly slabs are set down. Steps the environment and leaves it in the final state.
    """
    tower = tower_relations(order)
    standing = env.relations()
    done = 0
    while done < len(tower) and tower[done] in standing:
        done += 1
    observations = [env.observe()]
    actions: list[NDArray[np.float64]] = []
    rewards: list[float] = []
    segment: list[int] = []
    for index, relation in enumerate(tower[done:]):
        planned = plan_segment(
            observations[-1],
            relation,
            speed=speed,
            clearance=CLEARANCE + rng.uniform(0.0, 0.03),
            place_offset=_draw_offset(rng),
            grip_offset=_draw_grip(rng),
        )
        for action in planned:
            observation, reward, *_ = env.step(action)
            observations.append(observation)
            rewards.append(reward)
        actions.extend(planned)
        segment.extend([index] * len(planned))
    return Demonstration(
        observations=np.array(observations),
        actions=np.array(actions).reshape(-1, 8),
        rewards=np.array(rewards, dtype=np.float64),
        segment=np.array(segment, dtype=np.int64),
        relations=tower[done:],
        success=set(tower) <= env.relations(),
    )


def _draw_offset(rng: np.random.Generator) -> tuple[float, float]:
    x, y = np.clip(rng.normal(0.0, 0.003, 2), -0.008, 0.008)
    return float(x), float(y)


def _draw_grip(rng: np.random.Generator) -> tuple[float, float]:
    """Half of the grips are off the middle, for a planner's sometimes are: the data say how to go on."""
    outwards, leftwards = np.clip(rng.normal(0.0, GRIP_SPREAD, 2), -2.0 * GRIP_SPREAD, 2.0 * GRIP_SPREAD)
    return (float(outwards), float(leftwards)) if rng.random() < 0.5 else (0.0, 0.0)


def _check_feasible(blocks: NDArray[np.float64], relation: Relation) -> None:
    name = format_relation(relation)
    if relation[0] == relation[1]:
        raise ValueError(f"cannot put {name}: a block cannot stand on itself")
    if (blocks[:, 7] > 0.5).any():
        raise ValueError(f"cannot put {name}: the gripper already holds {BLOCKS[int(blocks[:, 7].argmax())]}")
    for block in relation:
        offset = blocks[:, :3] - blocks[block, :3]
        covering = (np.abs(offset[:, :2]) < HORIZONTAL_TOLERANCE).all(axis=1) & (offset[:, 2] > SLAB_HEIGHT / 2.0)
        covering[relation[0]] = False
        if covering.any():
            raise ValueError(f"cannot put {name}: {BLOCKS[int(covering.argmax())]} lies on {BLOCKS[block]}")


def _segment_actions(
    state: NDArray[np.float64],
    blocks: NDArray[np.float64],
    relation: Relation,
    speed: float,
    clearance: float,
    place_offset: tuple[float, float],
    grip_offset: tuple[float, float],
) -> Iterator[NDArray[np.float64]]:
    upper, lower = relation
    cruise = float(blocks[:, 2].max()) + SLAB_HEIGHT / 2.0 + SLAB_HEIGHT + clearance
    pick = _tip_over(blocks[upper, :3], grip_offset, above=SLAB_HEIGHT / 2.0 + GRIP_GAP)
    set_down = blocks[lower, :3] + np.array([*place_offset, 0.0])
    place = _tip_over(set_down, grip_offset, above=1.5 * SLAB_HEIGHT + GRIP_GAP + PLACE_GAP)

    joints = state[:7]
    tip = np.array([joints[0], *tip_cylindrical(joints)[1:]])
    if not _is_tool_down(joints, tip):
        tip = np.clip(tip, (-2.5, 0.5, cruise), (2.5, 0.65, max(cruise, 0.45)))
        upright = inverse_kinematics(*tip)
        for share in _trapezoid(float(np.abs(upright - joints).max()), JOINT_RATE * speed):
            yield np.append(joints + share * (upright - joints), 0.0)

    def hold(where: NDArray[np.float64], ticks: int, grip: float) -> Iterator[NDArray[np.float64]]:
        for _ in range(ticks):
            yield np.append(inverse_kinematics(*where), grip)

    def follow(path: NDArray[np.float64], grip: float) -> Iterator[NDArray[np.float64]]:
        for where in path:
            yield np.append(inverse_kinematics(*where), grip)

    above_pick, above_place = (np.array([*where[:2], cruise]) for where in (pick, place))
    retreat = np.array([*place[:2], place[2] + RETREAT])
    yield from follow(_lift_and_transit(tip, above_pick, speed), 0.0)
    yield from follow(_straight(above_pick, pick, speed), 0.0)
    yield from hold(pick, DWELL_BEFORE_GRIP, 0.0)
    yield from hold(pick, DWELL_AFTER_GRIP, 1.0)
    yield from follow(_lift_and_transit(pick, above_place, speed), 1.0)
    yield from follow(_straight(above_place, place, speed), 1.0)
    yield from hold(place, 1, 1.0)
    yield from hold(place, DWELL_AFTER_RELEASE, 0.0)
    yield from follow(_straight(place, retreat, speed), 0.0)
    yield from hold(retreat, REST, 0.0)


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
