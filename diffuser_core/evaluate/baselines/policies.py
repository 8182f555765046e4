"""Stacking controllers to compare the planner with: the scripted demonstrator, and networks from observation to action.

They have the interface of `StackingPolicy`, so the evaluation suite runs them on the same episodes. Which block is moved next,
and where to, follows for all of them from the same rules (`wanted_relations`, `stacking_moves.next_move`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, planar_tip
from diffuser_core.envs.stacking import BLOCKS, GROUND, SLAB_HEIGHT, SLAB_SIZE, Relation
from diffuser_core.envs.stacking_features import Situation
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_motion import Decision
from diffuser_core.envs.stacking_moves import blocks_above, free_place, next_move, room_at
from diffuser_core.evaluate.baselines.encoding import ACTIONS, OBSERVATIONS, decode_action, encode_observation
from diffuser_core.experts.pick_and_place import plan_segment

__all__ = ['DEMONSTRATOR', 'DemonstratorPolicy', 'EpisodePolicy', 'LearnedPolicy', 'load_policy', 'wanted_relations']

DEMONSTRATOR = 'demonstrator'
"""Names the scripted demonstrator where else the file of a learned policy stands."""


class EpisodePolicy(Protocol):
    """What an episode of the evaluation suite asks of a controller. `StackingPolicy` has it too."""

    tick_dt: float
    """Time between two calls of `act` [s]."""

    @property
    def replans(self) -> int:
        """Plans made since the last reset."""

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed."""

    def set_goal(self, goal: StackingGoal, observation: Mapping[str, float]) -> None:
        """Pursue `goal`; KeyError if the observation (channel name -> value) lacks a channel."""

    def act(self, observation: Mapping[str, float], now: float) -> Decision:
        """Decide from the state (channel name -> value) at time `now` [s]."""


def wanted_relations(goal: StackingGoal, centres: np.ndarray, standing: Collection[Relation], held: int | None) \
        -> tuple[Relation, ...]:
    """The relations to bring about now, in building order: those of the goal, or one that makes the tallest tower taller.

    centres (blocks, 3) [m]. For 'stack' the block that is `held`, else the free one that is the shortest turn of the arm away
    from the tallest tower, shall stand on top of it. Empty once no block is left over.
    """
    if goal.task != 'stack':
        return goal.relations
    azimuths = np.arctan2(centres[:, 1], centres[:, 0])
    towers = [_tower(block, standing) for block in range(len(BLOCKS)) if block != held]
    tower = max(towers, key=lambda blocks: (len(blocks), -abs(azimuths[blocks[0]])))
    free = [n for n in range(len(BLOCKS)) if n not in tower and not blocks_above(centres, n, held)]
    if held is not None:
        free = [held]
    if not free:
        return ()
    nearest = min(free, key=lambda n: abs(azimuths[n] - azimuths[tower[-1]]))
    return ((nearest, tower[-1]),)


def _tower(bottom: int, standing: Collection[Relation]) -> list[int]:
    """The blocks that stand on `bottom`, which comes first, one on another."""
    tower = [bottom]
    while True:
        above = [upper for upper, lower in sorted(standing) if lower == tower[-1] and upper not in tower]
        if not above:
            return tower
        tower.append(above[0])


