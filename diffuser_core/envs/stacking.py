"""Rules of the block-stacking tasks: which slab stands on which, and what a final state scores.

Pure numpy, no simulator: the same functions judge a simulated state, a logged one or a planned one. Blocks are named by
their index in `BLOCKS`; a relation is a pair `(upper, lower)` of such indices and is written 'red on green'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES

BLOCKS: tuple[str, ...] = ("red", "green", "blue", "yellow")
CHANNELS: tuple[str, ...] = JOINT_NAMES + tuple(
    f"{block}.{field}" for block in BLOCKS for field in ("x", "y", "z", "qx", "qy", "qz", "qw", "attached")
)
"""Names of the 39 numbers of a state, in order: joint angles [rad], then position [m], quaternion and 0/1 a block."""
UNITS: tuple[str, ...] = ("rad",) * len(JOINT_NAMES) + ("m", "m", "m", "1", "1", "1", "1", "1") * len(BLOCKS)
"""Unit of each channel; '1' marks numbers without one (quaternions, the attached flag)."""
TICK: float = 1.0 / 24.0
"""Time between two states or actions [s]."""
SLAB_SIZE: tuple[float, float, float] = (0.2, 0.2, 0.06)
"""Edge lengths of every slab [m]."""
SLAB_HEIGHT: float = SLAB_SIZE[2]
CIRCLE_RADIUS: float = 0.6
"""An episode's blocks start on this circle around the arm [m] ..."""
AZIMUTH_RANGE: tuple[float, float] = (-2.5, 2.5)
"""... within these azimuths [rad] ..."""
AZIMUTH_SEPARATION: float = 0.55
"""... of which two are at least this far apart [rad]."""
HORIZONTAL_TOLERANCE: float = 0.10
"""A slab stands on another only if both horizontal centre offsets are smaller than this [m]."""
VERTICAL_TOLERANCE: float = 0.01
"""Allowed difference between the height of the centres and one slab height [m]."""
REST_SPEED: float = 0.02
"""A slab is at rest below this speed [m/s]."""

GROUND = -1
"""Stands for the ground where a move, not a goal, names a lower block."""

Relation = tuple[int, int]
_KNOWN = ", ".join(BLOCKS)


def parse_relation(text: str) -> Relation:
    """Turn 'red on green' into `(upper, lower)` indices; ValueError names what is wrong with the text."""
    words = text.split()
    if len(words) != 3 or words[1] != "on":
        raise ValueError(f"relation {text!r} is not of the form '<block> on <block>', for example 'red on green'")
    for name in (words[0], words[2]):
        if name not in BLOCKS:
            raise ValueError(f"relation {text!r} names the unknown block {name!r}; known blocks are {_KNOWN}")
    if words[0] == words[2]:
        raise ValueError(f"relation {text!r} puts a block on itself")
    return BLOCKS.index(words[0]), BLOCKS.index(words[2])


def format_relation(relation: Relation) -> str:
    """Turn `(upper, lower)` indices into 'red on green', or 'red on ground' for a move to the ground."""
    upper, lower = relation
    for block in (upper,) if lower == GROUND else (upper, lower):
        if not 0 <= block < len(BLOCKS):
            raise ValueError(f"relation {relation!r} names block {block}; blocks 0 to {len(BLOCKS) - 1} are {_KNOWN}")
    return f"{BLOCKS[upper]} on {'ground' if lower == GROUND else BLOCKS[lower]}"


def standing_relations(positions: ArrayLike, attached: ArrayLike, speeds: ArrayLike) -> frozenset[Relation]:
    """All pairs `(upper, lower)` that stand: `upper` rests on `lower`.

    positions: (blocks, 3) slab centres [m]; attached: (blocks,) true where the gripper holds the slab;
    speeds: (blocks,) [m/s]. A pair stands if neither slab is held, both are at rest (below `REST_SPEED`), the centres
    differ by less than `HORIZONTAL_TOLERANCE` in x and in y, and their heights by one slab within `VERTICAL_TOLERANCE`.
    """
    centres = np.asarray(positions, dtype=np.float64)
    free = ~np.asarray(attached, dtype=bool) & (np.asarray(speeds, dtype=np.float64) < REST_SPEED)
    if centres.ndim != 2 or centres.shape[1] != 3 or free.shape != (len(centres),):
        raise ValueError(
            f"standing_relations needs positions (blocks, 3) with one attached flag and one speed a block, "
            f"got shapes {centres.shape}, {np.shape(attached)} and {np.shape(speeds)}"
        )
    offset = centres[:, None, :] - centres[None, :, :]
    on = (
        (np.abs(offset[..., 0]) < HORIZONTAL_TOLERANCE)
        & (np.abs(offset[..., 1]) < HORIZONTAL_TOLERANCE)
        & (np.abs(offset[..., 2] - SLAB_HEIGHT) < VERTICAL_TOLERANCE)
        & free[:, None]
        & free[None, :]
    )
    return frozenset((int(upper), int(lower)) for upper, lower in np.argwhere(on))


