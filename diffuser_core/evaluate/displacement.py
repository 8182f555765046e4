"""A block that is knocked away in the middle of an episode: does the policy recover?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import BLOCKS, SLAB_HEIGHT
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_moves import ROOM, blocks_above, room_at

__all__ = ['Displacement', 'draw_shift']

RADII = (0.45, 0.72)
"""A displaced block stays this far from the arm's axis [m] ..."""
LARGEST_AZIMUTH = 2.6
"""... and within this of the direction ahead [rad]."""
DIRECTIONS = 24
"""Directions that are tried for a block."""
_STREAM = 0xD15B
"""Keeps these draws apart from those of other users of the same seed."""


class Displacement:
    """One displacement by `distance` [m] in an episode of `steps` ticks; everything about it is drawn from `seed`.

    It happens at a tick drawn from the middle third of the episode; if no block qualifies then, at the next tick of that third
    at which one does, if any. A block qualifies if the goal names it ('stack' names all), it lies on the ground with nothing on
    it and is not held. It lands where it has room and the arm reaches it.

    done  {'block': its name, 'tick': number of ticks before it} once it has happened
    """

    def __init__(self, distance: float, goal: StackingGoal, seed: int, steps: int) -> None:
        self.done: dict[str, Any] | None = None
        self._distance = distance
        self._blocks = sorted({n for pair in goal.relations for n in pair}) or list(range(len(BLOCKS)))
        self._rng = np.random.default_rng([seed, _STREAM])
        self._first, self._end = int(self._rng.integers(steps // 3, max(2 * steps // 3, steps // 3 + 1))), 2 * steps // 3

    def happens(self, env: KukaStackEnv, observation: NDArray[np.float64], tick: int) -> bool:
        """Whether a block has just been displaced, in the state (39,) before tick number `tick`."""
        if self.done is not None or not self._first <= tick < self._end:
            return False
        blocks = observation[len(JOINT_NAMES):].reshape(len(BLOCKS), 8)
        for block in self._rng.permutation(self._blocks).tolist():
            shift = None if blocks[block, 7] > 0.5 else draw_shift(blocks[:, :3], block, self._distance, self._rng)
            if shift is not None:
                env.displace(block, *shift)
                self.done = {'block': BLOCKS[block], 'tick': tick}
                return True
        return False


def draw_shift(centres: NDArray[np.float64], block: int, distance: float,
               rng: np.random.Generator) -> tuple[float, float] | None:
    """By how much `block` is displaced in x and y [m]; None if it is not free on the ground or has no room anywhere.

    centres (blocks, 3) [m]; distance [m].
    """
    if centres[block, 2] > SLAB_HEIGHT or blocks_above(centres, block):
        return None
    angles = rng.uniform(-math.pi, math.pi) + rng.permutation(DIRECTIONS) * (2.0 * math.pi / DIRECTIONS)
    for angle in angles:
        shift = distance * np.array([math.cos(angle), math.sin(angle)])
        place = centres[block, :2] + shift
        if (RADII[0] <= math.hypot(*place) <= RADII[1] and abs(math.atan2(place[1], place[0])) < LARGEST_AZIMUTH
                and room_at(place, centres, block) >= ROOM):
            return float(shift[0]), float(shift[1])
    return None
