"""One demonstration: a start, some moves, and what goes wrong on the way.

Starts are varied (towers already standing, a block already held, the arm anywhere), moves build a tower in a drawn order or
are any possible ones, and in every third move something happens: the block to be picked up or the one to be built on is
displaced, or the gripper lets go. Then the demonstrator goes on from where it finds itself. What led up to the mishap is not
recorded, only what was made of it, so every recorded segment ends with its move done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffuser_core.envs.kuka_kinematics import inverse_kinematics
from diffuser_core.envs.stacking import BLOCKS, GROUND, SLAB_HEIGHT, Relation, tower_relations
from diffuser_core.envs.stacking_moves import ROOM, blocks_above, free_place, next_move, room_at
from diffuser_core.experts.pick_and_place import CLEARANCE, GRIP_GAP, draw_grip, draw_offset, plan_segment

if TYPE_CHECKING:
    from diffuser_core.envs.kuka_stack import KukaStackEnv

__all__ = ['RECIPE', 'Demonstration', 'Run', 'build', 'draw_layout', 'record']

RECIPE = 3
"""Number of the way demonstrations are drawn; data of different recipes are never mixed."""
MOVES = 3
"""A demonstration has at most so many moves."""
RADIUS_RANGE = (0.52, 0.68)
AZIMUTH_RANGE = (-2.5, 2.5)
SEPARATION = 2.0 * 0.6 * math.sin(0.55 / 2.0)
"""Least distance of the centres of slabs on the ground [m]: that of 0.55 rad on the circle of 0.6 m."""
TIP_RANGES = ((-2.6, 2.6), (0.45, 0.68), (0.12, 0.55))
"""Azimuth [rad], radius [m] and height [m] of the tip at the start."""
SPEED_RANGE = (0.8, 1.2)
STACKS = (((1, 1, 1, 1), 0.5), ((2, 1, 1), 0.25), ((2, 2), 0.1), ((3, 1), 0.1), ((4,), 0.05))
"""Heights of the stacks at the start, and how often."""
STACK_OFFSET = 0.015
HOLDING_SHARE = 0.15
TOWER_SHARE = 0.6
"""Demonstrations that build a tower; the others make any possible moves."""
GROUND_SHARE = 0.3
"""Of those moves, the ones to the ground."""
MISHAP_SHARE = 0.33
SHIFT, SHIFT_ON_STACK = (0.02, 0.15), (0.01, 0.04)
"""How far a block is displaced [m]: on the ground, and on another block."""
STRAYED = 0.02
"""A move that shifts another block by more than this [m] is not recorded."""


@dataclass(frozen=True)
class Run:
    """Segments recorded without a break.

    observations (ticks + 1, 39), actions (ticks, 8) and rewards (ticks,) as in `KukaStackEnv`; segment (ticks,) the index into
    `relations` of the segment that each action belongs to.
    """

    observations: NDArray[np.float64]
    actions: NDArray[np.float64]
    rewards: NDArray[np.float64]
    segment: NDArray[np.int64]
    relations: tuple[Relation, ...]


@dataclass(frozen=True)
class Demonstration:
    """What came of one seed: the recorded runs, how many mishaps there were, and how many moves did not succeed."""

    runs: tuple[Run, ...]
    mishaps: int
    failed: int


@dataclass
class _Recorder:
    """Steps the environment and keeps what happened, run by run."""

    env: KukaStackEnv
    runs: list[Run] = field(default_factory=list)
    _rows: list[tuple[NDArray[np.float64], NDArray[np.float64], float, int]] = field(default_factory=list)
    _relations: list[Relation] = field(default_factory=list)

    def carry_out(self, relation: Relation, actions: NDArray[np.float64]) -> None:
        """Record a segment, which `confirm` keeps and `abandon` drops."""
        before = self.env.observe()
        for action in actions:
            after, reward, *_ = self.env.step(action)
            self._rows.append((before, action, reward, len(self._relations)))
            before = after
        self._relations.append(relation)

    def abandon(self) -> None:
        """Drop the last segment and end the run before it."""
        self._relations.pop()
        first = next((n for n, row in enumerate(self._rows) if row[3] == len(self._relations)), len(self._rows))
        last = self._rows[first][0] if first < len(self._rows) else self.env.observe()
        del self._rows[first:]
        self._finish(last)

    def finish(self) -> None:
        """End the run at the present state."""
        self._finish(self.env.observe())

    def _finish(self, last: NDArray[np.float64]) -> None:
        if self._rows:
            observations, actions, rewards, segment = zip(*self._rows)
            self.runs.append(Run(np.array([*observations, last]), np.array(actions), np.array(rewards, dtype=np.float64),
                                 np.array(segment, dtype=np.int64), tuple(self._relations)))
        self._rows, self._relations = [], []


def record(env: KukaStackEnv, seed: int) -> Demonstration:
    """The demonstration of one seed: start, moves, mishaps, speed and the demonstrator's own variation."""
    rng = np.random.default_rng([RECIPE, seed])
    _start(env, seed, rng)
    goal = tower_relations(rng.permutation(len(BLOCKS)).tolist()) if rng.random() < TOWER_SHARE else ()
    return _demonstrate(env, goal, rng.uniform(*SPEED_RANGE), rng, MISHAP_SHARE)


