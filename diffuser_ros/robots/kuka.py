"""The Kuka arm with its blocks: joint and object states in, joint trajectory and gripper command out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import ObjectStates, PlannerStats
from diffuser_msgs.srv import SetGoal
from rclpy.node import Node
from sensor_msgs.msg import JointState

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_NAMES, JOINT_UPPER
from diffuser_core.envs.stacking import BLOCKS, format_relation
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_motion import Decision, StackingMotion
from diffuser_ros import conversions
from diffuser_ros.commander import Commander
from diffuser_ros.parameters import TAIL, StartError
from diffuser_ros.robot_description import DescriptionError, limits_from_urdf
from diffuser_ros.safety import Commanded, Filtered, Limits, SafetyFilter, UnsafeCommand
from diffuser_ros.state_buffer import State, StateBuffer

__all__ = ['KukaRobot']


class KukaRobot:
    """See `Robot`."""

    name = 'kuka'
    topics = {'joint_states': JointState, 'object_states': ObjectStates}
    paced_by_states = False

    commander: Commander

    def __init__(self) -> None:
        self.states = StateBuffer()

    def open(self, node: Node, period: float, *, lock_step: bool) -> None:
        """The arm's publishers."""
        self._node, self._period = node, period
        self._made_for: tuple[float, float, float] | None = None
        try:
            self._filter()
        except DescriptionError as error:
            raise StartError(str(error)) from error
        self.commander = Commander(node, period, lock_step=lock_step, brake=self._braked)

    def close(self, node: Node) -> None:
        """Publish no more."""
        self.commander.close(node)

    def goal(self, request: SetGoal.Request) -> StackingGoal:
        """'stack', or 'relations' with what shall stand."""
        return conversions.requested_goal(request)

    def describe_goal(self, goal: StackingGoal) -> str:
        """The relations, or the task."""
        return ', '.join(map(format_relation, goal.relations)) or goal.task

    def observation(self, state: State) -> dict[str, float]:
        """Joints and blocks."""
        return conversions.observation(state.joints, state.objects)

    def resting(self, observation: Mapping[str, float]) -> StackingMotion:
        """The arm stays where it is."""
        joints = np.array([observation[name] for name in JOINT_NAMES])
        held = any(observation[f'{block}.attached'] > 0.5 for block in BLOCKS)
        return StackingMotion(None, None, joints, held, False, None, np.zeros(0, dtype=int), 0, self._period, TAIL)

    def prepare(self, decision: Decision, observation: Mapping[str, float], now: float) -> Filtered:
        """The joints within the limits of position, speed, acceleration and jump."""
        measured = np.array([observation[name] for name in JOINT_NAMES])
        last = self.commander.last
        before = None if last is None else Commanded.along(last.start, last.joints, self._period, now - last.now)
        return self._filter().filter(decision.joints, measured, self._period, before)

    def send(self, decision: Decision, observation: Mapping[str, float], now: float, stamp: Time) -> Filtered:
        """Joints and gripper."""
        safe = self.prepare(decision, observation, now)
        measured = np.array([observation[name] for name in JOINT_NAMES])
        self.commander.send(safe.points, measured, bool(decision.gripper[0]), stamp, now)
        return safe

    def _braked(self, points: np.ndarray, moving: Commanded) -> np.ndarray:
        """A standstill that begins with a motion, as the limits allow it."""
        try:
            return self._filter().filter(points, moving.position, self._period, moving).points
        except UnsafeCommand:  # it cannot be braked within the limits: then it stands still at once
            return points

    def max_speeds(self) -> dict[str, float]:
        """Of the joints."""
        return dict(zip(JOINT_NAMES, self._filter().limits.velocity.tolist()))

    def _filter(self) -> SafetyFilter:
        """The filter by the parameters as they are now."""
        speed, acceleration, jump = (self._node.get_parameter(name).value for name in (
            'max_joint_speed', 'max_joint_acceleration', 'max_jump'))
        if self._made_for != (speed, acceleration, jump):
            text = self._node.get_parameter('robot_description').value
            if text:
                limits = limits_from_urdf(text, JOINT_NAMES, jump=jump, acceleration=acceleration, velocity=speed)
            else:
                all_ = np.ones(len(JOINT_NAMES))
                limits = Limits(tuple(JOINT_NAMES), JOINT_LOWER, JOINT_UPPER, speed * all_, acceleration * all_, jump)
            self._safety, self._made_for = SafetyFilter(limits), (speed, acceleration, jump)
        return self._safety

    def progress(self, decision: Decision) -> tuple[int, str]:
        """The move being made."""
        if decision.subgoal is None:
            return PlannerStats.OK, 'holding: the plan that was drawn builds nothing higher, another one is drawn'
        return PlannerStats.OK, f'building {format_relation(decision.subgoal)}'

    def place(self, observation: Mapping[str, float]) -> None:
        """An arm moves in space: its plans are not drawn as lines on the ground."""
