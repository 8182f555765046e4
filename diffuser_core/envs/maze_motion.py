"""What the maze policy decides, to be followed by whoever pushes the ball: the law that tracks a plan, without any planning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffuser_core.envs.goals import GoalError
from diffuser_core.envs.maze_layout import CHANNELS, FORCES, GOAL_RADIUS, TICK, MazeLayout
from diffuser_core.motion import Observation
from diffuser_core.trajectory import Plan

__all__ = ['DAMPING', 'GAIN', 'MazeDecision', 'MazeGoal', 'MazeMotion', 'check_goal']

GAIN, DAMPING = 20.0, 2.0
"""Force per metre and per metre a second off the plan, shares of the largest force."""


@dataclass(frozen=True)
class MazeGoal:
    """Where the ball shall be [m]."""

    x: float
    y: float


@dataclass(frozen=True)
class MazeDecision:
    """What to do from now on.

    actions  (ticks, 2) forces in [-1, 1] for the following ticks
    plan     the plan behind them; None where the ball is just stopped
    reached  whether the ball is in the goal
    """

    actions: NDArray[np.float64]
    plan: Plan | None
    reached: bool


def check_goal(maze: MazeLayout, goal: MazeGoal) -> None:
    """GoalError, one sentence, for a place where the ball cannot be."""
    if why := maze.why_not(np.array([goal.x, goal.y])):
        raise GoalError(why)


@dataclass(frozen=True)
class MazeMotion:
    """See `diffuser_core.motion.Motion`; without a plan the ball is stopped.

    goal       (x, y) [m], or None
    execution  how the plan is carried out: see `MazePolicy`
    tail       ticks of actions a decision holds
    """

    plan: Plan | None
    goal: tuple[float, float] | None
    execution: str
    tail: int
    waits: bool = False

    @property
    def shown(self) -> Plan | None:
        """The plan."""
        return self.plan

    def begun(self, now: float) -> MazeMotion:
        """The same with a plan that is followed from `now` on, if it has been waiting for that."""
        if not self.waits or self.plan is None:
            return self
        return replace(self, plan=replace(self.plan, t0=max(now, self.plan.t0)), waits=False)

    def decide(self, observation: Observation, now: float) -> MazeDecision:
        """Forces for the following ticks from the state (channel name -> value) at time `now` [s]."""
        state = np.array([observation[name] for name in CHANNELS])
        plan, goal = self.plan, self.goal
        reached = goal is not None and bool(np.hypot(*(state[:2] - goal)) <= GOAL_RADIUS)
        if goal is None or plan is None:
            actions = np.zeros((self.tail, 2))
            actions[0] = np.clip(-DAMPING * state[2:], -1.0, 1.0)
            return MazeDecision(actions, None, reached)
        places, speeds, forces = (plan.channels.indices(names) for names in (CHANNELS[:2], CHANNELS[2:], FORCES))
        ahead = plan.at(now + TICK * np.arange(1, self.tail + 1))
        actions = np.clip(ahead[:, forces], -1.0, 1.0)
        if self.execution == 'actions':
            actions[0] = np.clip(plan.at(np.array([now]))[0, forces], -1.0, 1.0)
        else:
            gain, damping = (1.0, 1.0) if self.execution == 'paper' else (GAIN, DAMPING)
            force = gain * (ahead[0, places] - state[:2]) + damping * (ahead[0, speeds] - state[2:])
            if self.execution == 'states':
                force += plan.at(np.array([now]))[0, forces]
            actions[0] = np.clip(force, -1.0, 1.0)
        return MazeDecision(actions, plan, reached)
