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
from diffuser_ros.parameters import TAIL
from diffuser_ros.safety import limit_joints
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
        self.commander = Commander(node, period, lock_step=lock_step)

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

    def send(self, decision: Decision, observation: Mapping[str, float], stamp: Time) -> int:
        """Clamped to the joint limits and to `max_joint_speed`."""
        measured = np.array([observation[name] for name in JOINT_NAMES])
        joints, clamped = limit_joints(decision.joints, measured, lower=JOINT_LOWER, upper=JOINT_UPPER,
                                       max_step=self._node.get_parameter('max_joint_speed').value * self._period)
        self.commander.send(joints, measured, bool(decision.gripper[0]), stamp)
        return clamped

    def progress(self, decision: Decision) -> tuple[int, str]:
        """The move being made."""
        if decision.subgoal is None:
            return PlannerStats.OK, 'holding: the plan that was drawn builds nothing higher, another one is drawn'
        return PlannerStats.OK, f'building {format_relation(decision.subgoal)}'

    def place(self, observation: Mapping[str, float]) -> None:
        """An arm moves in space: its plans are not drawn as lines on the ground."""
