"""How the planner node does what a run log says, for replaying it: its session, goals and safety filter, without ROS running."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.srv import SetGoal
from numpy.typing import ArrayLike, NDArray

from diffuser_core.envs.policy_settings import robot_of
from diffuser_core.trajectory import Channels
from diffuser_ros.inference import Session
from diffuser_ros.parameters import PlannerParameters
from diffuser_ros.robots import ROBOT_KINDS, Robot

__all__ = ['NodeFilter', 'make_goal', 'make_prepare', 'make_session']


def make_session(parameters: Mapping[str, Any]) -> Session:
    """The node's session; ValueError if it cannot be made here, TypeError for parameters that this version does not have."""
    from diffuser_ros.sessions import make_session as make  # loads torch

    return make(PlannerParameters(**parameters).session)[0]


def make_goal(goal: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
    """The goal from the fields of a SetGoal request; GoalError if the robot takes no such goal."""
    return _robot(PlannerParameters(**parameters)).goal(SetGoal.Request(**goal))


def make_prepare(parameters: Mapping[str, Any]) -> NodeFilter:
    """The robot's filter by these parameters."""
    return NodeFilter(PlannerParameters(**parameters))


class NodeFilter:
    """A robot that is told as in the node, and whose commands go nowhere. See `replay.Prepare`."""

    def __init__(self, settings: PlannerParameters) -> None:
        self._settings = settings
        self._robot = _robot(settings)
        publisher = SimpleNamespace(publish=lambda message: None)
        node: Any = SimpleNamespace(create_publisher=lambda *_: publisher,
                                    get_parameter=lambda name: SimpleNamespace(value=getattr(self._settings, name)))
        self._robot.learn(channels_of(settings))
        self._robot.open(node, 1.0 / settings.tick_rate, lock_step=settings.lock_step)

    def change(self, parameters: Mapping[str, Any]) -> None:
        """Filter by these parameters from now on."""
        self._settings = PlannerParameters(**parameters)

    def __call__(self, decision: Any, observation: Mapping[str, float], now: float) -> ArrayLike:
        """The numbers as sent."""
        self._robot.send(decision, observation, now, Time())
        return self._robot.numbers()

    def held(self, command: NDArray[np.float64], now: float) -> None:
        """The robot was told to hold."""
        self._robot.restore(command, now)

    def forget(self) -> None:
        """Nothing has been commanded any more."""
        self._robot.commander.last = None


def channels_of(settings: PlannerParameters) -> Channels:
    """Of the checkpoint in use."""
    from diffuser_core.checkpoint import Checkpoint  # loads torch

    return Checkpoint.load(settings.folder).channels


def _robot(settings: PlannerParameters) -> Robot:
    return ROBOT_KINDS[robot_of(settings.policy)]()
