"""Messages to numbers and back, and the pairing of the two state topics."""

import math
import subprocess
import sys

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diffuser_msgs.srv import SetGoal

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.stacking import BLOCKS, CHANNELS
from diffuser_core.envs.stacking_goal import GoalError, StackingGoal
from diffuser_core.trajectory import Channels, Plan
from diffuser_ros.conversions import (
    StateError,
    gripper_command,
    joint_state,
    joint_trajectory,
    later,
    object_states,
    observation,
    plan_message,
    requested_goal,
)
from diffuser_ros.state_buffer import StateBuffer

STAMP = Time(sec=7, nanosec=250_000_000)


def messages(values=None, stamp=STAMP):
    """The two state messages of an observation (39,), by default 0.01, 0.02, ... with green held."""
    if values is None:
        values = np.arange(1, len(CHANNELS) + 1) / 100
        values[CHANNELS.index('red.attached')::8] = 0.0
        values[CHANNELS.index('green.attached')] = 1.0
    blocks = np.reshape(values[7:], (4, 8))
    return (joint_state(JOINT_NAMES, values[:7], np.zeros(7), stamp),
            object_states(BLOCKS, blocks[:, :7], blocks[:, 7], stamp))


def test_an_observation_survives_the_messages_whatever_their_order():
    joints, objects = messages()
    values = observation(joints, objects)
    assert tuple(values) == CHANNELS
    assert values['lbr_iiwa_joint_3'] == 0.03 and values['green.qw'] == 0.22
    assert values['green.attached'] == 1.0 and values['red.attached'] == 0.0
    for message, fields in ((joints, ('name', 'position')), (objects, ('names', 'poses', 'attached'))):
        for field in fields:
            setattr(message, field, list(getattr(message, field))[::-1])
    assert observation(joints, objects) == values


def test_velocities_may_be_absent_and_further_joints_and_objects_are_ignored():
    joints, objects = messages()
    expected = observation(joints, objects)
    more = joint_state([*JOINT_NAMES, 'finger'], [*joints.position, math.nan], None, STAMP)
    assert len(more.velocity) == 0
    assert observation(more, objects) == expected
    assert objects.header.frame_id == 'world' and objects.header.stamp == STAMP


def spoiled(field, change):
    joints, objects = messages()
    message = joints if hasattr(joints, field) else objects
    value = list(getattr(message, field))
    change(value)
    setattr(message, field, value)
    return joints, objects


def rename(index, name):
    return lambda names: names.__setitem__(index, name)


@pytest.mark.parametrize('field, change, said', [
    ('name', rename(2, 'elbow'), 'joint_states lacks the joint lbr_iiwa_joint_3'),
    ('names', rename(1, 'pink'), 'object_states lacks the block green'),
    ('position', lambda p: p.pop(), 'joint_states has 7 names and 6 entries in position'),
    ('velocity', lambda v: v.pop(), 'joint_states has 7 names and 6 entries in velocity'),
    ('poses', lambda p: p.pop(), 'object_states has 4 names and 3 entries in poses'),
    ('attached', lambda a: a.clear(), 'object_states has 4 names and 0 entries in attached'),
    ('position', rename(1, math.nan), 'joint_states: lbr_iiwa_joint_2 is nan, not a finite number'),
    ('poses', lambda p: setattr(p[3].position, 'z', math.inf), 'object_states: yellow.z is inf, not a finite number'),
    ('poses', lambda p: setattr(p[0].orientation, 'w', math.nan), 'object_states: red.qw is nan, not a finite number'),
    ('names', rename(1, 'red'), 'object_states names red more than once'),
])
def test_a_bad_state_is_one_sentence_that_names_topic_and_channel(field, change, said):
    with pytest.raises(StateError) as error:
        observation(*spoiled(field, change))
    assert str(error.value) == said