def build(env: KukaStackEnv, order: Sequence[int], speed: float, rng: np.random.Generator) -> Demonstration:
    """Build the tower `order` (block indices, bottom to top) from the state the environment is in, with nothing going wrong."""
    return _demonstrate(env, tower_relations(order), speed, rng, 0.0)


def _demonstrate(env: KukaStackEnv, goal: Sequence[Relation], speed: float, rng: np.random.Generator,
                 mishap_share: float) -> Demonstration:
    recorder = _Recorder(env)
    done = failed = mishaps = 0
    while done < MOVES and failed < 2:
        state = env.observe()
        centres, held = _blocks(state)
        move = next_move(goal, centres, env.relations(), held) if goal else _any_move(centres, env.relations(), held, rng)
        if move is None:
            break
        ground = _ground_place(centres, move[0], rng) if move[1] == GROUND else None
        try:
            actions = plan_segment(state, move, ground=ground, speed=speed, clearance=CLEARANCE + rng.uniform(0.0, 0.03),
                                   place_offset=draw_offset(rng), grip_offset=draw_grip(rng))
        except ValueError:  # a mishap may leave a block where the arm cannot reach it: there is nothing to show then
            failed += 1
            break
        if mishaps < 2 and rng.random() < mishap_share and _mishap(recorder, move, actions, rng):
            mishaps += 1
            if not _flat(env):
                break
            continue
        recorder.carry_out(move, actions)
        if _succeeded(env, move, centres, ground):
            done += 1
        else:
            recorder.abandon()
            failed += 1
            if not _flat(env):
                break
    recorder.finish()
    return Demonstration(tuple(recorder.runs), mishaps, failed)


def _blocks(state: NDArray[np.float64]) -> tuple[NDArray[np.float64], int | None]:
    """Centres (4, 3) and the block that is held."""
    blocks = state[7:].reshape(len(BLOCKS), 8)
    return blocks[:, :3].copy(), int(blocks[:, 7].argmax()) if (blocks[:, 7] > 0.5).any() else None


def _flat(env: KukaStackEnv) -> bool:
    """Whether no slab is tilted."""
    quaternions = env.observe()[7:].reshape(len(BLOCKS), 8)[:, 3:7]
    return bool((np.square(quaternions[:, :2]).sum(axis=1) < 1e-3).all())


def _succeeded(env: KukaStackEnv, move: Relation, before: NDArray[np.float64], ground: NDArray[np.float64] | None) -> bool:
    """Whether the move is done and no other block has strayed."""
    (upper, _), (after, held) = move, _blocks(env.observe())
    others = np.arange(len(BLOCKS)) != upper
    if held is not None or np.abs(after - before)[others].max() > STRAYED:
        return False
    if ground is None:
        return move in env.relations()
    return bool(np.abs(after[upper] - [*ground, SLAB_HEIGHT / 2.0]).max() < STRAYED)


def _any_move(centres: NDArray[np.float64], standing: frozenset[Relation], held: int | None,
              rng: np.random.Generator) -> Relation:
    """A move that is possible now: of the held block, or of any that nothing lies on."""
    blocks = range(len(BLOCKS))
    clear = [n for n in blocks if not blocks_above(centres, n, held)]
    upper = held if held is not None else int(rng.choice(clear))
    lowers = [n for n in clear if n != upper and (upper, n) not in standing]
    if not lowers or rng.random() < GROUND_SHARE:
        return upper, GROUND
    return upper, int(rng.choice(lowers))


