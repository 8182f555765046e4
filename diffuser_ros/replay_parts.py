"""How the planner node does what a run log says, for replaying it: its policy, goals and safety filter, without ROS running."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from diffuser_msgs.srv import SetGoal
from numpy.typing import ArrayLike

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_NAMES, JOINT_UPPER
from diffuser_core.envs.maze_layout import FORCES
from diffuser_ros.parameters import PlannerParameters
from diffuser_ros.replay import Prepare
from diffuser_ros.robots.gym import MazeRobot, limit_actions
from diffuser_ros.safety import limit_joints

__all__ = ['make_goal', 'make_policy', 'make_prepare']


def make_policy(parameters: Mapping[str, Any]) -> Any:
    """The node's policy; StartError if it cannot be made here, TypeError for parameters that this version does not have."""
    return load_policy(PlannerParameters(**parameters))


def make_goal(goal: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
    """The goal from the fields of a SetGoal request; GoalError if the robot takes no such goal."""
    return robot_for(PlannerParameters(**parameters)).goal(SetGoal.Request(**goal))


def make_prepare(parameters: Mapping[str, Any]) -> Prepare:
    """The safety filter. Commands are of an arm rows of joints and gripper (points, 8), of a ball in a maze the forces (2,)."""
    settings = PlannerParameters(**parameters)
    max_step = settings.max_joint_speed / settings.tick_rate

    def arm(decision: Any, observation: Mapping[str, float], now: float) -> ArrayLike:
        measured = np.array([observation[name] for name in JOINT_NAMES])
        joints, _ = limit_joints(decision.joints, measured, lower=JOINT_LOWER, upper=JOINT_UPPER, max_step=max_step)
        return np.column_stack([joints, decision.gripper])

    def ball(decision: Any, observation: Mapping[str, float], now: float) -> ArrayLike:
        return limit_actions(decision.actions, len(FORCES))[0]

    return ball if isinstance(robot_for(settings), MazeRobot) else arm
