"""The Kuka arm with its blocks: joint and object states in, joint trajectory and gripper command out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import ObjectStates, PlannerStats
from diffuser_msgs.srv import SetGoal
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import JointState

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_NAMES, JOINT_UPPER, planar_tip
from diffuser_core.envs.stacking import BLOCKS, format_relation
from diffuser_core.envs.stacking_features import cartesian
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_motion import Decision, StackingMotion
from diffuser_core.trajectory import Channels
from diffuser_ros import conversions
from diffuser_ros.commander import Command, Commander
from diffuser_ros.markers import Scene
from diffuser_ros.parameters import TAIL, StartError
from diffuser_ros.robot_description import DescriptionError, limits_from_urdf
from diffuser_ros.safety import Commanded, Filtered, Limits, SafetyFilter
from diffuser_ros.state_buffer import State, StateBuffer

__all__ = ['KukaRobot']

FASTEST = 10.0
"""No joint of the arm moves faster than this, whatever it is told [rad/s]: a state that says so is wrong."""


class KukaRobot:
    """See `Robot`."""

    name = 'kuka'
    command_names = (*JOINT_NAMES, 'gripper')
    state_tolerance = 0.3
    topics = {'joint_states': JointState, 'object_states': ObjectStates}
    paced_by_states = False

    commander: Commander

    def __init__(self) -> None:
        self.states = StateBuffer()

    def learn(self, channels: Channels) -> None:
        """All names are known."""

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
        return self._filter().filter(decision.joints, measured, self._period, self._commanded(measured, now))

    def send(self, decision: Decision, observation: Mapping[str, float], now: float, stamp: Time) -> Filtered:
        """Joints and gripper."""
        safe = self.prepare(decision, observation, now)
        measured = np.array([observation[name] for name in JOINT_NAMES])
        before = self._commanded(measured, now)
        self.commander.send(safe.points, measured if before is None else before.position, bool(decision.gripper[0]), stamp, now)
        return safe

    def numbers(self) -> NDArray[np.float64]:
        """Joints and gripper, (1 + points, 8); the first row is where the arm was told to be when the command began."""
        last = self.commander.last
        if last is None:
            return np.empty((0, len(self.command_names)))
        return np.column_stack([np.vstack([last.start, last.joints]), np.full(1 + len(last.joints), float(last.close))])

    def restore(self, numbers: NDArray[np.float64], now: float) -> None:
        """The inverse of `numbers`."""
        rows = numbers.reshape(-1, len(self.command_names))
        self.commander.last = Command(rows[1:, :-1], rows[0, :-1], bool(rows[0, -1]), Time(), 0.0, now)

    def _commanded(self, measured: np.ndarray, now: float) -> Commanded | None:
        """Where the arm is told to be at `now`; None if it was not told anything, or was carried off: then it goes on from where
        it is `measured` to be."""
        last = self.commander.last
        if last is None:
            return None
        told = Commanded.along(last.start, last.joints, self._period, now - last.now)
        return told if np.abs(told.position - measured).max() <= self._filter().limits.jump else None

    def _braked(self, moving: Commanded, points: int) -> np.ndarray:
        """The shortest stop within the limits."""
        return self._filter().stop(moving, points, self._period)

    def max_speeds(self) -> dict[str, float]:
        """Of the joints."""
        return dict.fromkeys(JOINT_NAMES, FASTEST)

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

    def scene(self, motion: StackingMotion, observation: Mapping[str, float], goal: StackingGoal) -> Scene:
        """The way of the tip, in space."""
        tip = cartesian(planar_tip(np.array([observation[name] for name in JOINT_NAMES])))
        plan = np.empty((0, 3)) if motion.plan is None else cartesian(motion.plan.values[:, motion.tip])
        return Scene(tip, plan)