def tallest_chain(relations: Iterable[Relation]) -> int:
    """Number of relations in the longest chain, so a single slab counts 0 and a full tower 3.

    A chain that comes back to itself (impossible for standing slabs) is followed only until it repeats.
    """
    above: dict[int, list[int]] = {}
    for upper, lower in relations:
        above.setdefault(lower, []).append(upper)

    def height(block: int, seen: frozenset[int]) -> int:
        uppers = [upper for upper in above.get(block, []) if upper not in seen]
        return max((1 + height(upper, seen | {upper}) for upper in uppers), default=0)

    return max((height(block, frozenset({block})) for block in above), default=0)


def tower_relations(order: Sequence[int]) -> tuple[Relation, ...]:
    """Relations of a tower given bottom to top, in the order in which it is built."""
    blocks = [int(block) for block in order]
    if len(set(blocks)) != len(blocks) or any(not 0 <= block < len(BLOCKS) for block in blocks):
        raise ValueError(f"tower order {blocks} must name each block at most once, by an index below {len(BLOCKS)}")
    return tuple(zip(blocks[1:], blocks[:-1], strict=True))


def unconditional_score(relations: Iterable[Relation]) -> float:
    """0 to 100: the tallest chain, in relations, out of three."""
    return 100.0 * tallest_chain(relations) / (len(BLOCKS) - 1)


def conditional_score(relations: Iterable[Relation], order: Sequence[int]) -> float:
    """0 to 100: consecutive pairs of `order` (block indices, bottom to top) that stand, out of three."""
    return 100.0 * len(set(relations) & set(tower_relations(order))) / (len(BLOCKS) - 1)


def rearrangement_score(relations: Iterable[Relation], required: Iterable[Relation]) -> float:
    """0 to 100: the share of the required pairs that stand; at least one pair must be required."""
    wanted = set(required)
    if not wanted:
        raise ValueError("a rearrangement needs at least one required relation")
    return 100.0 * len(set(relations) & wanted) / len(wanted)


class LegacyScore:
    """The stacking rule of the released Kuka code, kept only to compare with Table 3 of the paper.

    A pair counts as soon as a block that has been moved is *seen above* another (both horizontal offsets under 0.1 m,
    any height above it), held or not, and is never cleared again; the count is capped at three. Carrying one slab over
    three others therefore scores 100, which is why it is reported beside, and never instead of, our own rule.
    """

    def __init__(self) -> None:
        self._moved: NDArray[np.bool_]
        self._seen: NDArray[np.bool_]
        self.reset()

    def reset(self) -> None:
        """Forget everything seen; to be called when an episode starts."""
        self._moved = np.zeros(len(BLOCKS), dtype=bool)
        self._seen = np.zeros((len(BLOCKS), len(BLOCKS)), dtype=bool)

    def update(self, positions: ArrayLike, attached: ArrayLike) -> float:
        """Take one state in (positions (4, 3) [m], attached (4,)) and return the score so far, 0 to 100."""
        centres = np.asarray(positions, dtype=np.float64)
        self._moved |= np.asarray(attached, dtype=bool)
        if self._moved.any():
            offset = centres[:, None, :] - centres[None, :, :]
            above = (np.abs(offset[..., :2]) < HORIZONTAL_TOLERANCE).all(axis=-1) & (offset[..., 2] > 0.0)
            self._seen |= above & self._moved[:, None]
        return self.score

    @property
    def score(self) -> float:
        """Score so far, 0 to 100."""
        most = len(BLOCKS) - 1
        return 100.0 * min(int(self._seen.sum()), most) / most
