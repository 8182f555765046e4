"""What the planner node asks of a robot: where its state comes from, what a goal is, how a decision becomes a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.srv import SetGoal
from numpy.typing import NDArray
from rclpy.node import Node

from diffuser_core.motion import Motion
from diffuser_core.trajectory import Channels
from diffuser_ros.markers import Scene
from diffuser_ros.safety import Filtered

__all__ = ['Buffer', 'Moment', 'Robot', 'Sender', 'Sent']


class Moment(Protocol):
    """A state of the robot: the stamp of its messages, and when it arrived [s], steady clock."""

    @property
    def stamp(self) -> Time: ...
    @property
    def arrival(self) -> float: ...


class Buffer(Protocol):
    """Collects the messages of the state topics and keeps the newest state."""

    @property
    def newest(self) -> Any: ...
    def add(self, topic: str, message: Any, arrival: float) -> Any: ...
    def lacking(self) -> str: ...


class Sent(Protocol):
    """A command that went out: the stamp of the state that it answers, and when it did [s], steady clock."""

    @property
    def stamp(self) -> Time: ...
    @property
    def sent(self) -> float: ...


class Sender(Protocol):
    """Publishes commands and knows what the robot is told at any moment; `last` is None while nothing is to be held."""

    last: Any

    def send_again(self, command: Any) -> None: ...
    def steps_followed(self, command: Any) -> int: ...
    def close(self, node: Node) -> None: ...
    def hold(self, command: Any, stamp: Time, now: float) -> None: ...


class Robot(Protocol):
    """One kind of robot.

    name             as the parameter `robot` has it
    state_tolerance  what a watched channel may move beside what its speed allows, for stamps are not exact: its speed in 50 ms
    command_names    what the columns of `numbers` are
    topics           message type of every state topic, by its name
    states           the newest state
    commander        made by `open`
    paced_by_states  real time: tick when a state arrives, since states come at the control rate; else by the node's clock
    """

    @property
    def name(self) -> str: ...
    @property
    def state_tolerance(self) -> float: ...
    @property
    def command_names(self) -> Sequence[str]: ...
    @property
    def topics(self) -> Mapping[str, type]: ...
    @property
    def states(self) -> Buffer: ...
    @property
    def commander(self) -> Sender: ...
    @property
    def paced_by_states(self) -> bool: ...

    def learn(self, channels: Channels) -> None:
        """The channels of the plans: for robots whose names they alone tell."""

    def open(self, node: Node, period: float, *, lock_step: bool) -> None:
        """Make the publishers of commands on `node`, which ticks every `period` [s]; StartError if a limit cannot be used."""

    def close(self, node: Node) -> None:
        """Take back what `open` did."""

    def goal(self, request: SetGoal.Request) -> Any:
        """The goal that is asked for; GoalError, one sentence, if this robot takes no such goal."""

    def describe_goal(self, goal: Any) -> str:
        """A goal for people."""

    def observation(self, state: Any) -> dict[str, float]:
        """Channel name -> value; StateError, one sentence, if the state cannot be planned from."""

    def resting(self, observation: Mapping[str, float]) -> Motion:
        """What to follow until there is a plan."""

    def prepare(self, decision: Any, observation: Mapping[str, float], now: float) -> Filtered:
        """A decision checked and clamped to the limits, ready to be sent at `now`, the policy's time [s]; UnsafeCommand if no
        clamping makes it safe."""

    def send(self, decision: Any, observation: Mapping[str, float], now: float, stamp: Time) -> Filtered:
        """Prepare a decision and publish it; what was changed. UnsafeCommand, and nothing is sent, if it is not safe."""

    def numbers(self) -> NDArray[np.float64]:
        """The last command as numbers, rows of `command_names`."""

    def restore(self, numbers: NDArray[np.float64], now: float) -> None:
        """Take these `numbers` for the last command, sent at `now`, the policy's time [s]."""

    def max_speeds(self) -> Mapping[str, float]:
        """The largest speed of every channel whose state is to be watched [unit of the channel per second]."""

    def progress(self, decision: Any) -> tuple[int, str]:
        """The reason code of PlannerStats and the sentence for a decision that was sent and has not reached the goal."""

    def scene(self, motion: Any, observation: Mapping[str, float], goal: Any) -> Scene | None:
        """What there is to draw, if anything."""
