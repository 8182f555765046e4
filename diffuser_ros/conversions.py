"""Messages to numbers and back. Nothing here keeps state or talks to ROS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import GripperCommand, ObjectStates
from diffuser_msgs.msg import Plan as PlanMessage
from diffuser_msgs.srv import SetGoal
from geometry_msgs.msg import Point, Pose, Quaternion
from numpy.typing import ArrayLike
from rclpy.duration import Duration
from sensor_msgs.msg import JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.stacking import BLOCKS
from diffuser_core.envs.stacking_goal import GoalError, StackingGoal
from diffuser_core.trajectory import Plan

__all__ = ['StateError', 'gripper_command', 'joint_state', 'joint_trajectory', 'later', 'nanoseconds', 'object_states',
           'observation', 'plan_message', 'requested_goal']

POSE_FIELDS = ('x', 'y', 'z', 'qx', 'qy', 'qz', 'qw')


class StateError(ValueError):
    """A state that cannot be planned from; the message is one sentence that names the topic and what is wrong."""


def nanoseconds(stamp: Time) -> int:
    """A header stamp as one number [ns]."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def later(stamp: Time, seconds: float) -> Time:
    """The stamp so many seconds later, or earlier if they are negative, but not before 0."""
    sec, nanosec = divmod(max(0, nanoseconds(stamp) + round(1e9 * seconds)), 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)


def observation(joints: JointState, objects: ObjectStates, *, joint_names: Sequence[str] = JOINT_NAMES,
                blocks: Sequence[str] = BLOCKS) -> dict[str, float]:
    """The robot's state as channel name -> value: joints [rad] by name, '<block>.x|y|z' [m], '<block>.qx|qy|qz|qw',
    '<block>.attached' 0 or 1.

    Joints and objects that are not asked for are ignored, the order in the messages does not matter and velocities may
    be absent. StateError for arrays of different length, a repeated name, a missing joint or block, a non-finite value.
    """
    _same_lengths('joint_states', joints.name, position=joints.position)
    if len(joints.velocity) not in (0, len(joints.name)):
        _same_lengths('joint_states', joints.name, velocity=joints.velocity)
    _same_lengths('object_states', objects.names, poses=objects.poses, attached=objects.attached)
    values = {}
    positions = dict(zip(joints.name, joints.position, strict=True))
    for name in joint_names:
        if name not in positions:
            raise StateError(f'joint_states lacks the joint {name}')
        values[name] = _finite(positions[name], 'joint_states', name)
    found = dict(zip(objects.names, zip(objects.poses, objects.attached, strict=True), strict=True))
    for block in blocks:
        if block not in found:
            raise StateError(f'object_states lacks the block {block}')
        pose, attached = found[block]
        p, q = pose.position, pose.orientation
        for field, value in zip(POSE_FIELDS, (p.x, p.y, p.z, q.x, q.y, q.z, q.w), strict=True):
            values[f'{block}.{field}'] = _finite(value, 'object_states', f'{block}.{field}')
        values[f'{block}.attached'] = float(attached)
    return values


def joint_state(names: Sequence[str], positions: ArrayLike, velocities: ArrayLike | None, stamp: Time) -> JointState:
    """JointState from positions (n,) [rad] and velocities (n,) [rad/s], or None if they are not known."""
    return JointState(header=Header(stamp=stamp), name=list(names),
                      position=np.asarray(positions, dtype=np.float64).tolist(),
                      velocity=[] if velocities is None else np.asarray(velocities, dtype=np.float64).tolist())


def object_states(names: Sequence[str], poses: ArrayLike, attached: ArrayLike, stamp: Time, *,
                  frame_id: str = 'world') -> ObjectStates:
    """ObjectStates from poses (n, 7), rows x, y, z [m], quaternion x, y, z, w, and attached (n,), true or above 0.5."""
    rows = np.asarray(poses, dtype=np.float64).tolist()
    return ObjectStates(
        header=Header(stamp=stamp, frame_id=frame_id), names=list(names),
        poses=[Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))
               for x, y, z, qx, qy, qz, qw in rows],
        attached=(np.asarray(attached, dtype=np.float64) > 0.5).tolist())


def joint_trajectory(names: Sequence[str], joints: np.ndarray, start: np.ndarray, step_dt: float,
                     stamp: Time) -> JointTrajectory:
    """Command to be at `joints` (points, n) [rad] after 1, 2, ... times `step_dt` [s], from `start` (n,) at `stamp`.

    Velocities are finite differences, central where both neighbours are known; the last is zero: the arm stops there.
    """
    velocities = np.gradient(np.vstack([start, joints]), step_dt, axis=0)[1:]
    velocities[-1] = 0.0
    rows = zip(joints.tolist(), velocities.tolist(), strict=True)
    points = [JointTrajectoryPoint(positions=position, velocities=velocity,
                                   time_from_start=Duration(nanoseconds=round(1e9 * n * step_dt)).to_msg())
              for n, (position, velocity) in enumerate(rows, start=1)]
    return JointTrajectory(header=Header(stamp=stamp), joint_names=list(names), points=points)


def gripper_command(close: bool, stamp: Time) -> GripperCommand:
    """GripperCommand: close (true) or open."""
    return GripperCommand(header=Header(stamp=stamp), close=bool(close))


def plan_message(plan: Plan, goal_id: str, stamp: Time) -> PlanMessage:
    """The plan as a message; `stamp` is the time of its first row."""
    return PlanMessage(header=Header(stamp=stamp), goal_id=goal_id, channels=list(plan.channels.names),
                       horizon=plan.horizon, step_dt=plan.step_dt, values=plan.values.ravel().tolist())


def requested_goal(request: SetGoal.Request) -> StackingGoal:
    """The goal that a SetGoal request asks for; GoalError, one sentence, if it is none that this robot takes."""
    channels, values = request.channels, request.values
    if len(channels) != len(values):
        raise GoalError(f'channels and values must be equally many, got {len(channels)} and {len(values)}')
    for name, value in zip(channels, values, strict=True):
        if not math.isfinite(value):
            raise GoalError(f'the value {value} of channel {name} is not a finite number')
    if request.task == 'state':
        raise GoalError("this robot takes block goals: use the task 'stack' or 'relations' instead of 'state'")
    if channels:
        raise GoalError(f'the task {request.task!r} takes no channels, got {", ".join(channels)}')
    return StackingGoal.parse(request.task, request.relations)


def _same_lengths(topic: str, names: Sequence[str], **arrays: Sequence[object]) -> None:
    for field, array in arrays.items():
        if len(array) != len(names):
            raise StateError(f'{topic} has {len(names)} names and {len(array)} entries in {field}')
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise StateError(f'{topic} names {", ".join(repeated)} more than once')


def _finite(value: float, topic: str, name: str) -> float:
    if not math.isfinite(value):
        raise StateError(f'{topic}: {name} is {value}, not a finite number')
    return value