def test_a_command_has_times_positions_and_velocities_of_the_motion():
    """Of a uniformly accelerated motion central differences are exact."""
    dt, acceleration = 1 / 24, np.array([1.0, -2.0])
    times = dt * np.arange(13)
    path = 0.5 * times[:, None]**2 * acceleration
    message = joint_trajectory(['a', 'b'], path[1:], path[0], dt, STAMP)
    assert message.joint_names == ['a', 'b'] and message.header.stamp == STAMP and len(message.points) == 12
    elapsed = [p.time_from_start.sec + 1e-9 * p.time_from_start.nanosec for p in message.points]
    np.testing.assert_allclose(elapsed, times[1:], atol=1e-9)
    np.testing.assert_array_equal([p.positions for p in message.points], path[1:])
    velocities = np.array([p.velocities for p in message.points])
    np.testing.assert_allclose(velocities[:-1], times[1:-1, None] * acceleration, atol=1e-12)
    assert not velocities[-1].any()


def test_gripper_and_plan_messages():
    assert gripper_command(np.bool_(True), STAMP).close is True
    plan = Plan(np.arange(6.0).reshape(3, 2), Channels(('x', 'y'), ('m', 'm')), 1.5, 0.1, {})
    message = plan_message(plan, 'goal-3', STAMP)
    assert (message.goal_id, message.channels, message.horizon, message.step_dt) == ('goal-3', ['x', 'y'], 3, 0.1)
    assert list(message.values) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] and message.header.stamp == STAMP


def test_stamps_are_moved_by_seconds():
    assert later(STAMP, 1.8) == Time(sec=9, nanosec=50_000_000)
    assert later(STAMP, -0.75) == Time(sec=6, nanosec=500_000_000)
    assert later(STAMP, 0.0) == STAMP and later(STAMP, -8.0) == Time()


@pytest.mark.parametrize('request_, said', [
    ({'task': 'state', 'channels': ['red.x'], 'values': [0.5]}, 'this robot takes block goals'),
    ({'task': 'state', 'channels': ['red.x', 'red.y'], 'values': [0.5]}, 'must be equally many, got 2 and 1'),
    ({'task': 'state', 'channels': ['red.x'], 'values': [math.nan]}, 'value nan of channel red.x is not a finite'),
    ({'task': 'stack', 'channels': ['red.x'], 'values': [0.5]}, "task 'stack' takes no channels, got red.x"),
    ({'task': 'juggle'}, "unknown task 'juggle'"),
    ({'task': 'stack', 'relations': ['red on green']}, 'takes no relations'),
    ({'task': 'relations'}, 'at least one relation'),
])
def test_a_goal_that_cannot_be_taken_is_refused_with_the_reason(request_, said):
    with pytest.raises(GoalError, match=said):
        requested_goal(SetGoal.Request(**request_))


def test_a_goal_is_taken():
    goal = requested_goal(SetGoal.Request(task='relations', relations=['red on green']))
    assert goal == StackingGoal('relations', ((0, 1),))


def test_only_messages_of_one_instant_make_a_state():
    buffer = StateBuffer()
    assert buffer.lacking() == 'no state received yet on joint_states / object_states'
    first, second, third = (messages(stamp=Time(sec=n)) for n in (1, 2, 3))
    assert buffer.add('joint_states', first[0], 0.1) is None
    assert buffer.lacking() == 'no state received yet on object_states'
    assert buffer.add('object_states', second[1], 0.2) is None
    assert buffer.lacking().endswith('never carried the same header stamp')
    assert buffer.add('joint_states', third[0], 0.3) is None
    state = buffer.add('joint_states', second[0], 0.4)
    assert state is buffer.newest and (state.joints, state.objects) == second
    assert state.stamp.sec == 2 and state.arrival == 0.4
    assert buffer.add('object_states', third[1], 0.5).stamp.sec == 3


def test_unpaired_messages_do_not_pile_up():
    buffer = StateBuffer()
    for n in range(100):
        buffer.add('joint_states', messages(stamp=Time(sec=n))[0], float(n))
    assert len(buffer._unpaired) == StateBuffer.UNPAIRED
    assert buffer.add('object_states', messages(stamp=Time(sec=99))[1], 100.0) is not None


def test_the_simulated_robot_and_the_episodes_do_not_load_torch():
    code = ('import sys, diffuser_ros.bridges.kuka, diffuser_ros.episode_node; sys.exit("torch" in sys.modules)')
    subprocess.run([sys.executable, '-c', code], check=True)
