"""A MuJoCo robot that runs: a named state vector in, a named vector of torques out; its one goal is to run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import NamedVector, PlannerStats
from diffuser_msgs.srv import SetGoal
from numpy.typing import NDArray
from rclpy.node import Node

from diffuser_core.envs.goals import GoalError
from diffuser_core.envs.locomotion_motion import LocomotionDecision, LocomotionMotion, RunGoal
from diffuser_core.trajectory import RETURN, Channels
from diffuser_ros.conversions import StateError
from diffuser_ros.markers import Scene
from diffuser_ros.robots.gym import TOPIC, VectorBuffer, VectorCommand, VectorCommander, VectorState
from diffuser_ros.safety import ActionFilter, Filtered
from diffuser_ros.vectors import values_by_name

__all__ = ['RunningRobot']

NUMBERED = 'obs.'
"""How channels begin that have no name but their number in the environment's observation."""


class RunningRobot:
    """See `Robot`."""

    name = 'runner'
    command_names: tuple[str, ...] = ()
    state_tolerance = 0.0
    topics = {TOPIC: NamedVector}
    paced_by_states = True

    commander: VectorCommander

    def __init__(self) -> None:
        self.states = VectorBuffer()
        self._observed: tuple[str, ...] = ()

    def learn(self, channels: Channels) -> None:
        """What is observed, and which torques there are."""
        self._observed = tuple(name for name in channels.observations if name != RETURN)
        self.command_names = channels.names[:channels.actions]

    def open(self, node: Node, period: float, *, lock_step: bool) -> None:
        """The publisher of torques."""
        self._node = node
        self.commander = VectorCommander(node, self.command_names, np.zeros(len(self.command_names)))

    def close(self, node: Node) -> None:
        """Publish no more."""
        self.commander.close(node)

    def goal(self, request: SetGoal.Request) -> RunGoal:
        """The task 'run'."""
        if request.task != 'run' or request.relations or request.channels or request.values:
            raise GoalError(f"this robot runs, and does nothing else: use the task 'run', alone, instead of {request.task!r}")
        return RunGoal()

    def describe_goal(self, goal: RunGoal) -> str:
        """To run."""
        return 'run'

    def observation(self, state: VectorState) -> dict[str, float]:
        """Every observed channel; others are ignored, but for numbered ones of the same kind, which another robot has."""
        try:
            found = values_by_name(state.vector, TOPIC)
        except ValueError as error:
            raise StateError(str(error)) from None
        missing = [name for name in self._observed if name not in found]
        if missing:
            raise StateError(f'{TOPIC} lacks the channel {", ".join(missing)}')
        if any(name.startswith(NUMBERED) for name in self._observed):
            unknown = [name for name in found if name.startswith(NUMBERED) and name not in self._observed]
            if unknown:
                raise StateError(f'{TOPIC} is of another robot than the planner, which does not know {", ".join(unknown)}')
        return {name: found[name] for name in self._observed}

    def resting(self, observation: Mapping[str, float]) -> LocomotionMotion:
        """No torques."""
        return LocomotionMotion(None, len(self.command_names), 1)

    def prepare(self, decision: LocomotionDecision, observation: Mapping[str, float], now: float) -> Filtered:
        """The first torques clamped to [-1, 1] and to the largest change from the last ones."""
        last = self.commander.last
        safety = ActionFilter(self.command_names, change=self._node.get_parameter('max_action_change').value)
        return safety.filter(np.asarray(decision.actions)[:1], None if last is None else last.action)

    def send(self, decision: LocomotionDecision, observation: Mapping[str, float], now: float, stamp: Time) -> Filtered:
        """The first torques."""
        safe = self.prepare(decision, observation, now)
        self.commander.send(safe.points[0], stamp)
        return safe

    def numbers(self) -> NDArray[np.float64]:
        """The torques, (actions,)."""
        return np.empty(0) if self.commander.last is None else self.commander.last.action

    def restore(self, numbers: NDArray[np.float64], now: float) -> None:
        """The inverse of `numbers`."""
        self.commander.last = VectorCommand(numbers, Time(), 0.0)

    def max_speeds(self) -> dict[str, float]:
        """Nothing is known of what the numbers are."""
        return {}

    def progress(self, decision: LocomotionDecision) -> tuple[int, str]:
        """Running."""
        return PlannerStats.OK, 'running'

    def scene(self, motion: LocomotionMotion, observation: Mapping[str, float], goal: RunGoal) -> Scene | None:
        """Its numbers do not say where it is."""
        return None
