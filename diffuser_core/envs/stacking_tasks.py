"""The evaluation tasks of block stacking: what a seeded episode starts from, what it asks for, and what its end scores.

Loads neither torch nor a simulator. Seeds below 10,000 are for evaluation; demonstrations are made from higher ones. The tasks
are those of Table 3 of the paper:

unconditional  a tower as tall as possible, from blocks on the ground
conditional    a full tower in an order drawn from the seed, from blocks on the ground
rearrangement  one to three relations, from an arrangement in which something stands already
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffuser_core.envs.stacking import (
    AZIMUTH_RANGE,
    AZIMUTH_SEPARATION,
    BLOCKS,
    CIRCLE_RADIUS,
    GROUND,
    SLAB_HEIGHT,
    Relation,
    conditional_score,
    format_relation,
    rearrangement_score,
    standing_relations,
    tower_relations,
    unconditional_score,
)
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_moves import free_place, next_move

__all__ = ['TASKS', 'StackingTask', 'draw_task', 'moves_to']

TASKS = ('unconditional', 'conditional', 'rearrangement')
MOST_MOVES = 3
"""A rearrangement can be made in this many moves: an episode leaves time for no more."""
STACKS = ((2, 1, 1), (2, 2), (3, 1))
"""Heights of the stacks that a rearrangement starts from; each is as likely as the others."""
LEVEL_OFFSET, LARGEST_OFFSET = 0.015, 0.04
"""Standard deviation of a block from the one below it, and the bound at which it is cut, in x and in y [m]."""
_STREAM = 0x57AC
"""Keeps the draws of a rearrangement apart from those of other users of the same seed."""


@dataclass(frozen=True)
class StackingTask:
    """One episode of an evaluation task.

    name   one of `TASKS`
    goal   what the policy is asked for
    reset  options of the environment's reset; None: its own layout of the seed
    """

    name: str
    goal: StackingGoal
    reset: dict[str, list[list[float]]] | None = None

    def score(self, standing: Iterable[Relation]) -> float:
        """0 to 100 for the relations that stand, by this task's rule."""
        if self.name == 'unconditional':
            return unconditional_score(standing)
        if self.name == 'conditional':
            return conditional_score(standing, [self.goal.relations[0][1], *(upper for upper, _ in self.goal.relations)])
        return rearrangement_score(standing, self.goal.relations)

    def describe(self) -> str:
        """The goal for people."""
        return ', '.join(map(format_relation, self.goal.relations)) or 'a tower as tall as possible'


def draw_task(task: str, seed: int) -> StackingTask:
    """The episode of `task` with this seed, always the same one; ValueError for an unknown task or a negative seed.

    Of the rearrangements of the seeds 0 to 999, 91 % need something taken apart that stands at the start.
    """
    if task not in TASKS:
        raise ValueError(f'unknown task {task!r}; the evaluation tasks are {", ".join(TASKS)}')
    if seed < 0:
        raise ValueError(f'the seed must be 0 or greater, got {seed}')
    if task == 'unconditional':
        return StackingTask(task, StackingGoal('stack'))
    if task == 'conditional':
        return StackingTask(task, _goal(tower_relations(np.random.default_rng(seed).permutation(len(BLOCKS)).tolist())))
    rng = np.random.default_rng([seed, _STREAM])
    blocks = _draw_arrangement(rng)
    standing = _standing(blocks[:, :3])
    while True:
        pairs = tower_relations(rng.permutation(len(BLOCKS)).tolist())
        chosen = rng.choice(len(pairs), size=rng.integers(1, len(pairs) + 1), replace=False)
        goal = _goal([pairs[n] for n in sorted(chosen)])
        if standing.isdisjoint(goal.relations) and moves_to(goal.relations, blocks[:, :3]) is not None:
            return StackingTask(task, goal, {'blocks': blocks.tolist()})


def moves_to(wanted: Sequence[Relation], centres: NDArray[np.float64], most: int = MOST_MOVES) -> list[Relation] | None:
    """The moves that make `wanted`, in building order, stand, each carried out without error; None if `most` are too few.

    centres (blocks, 3) [m] of an arrangement at rest.
    """
    moves: list[Relation] = []
    centres = centres.copy()
    while (move := next_move(wanted, centres, _standing(centres))) is not None:
        if len(moves) == most:
            return None
        upper, lower = move
        centres[upper] = (*free_place(centres, upper), SLAB_HEIGHT / 2.0) if lower == GROUND \
            else centres[lower] + (0.0, 0.0, SLAB_HEIGHT)
        moves.append(move)
    return moves


def _goal(pairs: Iterable[Relation]) -> StackingGoal:
    return StackingGoal.parse('relations', [format_relation(pair) for pair in pairs])


def _standing(centres: NDArray[np.float64]) -> frozenset[Relation]:
    return standing_relations(centres, np.zeros(len(centres)), np.zeros(len(centres)))


def _draw_arrangement(rng: np.random.Generator) -> NDArray[np.float64]:
    """Blocks (4, 4), rows x, y, z [m] and yaw [rad], in stacks of one of `STACKS`; their feet are on the blocks' circle."""
    heights = STACKS[int(rng.integers(len(STACKS)))]
    low, high = AZIMUTH_RANGE
    azimuths = np.sort(rng.uniform(low, high - (len(heights) - 1) * AZIMUTH_SEPARATION, len(heights)))
    azimuths = rng.permutation(azimuths + AZIMUTH_SEPARATION * np.arange(len(heights)))
    order = rng.permutation(len(BLOCKS)).tolist()
    blocks = np.zeros((len(BLOCKS), 4))
    for height, azimuth in zip(heights, azimuths):
        place = CIRCLE_RADIUS * np.array([math.cos(azimuth), math.sin(azimuth)])
        for level in range(height):
            if level:
                place = place + rng.normal(0.0, LEVEL_OFFSET, 2).clip(-LARGEST_OFFSET, LARGEST_OFFSET)
            blocks[order.pop()] = [*place, SLAB_HEIGHT * (level + 0.5), rng.uniform(-math.pi, math.pi)]
    return blocks
