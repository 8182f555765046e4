"""What the stacking policy decides, to be followed by whoever commands the arm: no network, no rules, only a plan being read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from diffuser_core.envs.kuka_kinematics import nearest_joints
from diffuser_core.envs.stacking import Relation
from diffuser_core.motion import Observation
from diffuser_core.trajectory import Plan

__all__ = ['COMMIT', 'Decision', 'StackingMotion']

COMMIT = 3
"""Plan steps for which the motion of the last plan is kept."""


@dataclass(frozen=True)
class Decision:
    """What to do from now on.

    joints   (ticks, 7) joint positions [rad] for the following control ticks
    gripper  (ticks,) whether the gripper shall be closed
    plan     the plan behind it, named for people; None when the arm just holds
    reached  whether the goal stands and the arm is done
    subgoal  move being made, or None
    """

    joints: np.ndarray
    gripper: np.ndarray
    plan: Plan | None
    reached: bool
    subgoal: Relation | None


@dataclass(frozen=True)
class StackingMotion:
    """See `diffuser_core.motion.Motion`.

    shown    the plan named for people (`stacking_features.named_plan`)
    resting  (7,) joints [rad] where the arm rests if there is no plan; held: whether the gripper is closed meanwhile
    tip, attached  the plan's columns of the tip and of contact
    """

    plan: Plan | None
    shown: Plan | None
    resting: np.ndarray
    held: bool
    reached: bool
    subgoal: Relation | None
    tip: np.ndarray
    attached: int
    tick_dt: float
    tail: int
    waits: bool = False

    def begun(self, now: float) -> StackingMotion:
        """The same with a plan that is followed from `now` on, if it has been waiting for that."""
        if not self.waits or self.plan is None or self.shown is None:
            return self
        t0 = max(now, self.plan.t0)
        return replace(self, plan=replace(self.plan, t0=t0), shown=replace(self.shown, t0=t0), waits=False)

    def decide(self, observation: Observation, now: float) -> Decision:
        """Joints and gripper for the ticks after `now` [s]; the observation plays no part: the arm tracks positions by itself."""
        if self.plan is None:
            return Decision(np.repeat(self.resting[None], self.tail, axis=0), np.full(self.tail, self.held), None, self.reached,
                            None)
        ticks = self.tick_dt * np.arange(1, self.tail + 1)
        ahead = self.plan.at(now + ticks)
        # A tick ahead of the arm, and between rows like the arm: successive plans, whose beginnings agree, then agree about when
        # it closes, however old they are. Taken from the next row, it would depend on how a tick falls between the rows.
        gripper = self.plan.at(now + ticks + self.tick_dt)[:, self.attached] > 0.5
        return Decision(nearest_joints(ahead[:, self.tip]), gripper, self.shown, False, self.subgoal)
