"""From a stacking goal to joint commands: which relation comes next, and the receding-horizon planner that achieves it.

Every plan is conditioned on the present state and on where the blocks shall be at its end. For the task 'relations' that
arrangement follows from the next relation to build. For the task 'stack' (as tall as possible) the model proposes: a plan is
drawn without a goal, and if it builds higher, the relation at its end becomes the goal that the following plans keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffuser_core.conditions import Conditions
from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.stacking import (
    BLOCKS,
    HORIZONTAL_TOLERANCE,
    SLAB_HEIGHT,
    Relation,
    format_relation,
    standing_relations,
    tallest_chain,
)
from diffuser_core.envs.stacking_features import ATTACHED, FEATURES, PLACES, cartesian, features_by_name
from diffuser_core.envs.stacking_goal import GoalError, StackingGoal
from diffuser_core.planner import DEFAULT_SAMPLING, Planner, Sampling
from diffuser_core.receding_horizon import RecedingHorizon
from diffuser_core.trajectory import Plan

__all__ = ['Decision', 'StackingPolicy']



@dataclass(frozen=True)
class Decision:
    """What to do from now on.

    joints   (ticks, 7) joint positions [rad] for the following control ticks
    gripper  (ticks,) whether the gripper shall be closed
    plan     the plan behind it; None when the arm just holds
    reached  whether the goal stands and the arm is done
    subgoal  relation being built, or None
    """

    joints: np.ndarray
    gripper: np.ndarray
    plan: Plan | None
    reached: bool
    subgoal: Relation | None


class StackingPolicy:
    """A stacking controller for one robot; call `set_goal`, then `act` at every tick. Not thread-safe.

    tail        ticks of commands a decision holds
    commit      plan steps for which the motion of the last plan is kept
    patience    ticks that the arm may stand still, its relation unbuilt, before planning starts afresh
    """

    COMMIT = 3
    STILL = 0.03
    """The arm stands still while every joint stays this close to where it was [rad]."""
    DONE_TOLERANCE = 0.08
    """A plan is carried out when every joint is this close to the plan's end [rad]."""

    def __init__(self, planner: Planner, *, sampling: Sampling = DEFAULT_SAMPLING, tick_dt: float = 1 / 24, tail: int = 12,
                 patience: int = 15, commit: int = COMMIT) -> None:
        missing = [n for n in FEATURES if n not in planner.channels.names]
        extra = [n for n in planner.channels.names if n not in FEATURES]
        if missing or extra:
            raise ValueError('the checkpoint does not fit this robot: '
                             + '; '.join(f'{what} {", ".join(names)}' for what, names in
                                         (('it lacks the channels', missing), ('it has the unknown channels', extra)) if names))
        lacking = [n for n in PLACES if n not in planner.checkpoint.goal]
        if lacking:
            raise ValueError(f'the checkpoint was not trained with goals for {", ".join(lacking)}')
        self.planner = planner
        self.tick_dt = tick_dt
        self._horizon = RecedingHorizon(planner, sampling, committed=JOINT_NAMES, commit=commit)
        self._tail = tail
        self._patience = patience
        self._joints = planner.channels.indices(JOINT_NAMES)
        self._places = planner.channels.indices(PLACES).reshape(-1, 3)
        self._order = [FEATURES.index(name) for name in planner.channels.names]
        self._attached = planner.channels.indices(ATTACHED)
        self.goal: StackingGoal | None = None
        self._forget()

    @property
    def replans(self) -> int:
        """Plans made so far."""
        return self._horizon.replans

    def _forget(self) -> None:
        self._subgoal: Relation | None = None
        self._waited = 0
        self._stood_at: np.ndarray | None = None
        self._resting: np.ndarray | None = None
        self._horizon.restart()

    def _start_afresh(self, *, holding: bool) -> None:
        """Forget the plan, and what to build too unless a block is on its way there."""
        subgoal = self._subgoal
        self._forget()
        if holding:
            self._subgoal = subgoal

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed."""
        self.goal = None
        self._forget()
        self._horizon.replans = 0
        self.planner.reseed(seed)

    def clear_goal(self) -> None:
        """Drop the goal; the arm holds."""
        self.goal = None
        self._forget()

    def set_goal(self, goal: StackingGoal, observation: Mapping[str, float]) -> None:
        """Pursue `goal`; GoalError, and the old goal stays, if it cannot be built from the present arrangement."""
        standing = self._standing(self._state(observation))
        for upper, lower in goal.relations:
            if (upper, lower) in standing:
                continue
            for block in (upper, lower):
                for top, bottom in standing:
                    if bottom == block and (top, bottom) not in goal.relations:
                        raise GoalError(f'{format_relation((upper, lower))} needs {BLOCKS[block]} free, but {BLOCKS[top]} stands '
                                        'on it; taking towers apart is not supported')
        if goal != self.goal:
            self.goal = goal
            self._forget()

    def act(self, observation: Mapping[str, float], now: float) -> Decision:
        """Decide from the state (channel name -> value) at time `now` [s]."""
        state = self._state(observation)
        if self.goal is None:
            return self._hold(state, reached=False)
        standing = self._standing(state)
        if self._subgoal is not None:
            if self._subgoal in standing and self._carried_out(state):
                self._forget()
            elif self._stuck(state):
                self._start_afresh(holding=bool((state[self._attached] > 0.5).any()))
        if self._subgoal is None:
            if self.goal.reached(standing):
                return self._hold(state, reached=True)
            self._subgoal = self._next(state, standing, now)
            if self._subgoal is None:
                return self._hold(state, reached=False)
        self._resting = None
        plan = self._horizon.plan
        if plan is None or plan.t0 != now:  # otherwise it is the proposal that has just been made
            plan = self._horizon.update(state, self._conditions(state, self._subgoal), now)
        ahead = plan.at(now + self.tick_dt * np.arange(1, self._tail + 1))
        rows = np.ceil(self.tick_dt / plan.step_dt * np.arange(1, self._tail + 1) - 1e-6).astype(int).clip(max=plan.horizon - 1)
        gripper = (plan.values[rows][:, self._attached] > 0.5).any(axis=1)  # not between rows: half closed means nothing
        return Decision(ahead[:, self._joints], gripper, plan, False, self._subgoal)

    def _hold(self, state: np.ndarray, *, reached: bool) -> Decision:
        if self._resting is None:  # kept while holding: following the measured joints would let the arm creep
            self._resting = state[self._joints]
        joints = np.repeat(self._resting[None], self._tail, axis=0)
        closed = np.full(self._tail, bool((state[self._attached] > 0.5).any()))
        return Decision(joints, closed, None, reached, None)

    def _state(self, observation: Mapping[str, float]) -> np.ndarray:
        return features_by_name(observation)[self._order]

    def _standing(self, state: np.ndarray) -> frozenset[Relation]:
        return standing_relations(cartesian(state[self._places]), state[self._attached] > 0.5, np.zeros(len(BLOCKS)))

    def _stuck(self, state: np.ndarray) -> bool:
        """Whether the arm has stood still for longer than demonstrations ever do."""
        joints = state[self._joints]
        if self._stood_at is None or np.abs(joints - self._stood_at).max() > self.STILL:
            self._stood_at, self._waited = joints, 0
        self._waited += 1
        return self._waited > self._patience

    def _carried_out(self, state: np.ndarray) -> bool:
        plan = self._horizon.plan
        if plan is None:
            return False
        end = plan.values[-1]
        return bool(np.abs(end[self._joints] - state[self._joints]).max() < self.DONE_TOLERANCE)

    def _conditions(self, state: np.ndarray, subgoal: Relation) -> Conditions:
        """The plan's end: `upper` on `lower`, every other block where it is."""
        upper, lower = subgoal
        places = state[self._places]
        places[upper] = places[lower] + (0.0, 0.0, SLAB_HEIGHT)
        return self.planner.conditions().known(-1, self.planner.channels, dict(zip(PLACES, places.ravel())))

    def _next(self, state: np.ndarray, standing: frozenset[Relation], now: float) -> Relation | None:
        """The relation to build now; None if the model's proposal does not build higher."""
        assert self.goal is not None
        if self.goal.task == 'relations':
            return next(pair for pair in self.goal.relations if pair not in standing)
        proposal = self.planner.plan(state, sampling=self._horizon.sampling, t0=now)
        built = self._built(state, proposal.values[-1], standing)
        if built is None or tallest_chain({*standing, built}) <= tallest_chain(standing):
            return None
        self._horizon.restart(proposal)
        return built

    def _built(self, state: np.ndarray, end: np.ndarray, standing: frozenset[Relation]) -> Relation | None:
        """The relation that a plan ending in `end` builds: its block that moves farthest, on the free block below it."""
        before, after = (cartesian(row[self._places]) for row in (state, end))
        upper = int(np.linalg.norm(after - before, axis=1).argmax())
        for lower in range(len(BLOCKS)):
            offset = after[upper] - before[lower]
            free = lower != upper and all(pair[1] not in (upper, lower) for pair in standing)
            if free and np.abs(offset[:2]).max() < HORIZONTAL_TOLERANCE and abs(offset[2] - SLAB_HEIGHT) < SLAB_HEIGHT / 2:
                return upper, lower
        return None