def _ground_place(centres: NDArray[np.float64], block: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A place (2,) on the ground with room [m]."""
    for _ in range(50):
        azimuth, radius = rng.uniform(*AZIMUTH_RANGE), rng.uniform(*RADIUS_RANGE)
        place = radius * np.array([math.cos(azimuth), math.sin(azimuth)])
        if room_at(place, centres, block) >= ROOM:
            return place
    return free_place(centres, block)


def _mishap(recorder: _Recorder, move: Relation, actions: NDArray[np.float64], rng: np.random.Generator) -> bool:
    """Carry out part of a segment, unrecorded, until something goes wrong; False, and nothing done, if nothing can."""
    env, (upper, lower) = recorder.env, move
    centres, held = _blocks(env.observe())
    closed = np.flatnonzero(actions[:, 7] > 0.5)
    grip, release = int(closed[0]), int(closed[-1])
    kinds = ['drop'] if release - grip > 12 else []
    kinds += ['upper'] if held is None else []
    kinds += ['lower'] if lower != GROUND and not blocks_above(centres, lower, held) else []
    if not kinds:
        return False
    kind = str(rng.choice(kinds))
    shift = np.zeros(2)
    if kind != 'drop':
        moved = upper if kind == 'upper' else lower
        found = _draw_shift(centres, moved, rng)
        if found is None:
            return False
        shift = found
    cut = int(rng.integers(grip + 4, release - 2) if kind == 'drop' else rng.integers(0, grip if kind == 'upper' else release))
    recorder.carry_out(move, actions[:cut])
    recorder.abandon()
    if kind == 'drop':
        rest = np.append(actions[cut - 1, :7], 0.0)
        for _ in range(int(rng.integers(8, 14))):
            env.step(rest)
    else:
        env.displace(moved, *shift)
    return True


def _draw_shift(centres: NDArray[np.float64], block: int, rng: np.random.Generator) -> NDArray[np.float64] | None:
    """By how much (2,) [m] a block is displaced so that it stays on what it stands on and in reach; None if it cannot be."""
    grounded = centres[block, 2] < SLAB_HEIGHT
    for _ in range(20):
        direction, size = rng.uniform(-math.pi, math.pi), rng.uniform(*(SHIFT if grounded else SHIFT_ON_STACK))
        shift = size * np.array([math.cos(direction), math.sin(direction)])
        place = centres[block, :2] + shift
        in_reach = 0.48 < np.hypot(*place) < 0.70 and abs(math.atan2(place[1], place[0])) < 2.6
        if in_reach and (not grounded or room_at(place, centres, block) > ROOM):
            return shift
    return None


def _start(env: KukaStackEnv, seed: int, rng: np.random.Generator) -> None:
    """Put arm and blocks where the demonstration begins."""
    heights = STACKS[int(rng.choice(len(STACKS), p=[share for _, share in STACKS]))][0]
    feet = draw_layout(rng, len(heights))
    blocks = np.zeros((len(BLOCKS), 4))
    order = rng.permutation(len(BLOCKS)).tolist()
    tops = []
    for height, foot in zip(heights, feet):
        below = foot
        for level in range(height):
            block = order.pop()
            offset = np.clip(rng.normal(0.0, STACK_OFFSET, 2), -0.04, 0.04) if level else np.zeros(2)
            blocks[block] = [*(below[:2] + offset), SLAB_HEIGHT * (level + 0.5), rng.uniform(-math.pi, math.pi)]
            below = blocks[block]
        tops.append(block)
    held = int(rng.choice(tops)) if rng.random() < HOLDING_SHARE else None
    grip = draw_grip(rng) if held is not None else (0.0, 0.0)
    others = np.arange(len(BLOCKS)) != (-1 if held is None else held)
    while True:
        tip = np.array([rng.uniform(low, high) for low, high in TIP_RANGES])
        place = tip[1] * np.array([math.cos(tip[0]), math.sin(tip[0])])
        bottom = tip[2] - (0.0 if held is None else SLAB_HEIGHT)
        near = np.linalg.norm(blocks[others, :2] - place, axis=1) < (0.25 if held is None else 0.4)
        if bottom > 0.03 and (blocks[others, 2][near] + SLAB_HEIGHT / 2.0 + 0.03 < bottom).all():
            break
    joints = inverse_kinematics(*tip)
    env.reset(seed=seed, options={'joints': joints, 'blocks': blocks})
    if held is not None:
        c, s = math.cos(tip[0]), math.sin(tip[0])
        state = env.observe()
        row = state[7:].reshape(len(BLOCKS), 8)[held]
        row[:3] = (c * (tip[1] - grip[0]) + s * grip[1], s * (tip[1] - grip[0]) - c * grip[1],
                   tip[2] - SLAB_HEIGHT / 2.0 - GRIP_GAP)
        row[7] = 1.0
        env.set_state(state)


def draw_layout(rng: np.random.Generator, count: int = len(BLOCKS)) -> NDArray[np.float64]:
    """Slabs on the ground (count, 4), rows x, y, z [m], yaw [rad]; drawn again until all are `SEPARATION` apart."""
    while True:
        azimuth, radius = rng.uniform(*AZIMUTH_RANGE, count), rng.uniform(*RADIUS_RANGE, count)
        centres = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth)], axis=1)
        distances = np.linalg.norm(centres[:, None] - centres[None, :], axis=-1)
        if (distances[np.triu_indices(count, 1)] >= SEPARATION).all():
            yaw = rng.uniform(-math.pi, math.pi, count)
            return np.column_stack([centres, np.full(count, SLAB_HEIGHT / 2.0), yaw])