class _MoveByMove:
    """What both controllers share: the goal, the move that comes next, and holding still when there is none."""

    _move: Relation | None
    _resting: np.ndarray | None

    def __init__(self, tick_dt: float) -> None:
        self.tick_dt = tick_dt
        self.replans = 0
        self.goal: StackingGoal | None = None
        self._start_over()

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction; nothing is drawn from the seed."""
        self.goal = None
        self.replans = 0
        self._start_over()

    def set_goal(self, goal: StackingGoal, observation: Mapping[str, float]) -> None:
        """Pursue `goal`; KeyError if the observation (channel name -> value) lacks a channel."""
        Situation.of(observation)
        if goal != self.goal:
            self.goal = goal
            self._start_over()

    def act(self, observation: Mapping[str, float], now: float) -> Decision:
        """Decide from the state (channel name -> value) at time `now` [s]."""
        del now
        seen = Situation.of(observation)
        commands = None if self.goal is None else self._commands(seen, self.goal)
        if commands is None:
            if self._resting is None:  # kept while holding: following the measured joints would let the arm creep
                self._resting = seen.joints
            reached = self.goal is not None and self.goal.reached(seen.standing)
            return Decision(self._resting[None], np.array([seen.held is not None]), None, reached, None)
        self._resting = None
        return Decision(*commands, None, False, self._move)

    def _start_over(self) -> None:
        self._move = None
        self._resting = None

    def _commands(self, seen: Situation, goal: StackingGoal) -> tuple[np.ndarray, np.ndarray] | None:
        """Joints (ticks, 7) [rad] and gripper (ticks,) that make `self._move`, which is brought up to date; None to hold."""
        raise NotImplementedError


class DemonstratorPolicy(_MoveByMove):
    """The scripted demonstrator in closed loop: the upper bound of what can be learned from its data.

    It plans a whole segment at a time, without the variation of the demonstrations, and plans anew once a block that the segment
    needs is displaced, or the gripper does not hold what it should.
    """

    DISPLACED = 0.02
    """A block is displaced when it is farther than this from where the segment was planned to find it [m]."""
    GRIP_TICKS = 2
    """The gripper holds a block this many ticks after it was told to close."""

    def __init__(self, *, tick_dt: float = 1 / 24) -> None:
        super().__init__(tick_dt)

    def _start_over(self) -> None:
        super()._start_over()
        self._actions = np.zeros((0, len(JOINT_NAMES) + 1))
        self._planned_at = np.zeros((len(BLOCKS), 3))
        self._done = 0

    def _commands(self, seen: Situation, goal: StackingGoal) -> tuple[np.ndarray, np.ndarray] | None:
        if self._done >= len(self._actions) or self._disturbed(seen):
            wanted = wanted_relations(goal, seen.centres, seen.standing, seen.held)
            self._move = next_move(wanted, seen.centres, seen.standing, seen.held)
            self._done = 0
            self._actions = self._actions[:0]
            if self._move is None:
                return None
            try:
                self._actions = plan_segment(seen.state, self._move, ground=free_place(seen.centres, self._move[0]))
            except ValueError:  # a block lies where the arm cannot reach it, or askew on another
                return None
            self._planned_at = seen.centres.copy()
            self.replans += 1
        ahead = self._actions[self._done:]
        self._done += 1
        return ahead[:, :-1], ahead[:, -1] > 0.5

    def _disturbed(self, seen: Situation) -> bool:
        """Whether the segment under way no longer fits what is seen."""
        assert self._move is not None
        upper, lower = self._move
        closed = np.flatnonzero(self._actions[:, -1] > 0.5)
        if self._done > closed[-1]:
            return False
        shifts = np.linalg.norm(seen.centres - self._planned_at, axis=1)
        if lower != GROUND and shifts[lower] > self.DISPLACED:
            return True
        if self._done < closed[0]:
            return seen.held is not None or bool(shifts[upper] > self.DISPLACED)
        return self._done >= closed[0] + self.GRIP_TICKS and seen.held != upper


class LearnedPolicy(_MoveByMove):
    """A network from an observation (1, 20), named by `OBSERVATIONS`, to an action (1, 4), named by `ACTIONS`, at every tick.

    network: for example what `load` reads. The move that it is to make comes from the rules; once that is made, the arm has
    `RETREAT_TICKS` to back off before the next one.
    """

    RETREAT = 0.09
    """The arm has backed off when the tip is this far above the block [m]."""
    RETREAT_TICKS = 24

    def __init__(self, network: torch.nn.Module, *, tick_dt: float = 1 / 24) -> None:
        super().__init__(tick_dt)
        with torch.no_grad():
            shape = tuple(network(torch.zeros(1, len(OBSERVATIONS))).shape)
        if shape != (1, len(ACTIONS)):
            raise ValueError(f'the network must turn (1, {len(OBSERVATIONS)}) into (1, {len(ACTIONS)}), it gives {shape}')
        self._network = network

    @classmethod
    def load(cls, path: str | Path, *, tick_dt: float = 1 / 24) -> LearnedPolicy:
        """From a TorchScript file, as `benchmarks/baselines/train.py` writes; FileNotFoundError, or ValueError if it is none."""
        if not Path(path).is_file():
            raise FileNotFoundError(f'no trained baseline at {path}')
        try:
            network = torch.jit.load(str(path), map_location='cpu')
        except RuntimeError as error:
            raise ValueError(f'{path} is not a trained baseline (TorchScript)') from error
        return cls(network, tick_dt=tick_dt)

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed: a network may draw random numbers."""
        super().reset(seed)
        torch.manual_seed(seed)

    def _start_over(self) -> None:
        super()._start_over()
        self._wanted: tuple[Relation, ...] = ()
        self._ground: np.ndarray | None = None
        self._retreating = 0

    def _commands(self, seen: Situation, goal: StackingGoal) -> tuple[np.ndarray, np.ndarray] | None:
        if self._move is None or not self._made(seen, self._move):
            self._choose(seen, goal)
        elif self._backed_off(seen, self._move):
            self._move = None
            self._choose(seen, goal)
        if self._move is None:
            return None
        place = self._place(seen, self._move)
        observation = encode_observation(seen.state, self._move[0], place, self._move[1] == GROUND)
        with torch.no_grad():
            action = self._network(torch.as_tensor(observation, dtype=torch.float32)[None])[0].numpy()
        joints, closed = decode_action(action, seen.joints)
        return joints[None], np.array([closed])

    def _choose(self, seen: Situation, goal: StackingGoal) -> None:
        """The move to make now; a choice of 'stack' is kept until it stands."""
        if self._move is None or goal.task != 'stack':
            self._wanted = wanted_relations(goal, seen.centres, seen.standing, seen.held)
        move = next_move(self._wanted, seen.centres, seen.standing, seen.held)
        if move != self._move:
            self._move, self._ground, self._retreating = move, None, 0

    @staticmethod
    def _made(seen: Situation, move: Relation) -> bool:
        upper, lower = move
        if lower != GROUND:
            return move in seen.standing
        return seen.held != upper and bool(seen.centres[upper, 2] < SLAB_HEIGHT)

    def _backed_off(self, seen: Situation, move: Relation) -> bool:
        self._retreating += 1
        height = planar_tip(seen.joints)[2] - seen.centres[move[0], 2] - SLAB_HEIGHT / 2.0
        return bool(height > self.RETREAT) or self._retreating > self.RETREAT_TICKS

    def _place(self, seen: Situation, move: Relation) -> np.ndarray:
        """Where (3,) [m] the centre of the moved block shall be; on the ground, the same until something else stands there."""
        upper, lower = move
        if lower != GROUND:
            return seen.centres[lower] + (0.0, 0.0, SLAB_HEIGHT)
        if self._ground is None or room_at(self._ground, seen.centres, upper) < SLAB_SIZE[0]:
            self._ground = free_place(seen.centres, upper)
        return np.array([*self._ground, SLAB_HEIGHT / 2.0])


def load_policy(name: str) -> EpisodePolicy:
    """The demonstrator by its name, or a learned policy by its file; FileNotFoundError, or ValueError if it cannot be used."""
    return DemonstratorPolicy() if name == DEMONSTRATOR else LearnedPolicy.load(name)
