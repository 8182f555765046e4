"""A Gymnasium robot in a maze: a named state vector in, a named vector of forces out, goals as places."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import NamedVector, PlannerStats
from diffuser_msgs.srv import SetGoal
from numpy.typing import NDArray
from rclpy.node import Node

from diffuser_core.envs.goals import GoalError
from diffuser_core.envs.maze_layout import CHANNELS
from diffuser_core.envs.maze_layout import FORCES as ACTIONS
from diffuser_core.envs.maze_motion import MazeDecision, MazeGoal, MazeMotion
from diffuser_core.trajectory import Channels
from diffuser_ros.conversions import StateError
from diffuser_ros.markers import Scene
from diffuser_ros.qos import COMMAND_QOS
from diffuser_ros.safety import ActionFilter, Filtered
from diffuser_ros.vectors import named_vector, values_by_name

__all__ = ['MazeRobot', 'VectorCommand', 'VectorCommander', 'VectorState']

TOPIC = 'state'
GOAL_CHANNELS = CHANNELS[:2]
MAX_SPEED = 5.0
"""The mazes clip the ball's velocity to this [m/s]."""


@dataclass(frozen=True)
class VectorState:
    """See `Moment`."""

    vector: NamedVector
    stamp: Time
    arrival: float


class VectorBuffer:
    """Keeps the newest state vector."""

    def __init__(self) -> None:
        self.newest: VectorState | None = None

    def add(self, topic: str, message: NamedVector, arrival: float) -> VectorState:
        """Take a message in, that arrived at `arrival` [s]; the state that it is."""
        self.newest = VectorState(message, message.header.stamp, arrival)
        return self.newest

    def lacking(self) -> str:
        """Why there is no state yet, as one sentence."""
        return f'no state received yet on {TOPIC}'


@dataclass(frozen=True)
class VectorCommand:
    """An action (actions,) that the robot was told, the stamp of the state it answers, and when it went out [s], steady clock."""

    action: NDArray[np.float64]
    stamp: Time
    sent: float


class VectorCommander:
    """Publishes actions on `command` and keeps the last one. To hold is to command `neutral`: no force."""

    def __init__(self, node: Node, names: Sequence[str], neutral: NDArray[np.float64]) -> None:
        self.last: VectorCommand | None = None
        self._names, self._neutral = tuple(names), neutral
        self._publisher = node.create_publisher(NamedVector, 'command', COMMAND_QOS)

    def close(self, node: Node) -> None:
        """Publish no more."""
        node.destroy_publisher(self._publisher)

    def send(self, action: NDArray[np.float64], stamp: Time) -> None:
        """Publish an action and keep it."""
        self._publisher.publish(named_vector(self._names, action, stamp))
        self.last = VectorCommand(action, stamp, time.monotonic())

    def send_again(self, command: VectorCommand) -> None:
        """Publish an earlier command once more."""
        self.send(command.action, command.stamp)

    def steps_followed(self, command: VectorCommand) -> int:
        """A command is one step."""
        return 1

    def hold(self, command: VectorCommand, stamp: Time, now: float = 0.0) -> None:
        """Apply no force from now on."""
        self.send(self._neutral, stamp)


class MazeRobot:
    """See `Robot`."""

    name = 'gym'
    command_names = ACTIONS
    state_tolerance = 0.25
    topics = {TOPIC: NamedVector}
    paced_by_states = True

    commander: VectorCommander

    def __init__(self) -> None:
        self.states = VectorBuffer()

    def learn(self, channels: Channels) -> None:
        """All names are known."""

    def open(self, node: Node, period: float, *, lock_step: bool) -> None:
        """The publisher of forces."""
        self._node = node
        self.commander = VectorCommander(node, ACTIONS, np.zeros(len(ACTIONS)))

    def close(self, node: Node) -> None:
        """Publish no more."""
        self.commander.close(node)

    def goal(self, request: SetGoal.Request) -> MazeGoal:
        """A place: task 'state' with the channels x and y."""
        channels, values = list(request.channels), list(request.values)
        if request.task != 'state' or request.relations:
            asked = f'{request.task!r} with relations' if request.relations else repr(request.task)
            raise GoalError(f"this robot takes places as goals: use the task 'state' with channels and values instead of {asked}")
        if len(channels) != len(values):
            raise GoalError(f'channels and values must be equally many, got {len(channels)} and {len(values)}')
        if sorted(channels) != sorted(GOAL_CHANNELS):
            raise GoalError(f'a goal has the channels {", ".join(GOAL_CHANNELS)}, got {", ".join(channels) or "none"}')
        for name, value in zip(channels, values):
            if not math.isfinite(value):
                raise GoalError(f'the value {value} of channel {name} is not a finite number')
        return MazeGoal(**dict(zip(channels, values)))

    def describe_goal(self, goal: MazeGoal) -> str:
        """The place."""
        return f'x {goal.x:.2f}, y {goal.y:.2f}'

    def observation(self, state: VectorState) -> dict[str, float]:
        """Place and velocity; channels that are not asked for are ignored."""
        try:
            found = values_by_name(state.vector, TOPIC)
        except ValueError as error:
            raise StateError(str(error)) from None
        missing = [name for name in CHANNELS if name not in found]
        if missing:
            raise StateError(f'{TOPIC} lacks the channel {", ".join(missing)}')
        return {name: found[name] for name in CHANNELS}

    def resting(self, observation: Mapping[str, float]) -> MazeMotion:
        """The ball is stopped."""
        return MazeMotion(None, None, 'states', 1)

    def prepare(self, decision: MazeDecision, observation: Mapping[str, float], now: float) -> Filtered:
        """The first action clamped to [-1, 1] and to the largest change from the last one."""
        last = self.commander.last
        safety = ActionFilter(ACTIONS, change=self._node.get_parameter('max_action_change').value)
        return safety.filter(np.asarray(decision.actions)[:1], None if last is None else last.action)

    def send(self, decision: MazeDecision, observation: Mapping[str, float], now: float, stamp: Time) -> Filtered:
        """The first action."""
        safe = self.prepare(decision, observation, now)
        self.commander.send(safe.points[0], stamp)
        return safe

    def numbers(self) -> NDArray[np.float64]:
        """The forces, (2,)."""
        return np.empty(0) if self.commander.last is None else self.commander.last.action

    def restore(self, numbers: NDArray[np.float64], now: float) -> None:
        """The inverse of `numbers`."""
        self.commander.last = VectorCommand(numbers, Time(), 0.0)

    def max_speeds(self) -> dict[str, float]:
        """Of the places."""
        return dict.fromkeys(GOAL_CHANNELS, MAX_SPEED)

    def progress(self, decision: MazeDecision) -> tuple[int, str]:
        """On the way."""
        return PlannerStats.OK, 'on the way'

    def scene(self, motion: MazeMotion, observation: Mapping[str, float], goal: MazeGoal) -> Scene:
        """On the ground."""
        plan = np.empty((0, 2)) if motion.plan is None else motion.plan.values[:, motion.plan.channels.indices(GOAL_CHANNELS)]
        return Scene(np.array([observation[name] for name in GOAL_CHANNELS]), plan, np.array([goal.x, goal.y]),
                     () if motion.candidates is None else tuple(motion.candidates))
