"""Sends commands to the arm and knows what the arm is told at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import GripperCommand
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_ros.conversions import gripper_command, joint_trajectory
from diffuser_ros.qos import COMMAND_QOS
from diffuser_ros.safety import Commanded

__all__ = ['Command', 'Commander']


@dataclass(frozen=True)
class Command:
    """What the arm was told.

    joints  (points, 7), where to be after 1, 2, ... steps [rad]
    start   (7,), where the arm was at `stamp` [rad]
    close   whether the gripper shall be closed
    sent    when it went out [s], steady clock
    now     the same as time for the policy [s], which stands still while the arm is held
    """

    joints: np.ndarray
    start: np.ndarray
    close: bool
    stamp: Time
    sent: float
    now: float = 0.0


class Commander:
    """Publishes on `command` and `gripper_command` and keeps the last command.

    step_dt    seconds between the points of a command
    lock_step  the arm does one step a command and then waits, instead of following the points by the clock
    brake      a command of so many points that brings the arm to rest from how it moves
    """

    def __init__(self, node: Node, step_dt: float, *, lock_step: bool, brake: Callable[[Commanded, int], np.ndarray]) -> None:
        self.last: Command | None = None
        self._brake = brake
        self._step_dt = step_dt
        self._lock_step = lock_step
        self._arm = node.create_publisher(JointTrajectory, 'command', COMMAND_QOS)
        self._gripper = node.create_publisher(GripperCommand, 'gripper_command', COMMAND_QOS)

    def close(self, node: Node) -> None:
        """Publish no more."""
        node.destroy_publisher(self._arm)
        node.destroy_publisher(self._gripper)

    def send(self, joints: np.ndarray, start: np.ndarray, close: bool, stamp: Time, now: float = 0.0) -> None:
        """Publish a command and keep it."""
        self._arm.publish(joint_trajectory(JOINT_NAMES, joints, start, self._step_dt, stamp))
        self._gripper.publish(gripper_command(close, stamp))
        self.last = Command(joints, start, close, stamp, time.monotonic(), now)

    def send_again(self, command: Command) -> None:
        """Publish an earlier command once more."""
        self.send(command.joints, command.start, command.close, command.stamp, command.now)

    def steps_followed(self, command: Command) -> int:
        """Steps of `command` that the arm has begun by now."""
        elapsed = 0.0 if self._lock_step else time.monotonic() - command.sent
        return min(1 + int(elapsed / self._step_dt), len(command.joints))

    def hold(self, command: Command, stamp: Time, now: float = 0.0) -> None:
        """Stop the arm where the earlier `command` has it at this moment, or soon after if it has to be braked."""
        step = self.steps_followed(command) - 1
        joints = command.joints[step]
        moving = Commanded.along(command.start, command.joints, self._step_dt, (step + 1) * self._step_dt)
        self.send(self._brake(moving, len(command.joints)), joints, command.close, stamp, now)
