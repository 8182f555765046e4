"""Pairs the two state topics by their stamps."""

from __future__ import annotations

from dataclasses import dataclass

from builtin_interfaces.msg import Time
from diffuser_msgs.msg import ObjectStates
from sensor_msgs.msg import JointState

from diffuser_ros.conversions import nanoseconds

__all__ = ['State', 'StateBuffer']

TOPICS = ('joint_states', 'object_states')


@dataclass(frozen=True)
class State:
    """One instant of the robot and its blocks.

    stamp    the header stamp of both messages
    arrival  when the second of them arrived [s], steady clock
    """

    joints: JointState
    objects: ObjectStates
    stamp: Time
    arrival: float


class StateBuffer:
    """Keeps the newest instant for which both topics have spoken.

    A few unpaired messages are kept as well, since one topic may run ahead of the other.
    """

    UNPAIRED = 8

    def __init__(self) -> None:
        self.newest: State | None = None
        self._unpaired: dict[int, dict[str, JointState | ObjectStates]] = {}
        self._heard: set[str] = set()

    def add(self, topic: str, message: JointState | ObjectStates, arrival: float) -> State | None:
        """Take a message of `topic` in, that arrived at `arrival` [s]; the instant that it completes, if it does."""
        self._heard.add(topic)
        key = nanoseconds(message.header.stamp)
        instant = self._unpaired.setdefault(key, {})
        instant[topic] = message
        if len(instant) < len(TOPICS):
            while len(self._unpaired) > self.UNPAIRED:
                del self._unpaired[next(iter(self._unpaired))]
            return None
        del self._unpaired[key]
        joints, objects = (instant[name] for name in TOPICS)
        self.newest = State(joints, objects, message.header.stamp, arrival)
        return self.newest

    def lacking(self) -> str:
        """Why there is no state yet, as one sentence."""
        silent = [name for name in TOPICS if name not in self._heard]
        if silent:
            return f'no state received yet on {" / ".join(silent)}'
        return f'no state received yet: {" and ".join(TOPICS)} never carried the same header stamp'
