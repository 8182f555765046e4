"""Which block has to be moved next so that an arrangement of blocks comes about. Pure numpy, no simulator, no torch.

A move is a relation `(upper, lower)`, 'put upper on lower'; `lower` may be `GROUND`. The demonstrator, the planner's policy and
the search for the least number of moves share these rules.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from diffuser_core.envs.stacking import GROUND, SLAB_HEIGHT, Relation

__all__ = ['blocks_above', 'free_place', 'next_move', 'room_at']

OVERLAP = 0.18
"""A block lies on another, squarely or not, if their centres are nearer than this in x and in y [m] ..."""
HIGHER = SLAB_HEIGHT / 2.0
"""... and it is higher by more than this [m]."""
RADIUS = 0.6
"""Blocks are put down on this circle around the arm [m] ..."""
AZIMUTHS = np.arange(-2.4, 2.41, 0.05)
"""... at one of these azimuths [rad] ..."""
ROOM = 0.32
"""... where no other block's centre is nearer than this [m]: slabs of any yaw then pass each other."""


def blocks_above(centres: NDArray[np.float64], block: int, held: int | None = None) -> list[int]:
    """Blocks that lie over `block`, the highest first; centres (blocks, 3) [m]. The one that is `held` does not count."""
    offset = centres - centres[block]
    over = (np.abs(offset[:, :2]) < OVERLAP).all(axis=1) & (offset[:, 2] > HIGHER)
    return sorted((int(n) for n in np.flatnonzero(over) if n != held), key=lambda n: -centres[n, 2])


def next_move(wanted: Sequence[Relation], centres: NDArray[np.float64], standing: Collection[Relation],
              held: int | None = None) -> Relation | None:
    """The move that brings `wanted`, in building order, nearer; None if all of them stand and nothing is held.

    centres (blocks, 3) [m]; standing: the relations that stand. Blocks in the way go straight to where they are wanted if that
    can be done now, else to the ground, and so does a `held` block that nothing is wanted of yet.
    """
    pending = [pair for pair in wanted if pair not in standing]

    def in_the_way(upper: int, lower: int) -> set[int]:
        """What has to go before `upper` can be put on `lower` for good: what lies on them, or on a block below that must move."""
        below = [n for n in range(len(centres)) if lower in blocks_above(centres, n, held) and any(n in pair for pair in pending)]
        return {n for block in (upper, lower, *below) for n in blocks_above(centres, block, held)} - {upper}

    def direct(block: int) -> Relation | None:
        """Where a block that nothing lies on is wanted, if that can be done at once."""
        for upper, lower in pending:
            if upper == block:
                rests = not any(pair[0] == lower for pair in pending)
                return (upper, lower) if rests and not in_the_way(upper, lower) else None
        return None

    if held is not None:
        return direct(held) or (held, GROUND)
    for upper, lower in pending:
        obstacles = in_the_way(upper, lower)
        if not obstacles:
            return upper, lower
        highest = max((n for block in obstacles for n in (block, *blocks_above(centres, block))), key=lambda n: centres[n, 2])
        return direct(highest) or (highest, GROUND)
    return None


def room_at(place: NDArray[np.float64], centres: NDArray[np.float64], block: int) -> float:
    """Distance [m] of a place (2,) from the nearest centre (blocks, 3) of a block other than `block`, seen from above."""
    others = np.delete(centres[:, :2], block, axis=0)
    return float(np.linalg.norm(others - place, axis=1).min())


def free_place(centres: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Where to put `block` down on the ground: the place (2,) [m] with room that takes the shortest turn of the arm.

    If there is room nowhere, the place with the most.
    """
    places = RADIUS * np.stack([np.cos(AZIMUTHS), np.sin(AZIMUTHS)], axis=1)
    room = np.array([room_at(place, centres, block) for place in places])
    if room.max() < ROOM:
        return places[int(room.argmax())]
    turn = np.abs(AZIMUTHS - np.arctan2(centres[block, 1], centres[block, 0]))
    return places[int(np.where(room >= ROOM, turn, np.inf).argmin())]
