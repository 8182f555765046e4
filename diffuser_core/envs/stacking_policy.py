"""From a stacking goal to joint commands: which move comes next, and the receding-horizon planner that makes it.

Every plan is conditioned on the present state and on where the blocks shall be at its end. For the task 'relations' that
arrangement follows from the next move towards the goal (`stacking_moves`). For the task 'stack' (as tall as possible) the model
proposes: plans are drawn without a goal, and the relation that the one with the highest tower builds becomes the goal of the
following plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffuser_core.conditions import Conditions
from diffuser_core.envs.kuka_kinematics import planar_tip
from diffuser_core.envs.stacking import (
    BLOCKS,
    GROUND,
    HORIZONTAL_TOLERANCE,
    SLAB_HEIGHT,
    SLAB_SIZE,
    Relation,
    tallest_chain,
)
from diffuser_core.envs.stacking_classifier import class_of
from diffuser_core.envs.stacking_features import (
    ATTACHED,
    FEATURES,
    PLACES,
    TIP,
    Situation,
    cartesian,
    cylindrical,
    features,
    named_plan,
    slots,
)
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_motion import COMMIT, Decision, StackingMotion
from diffuser_core.envs.stacking_moves import blocks_above, free_place, next_move, room_at
from diffuser_core.guide_library import ClassifierGuide
from diffuser_core.guides import Guide
from diffuser_core.planner import DEFAULT_SAMPLING, Planner, Sampling
from diffuser_core.receding_horizon import RecedingHorizon
from diffuser_core.trajectory import Plan
from diffuser_core.value_network import StepClassifier

__all__ = ['StackingPolicy']


class StackingPolicy:
    """A stacking controller for one robot; call `set_goal`, then `act` at every tick, or `replan` beside the ticks and follow
    what it returns (`diffuser_core.motion`). Not thread-safe.

    tail        ticks of commands a decision holds
    commit      plan steps for which the motion of the last plan is kept
    patience    ticks that the arm may stand still, its move unmade, before planning starts afresh
    classifier  what a plan's states say of the moved block (`stacking_classifier`); with it the plan's end is not given, but its
                second half is guided to where the move is made (paper, appendix B), scaled by GUIDE_SCALE
    keep_goal   whether the end is given all the same
    """

    STILL = 0.03
    """The arm stands still while every joint stays this close to where it was [rad]."""
    DONE_TOLERANCE = 0.04
    """A plan is carried out when the tip is this close to the plan's end [m]."""
    OFF_PLAN = 0.2
    """An arm whose tip is farther than this from where its plan has it [m] was carried off: the next plan begins where it is."""
    KNOCKED = 0.02
    """A block that moves farther than this from one tick to the next [m], neither held nor just let go, was knocked away."""
    GRIP_TIME = 1 / 12
    """Contact may come or go this much earlier or later than planned [s]."""
    GUIDE_SCALE = 1.0
    PROPOSALS = 1
    """Plans drawn without a goal a tick, to choose from: with four, such a tick took longer than 1/24 s on two cores."""

    def __init__(self, planner: Planner, *, sampling: Sampling = DEFAULT_SAMPLING, tick_dt: float = 1 / 24, tail: int = 12,
                 patience: int = 15, commit: int = COMMIT, classifier: StepClassifier | None = None,
                 keep_goal: bool = False) -> None:
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
        self._horizon = RecedingHorizon(planner, sampling, committed=(*TIP, ATTACHED), commit=commit, moving=TIP)
        self._tail = tail
        self._patience = patience
        self._classifier = classifier
        self._goal_given = classifier is None or keep_goal
        self._tip = planner.channels.indices(TIP)
        self._places = planner.channels.indices(PLACES).reshape(-1, 3)
        self._attached = planner.channels.names.index(ATTACHED)
        self._order = [FEATURES.index(name) for name in planner.channels.names]
        self.goal: StackingGoal | None = None
        self._waits = False
        self._start_over()

    @property
    def replans(self) -> int:
        """Plans made so far."""
        return self._horizon.replans

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed."""
        self.goal = None
        self._start_over()
        self._horizon.replans = 0
        self.planner.reseed(seed)

    def clear_goal(self) -> None:
        """Drop the goal; the arm holds."""
        self.goal = None
        self._start_over()

    def set_goal(self, goal: StackingGoal, observation: Mapping[str, float]) -> None:
        """Pursue `goal`, whatever has to be taken apart for it; KeyError if the observation lacks a channel."""
        Situation.of(observation)
        if goal != self.goal:
            self.goal = goal
            self._start_over()

    def _start_over(self) -> None:
        self._proposed: tuple[Relation, ...] = ()
        self._asked = 0
        self._seen: Situation | None = None
        self._resting: np.ndarray | None = None
        self._horizon.follow(None)
        self._pursue(None)

    def _pursue(self, move: Relation | None) -> None:
        """Make `move` next, with a new plan."""
        self._move = move
        self._ground: np.ndarray | None = None
        self._plan_afresh()

    def _plan_afresh(self) -> None:
        self._waited = 0
        self._stood_at: np.ndarray | None = None
        self._horizon.restart()

    def act(self, observation: Mapping[str, float], now: float) -> Decision:
        """Decide from the state (channel name -> value) at time `now` [s]."""
        return self.replan(observation, now).decide(observation, now)

    def replan(self, observation: Mapping[str, float], now: float, delay: float = 0.0, budget: Any = None) -> StackingMotion:
        """What to follow from the state (channel name -> value) at time `now` [s] on, if it is followed `delay` [s] later."""
        now_is = Situation.of(observation)
        if self.goal is None:
            return self._hold(now_is, reached=False)
        self._notice(now_is, now)
        if self._move is not None and self._made(now_is):
            if self._carried_out(now_is):
                self._pursue(None)
        elif self._move is not None and (self.goal.relations or self._proposed):
            wanted = self._next(now_is, now, budget)
            if wanted != self._move:
                self._choose(wanted)
        if self._move is None:
            wanted = self._next(now_is, now, budget)
            if wanted is None:
                return self._hold(now_is, reached=self.goal.reached(now_is.standing))
            self._choose(wanted)
        self._resting = None
        moved = self._move[0]  # type: ignore[index]
        conditions = self._conditions(now_is) if self._goal_given else self.planner.conditions()
        waits = self._horizon.resting
        plan = self._horizon.update(self._features(now_is, moved), conditions, now, guide=self._guide(), budget=budget,
                                    ahead=delay)
        return self._motion(now_is, plan, moved, waits)

    def begin(self, now: float) -> None:
        """The motion that `replan` gave last is followed since `now` [s]; a plan that waited for it begins there."""
        if self._waits:
            self._horizon.begin(now)
            self._waits = False

    def adopt(self, motion: StackingMotion | None) -> None:
        """The arm follows `motion` instead, or rests: the next plan agrees with its beginning. One of other channels is not known
        here, and the next plan begins when it is followed."""
        plan = None if motion is None else motion.plan
        self._horizon.follow(plan if plan is not None and plan.channels == self.planner.channels else None)
        self._waits = False

    def resting(self, observation: Mapping[str, float]) -> StackingMotion:
        """The arm stays where it is."""
        return self._still(Situation.of(observation), False)

    def _motion(self, now_is: Situation, plan: Plan, moved: int, waits: bool) -> StackingMotion:
        self._waits = waits
        return StackingMotion(plan, named_plan(plan, moved), now_is.joints, now_is.held is not None, False, self._move, self._tip,
                              self._attached, self.tick_dt, self._tail, waits)

    def _guide(self) -> Guide | None:
        """What draws plans to make the present move, if a classifier does."""
        if self._classifier is None:
            return None
        assert self._move is not None
        return self.GUIDE_SCALE * ClassifierGuide(self._classifier, self.planner.checkpoint.normalizer, [class_of(self._move)],
                                                  first_step=self.planner.checkpoint.horizon // 2)

    def _hold(self, now_is: Situation, *, reached: bool) -> StackingMotion:
        if self._resting is None:  # kept while holding: following the measured joints would let the arm creep
            self._resting = now_is.joints
        self._horizon.follow(None)
        self._waits = False
        return self._still(now_is, reached)

    def _still(self, now_is: Situation, reached: bool) -> StackingMotion:
        joints = now_is.joints if self._resting is None else self._resting
        return StackingMotion(None, None, joints, now_is.held is not None, reached, None, self._tip, self._attached, self.tick_dt,
                              self._tail)

    def _features(self, now_is: Situation, moved: int) -> np.ndarray:
        return features(now_is.state, moved)[self._order]

    def _notice(self, now_is: Situation, now: float) -> None:
        """Plan afresh if a block was knocked away, the gripper does not hold what the plan says, or the arm stands still."""
        before, self._seen = self._seen, now_is
        if before is not None:
            moved = np.linalg.norm(now_is.centres - before.centres, axis=1)
            if any(distance > self.KNOCKED for n, distance in enumerate(moved) if n not in (before.held, now_is.held)):
                self._plan_afresh()
        plan = self._horizon.plan
        if plan is not None:
            there, tip = cartesian(np.stack([plan.at(np.array([now]))[0, self._tip], planar_tip(now_is.joints)]))
            if np.linalg.norm(there - tip) > self.OFF_PLAN:
                self._horizon.follow(None)
                self._plan_afresh()
                plan = None
        if plan is not None and self._move is not None:
            said = plan.at(now + self.GRIP_TIME * np.array([-1.0, 0.0, 1.0]))[:, self._attached] > 0.5
            if (said != (now_is.held == self._move[0])).all():
                self._plan_afresh()
        if self._stood_at is None or np.abs(now_is.joints - self._stood_at).max() > self.STILL:
            self._stood_at, self._waited = now_is.joints, 0
        self._waited += 1
        if self._waited > self._patience:
            self._plan_afresh()

    def _made(self, now_is: Situation) -> bool:
        """Whether the present move is made: the block stands where it shall."""
        assert self._move is not None
        upper, lower = self._move
        if lower != GROUND:
            return self._move in now_is.standing
        return now_is.held != upper and now_is.centres[upper, 2] < SLAB_HEIGHT

    def _carried_out(self, now_is: Situation) -> bool:
        plan = self._horizon.plan
        if plan is None:
            return False
        end, tip = cartesian(np.stack([plan.values[-1][self._tip], planar_tip(now_is.joints)]))
        return bool(np.linalg.norm(end - tip) < self.DONE_TOLERANCE)

    def _choose(self, move: Relation | None) -> None:
        """Pursue `move`; a plan that was drawn for it in this very tick is kept."""
        proposal = self._horizon.plan if self._move is None else None
        self._pursue(move)
        self._horizon.restart(proposal)

    def _next(self, now_is: Situation, now: float, budget: Any) -> Relation | None:
        """The move to make now; None if the goal stands, or if nothing that the model proposes builds higher."""
        assert self.goal is not None
        wanted: Sequence[Relation] = self.goal.relations or self._proposed
        move = next_move(wanted, now_is.centres, now_is.standing, now_is.held)
        if move is not None or self.goal.reached(now_is.standing) or self.goal.task == 'relations':
            return move
        return self._proposal(now_is, now, budget)

    def _proposal(self, now_is: Situation, now: float, budget: Any) -> Relation | None:
        """What the model does with one of the free blocks, another one at every tick, if one of its plans builds higher."""
        free = [n for n in range(len(BLOCKS)) if not blocks_above(now_is.centres, n)]
        upper = free[self._asked % len(free)]
        self._asked += 1
        plans = self.planner.candidates(self._features(now_is, upper), count=self.PROPOSALS, sampling=self._horizon.sampling,
                                        t0=now, budget=budget)
        heights = [tallest_chain({*now_is.standing, pair}) if pair is not None else 0
                   for pair in (self._built(now_is, upper, plan) for plan in plans)]
        best = int(np.argmax(heights))
        if heights[best] <= tallest_chain(now_is.standing):
            return None
        pair = self._built(now_is, upper, plans[best])
        assert pair is not None
        self._proposed = (pair,)
        self._horizon.restart(plans[best])
        return pair

    def _built(self, now_is: Situation, upper: int, plan: Plan) -> Relation | None:
        """The relation at the end of a plan that moves `upper`: on the free block below it; None if there is none."""
        place = cartesian(plan.values[-1][self._places[0]])
        for lower in range(len(BLOCKS)):
            offset = place - now_is.centres[lower]
            free = lower != upper and not [n for n in blocks_above(now_is.centres, lower) if n != upper]
            if free and np.abs(offset[:2]).max() < HORIZONTAL_TOLERANCE and abs(offset[2] - SLAB_HEIGHT) < SLAB_HEIGHT / 2:
                return upper, lower
        return None

    def _conditions(self, now_is: Situation) -> Conditions:
        """The plan's end: `upper` where the move puts it, every other block where it is."""
        assert self._move is not None
        upper, lower = self._move
        if lower != GROUND:
            place = now_is.centres[lower] + (0.0, 0.0, SLAB_HEIGHT)
        else:
            if self._ground is None or room_at(self._ground, now_is.centres, upper) < SLAB_SIZE[0]:
                self._ground = free_place(now_is.centres, upper)
            place = np.array([*self._ground, SLAB_HEIGHT / 2.0])
        places = cylindrical(np.stack([place, *(now_is.centres[n] for n in slots(upper)[1:])]))
        return self.planner.conditions().known(-1, self.planner.channels, dict(zip(PLACES, places.ravel())))
