"""What goes wrong around a planner node, and what it does then. docs/faults.md is the table of all of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from checkpoints import untrained_stacking
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from diffuser_msgs.msg import PlannerStats
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from planner_rig import HOME, POSES, RED_ON_GREEN, TICK, Rig, StubPolicy, positions
from rclpy.node import Node
from ros_client import Session

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.stacking import BLOCKS
from diffuser_ros.conversions import joint_state, nanoseconds, object_states
from diffuser_ros.qos import EVENT_QOS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def session():
    session = Session(30.0)
    yield session
    session.close()


@pytest.fixture
def rig(session):
    return Rig(session, StubPolicy(), lock_step=True)


def steps(rig, count, **state):
    return [rig.step(**state) for _ in range(count)]


# States


def test_an_arm_that_moves_faster_than_it_can_is_held_until_its_states_agree_again(rig):
    rig.step()
    rig.set_goal()
    _, before = rig.step()
    jumped = HOME + 1.5 * np.eye(7)[0]                       # in one tick: more than FASTEST and the tolerance allow
    seen = steps(rig, 8, joints=jumped)
    reasons = [stats.reason for stats, _ in seen]
    assert reasons == [PlannerStats.IMPLAUSIBLE_STATE] * 5 + [PlannerStats.OK] * 3
    assert 'cannot move faster than 10 a second' in seen[0][0].reason_text
    np.testing.assert_array_equal(positions(seen[0][1]), np.tile(positions(before)[0], (12, 1)))


def test_a_robot_that_keeps_moving_ten_times_too_fast_stays_held(rig):
    rig.step()
    rig.set_goal()
    rig.step()
    reasons = []
    for tick in range(12):
        stats, _ = rig.step(joints=HOME + 10.0 * TICK * tick * np.where(tick % 2, 1.0, -1.0))
        reasons.append(stats.reason)
    assert set(reasons[2:]) == {PlannerStats.IMPLAUSIBLE_STATE}


@pytest.mark.parametrize('jump', [-5.0, 5.0, 3600.0])
def test_a_clock_that_jumps_holds_the_arm_until_it_is_steady(session, jump):
    rig = Rig(session, StubPolicy())
    offset = 100.0

    def publish(reason):
        def fed():
            now = time.monotonic()
            if now > rig.clock + 0.02:
                rig.clock = now
                rig.robot.publish(now + offset)
            return rig.robot.stats and rig.robot.stats[-1].reason == reason
        rig.until(fed, f'reason {reason}')

    publish(PlannerStats.NO_GOAL)
    rig.set_goal()
    publish(PlannerStats.OK)
    offset += jump
    publish(PlannerStats.CLOCK_JUMPED)
    said = next(s.reason_text for s in reversed(rig.robot.stats) if s.reason == PlannerStats.CLOCK_JUMPED)
    assert f'went {"ahead" if jump > 0 else "back"} by' in said
    publish(PlannerStats.OK)
    offset -= jump
    publish(PlannerStats.CLOCK_JUMPED)
    publish(PlannerStats.OK)


def test_messages_that_get_lost_are_made_good_and_change_nothing(rig):
    """A lock-step robot that loses 30 % of its states, and of the answers, and sends a state until it is answered."""
    def drive(loss):
        rig.call('reset')
        rng, joints, path, sent = np.random.default_rng(5), HOME, [], 0
        rig.step()
        rig.set_goal()
        first = rig.clock
        for tick in range(1, 31):
            stamp = rig.clock = first + tick * TICK
            answer = None
            while answer is None:
                heard = len(rig.robot.commands)
                time_ = Time(sec=int(stamp), nanosec=round(1e9 * (stamp % 1)))
                lost = rng.uniform(size=3) < loss
                sent += 1
                if not lost[0]:
                    rig.robot.joints.publish(joint_state(JOINT_NAMES, joints, None, time_))
                if not lost[1]:
                    rig.robot.objects.publish(object_states(BLOCKS, POSES, np.zeros(len(BLOCKS)), time_))
                rig.session.spin(0.02)
                rig.settle()
                new = [c for c in rig.robot.commands[heard:] if nanoseconds(c.header.stamp) == round(1e9 * stamp)]
                if new and not lost[2]:
                    answer = new[-1]
                assert sent < 1000
            joints = positions(answer)[0]
            path.append(joints)
        return np.array(path), rig.robot.stats[-1].tick, sent

    whole, ticks, sent = drive(0.0)
    lossy, same_ticks, more = drive(0.3)
    np.testing.assert_array_equal(lossy, whole)
    assert same_ticks == ticks == 31 and more > 1.3 * sent


# Goals


def test_a_flood_of_goals_is_answered_and_the_ticks_go_on(rig):
    rig.step()
    client = rig.robot.clients_['set_goal']
    answers = []
    for _ in range(50):
        answers += [client.call_async(RED_ON_GREEN) for _ in range(4)]
        stats, _ = rig.step()
    rig.until(lambda: all(answer.done() for answer in answers), 'all answers')
    names = [answer.result().goal_id for answer in answers]
    assert all(answer.result().success for answer in answers) and sorted(names, key=lambda n: int(n[5:])) == names
    stats, command = rig.step()
    assert (stats.goal_id, stats.reason) == ('goal-200', PlannerStats.OK) and command is not None


def test_two_nodes_of_one_name_are_told_of(session):
    """In a namespace of its own: nodes of other tests are seen for a while after their end."""
    rig = Rig(session, StubPolicy(), lock_step=True, namespace='doubled')
    heard = []
    rig.robot.create_subscription(DiagnosticArray, '/diagnostics', lambda m: heard.append(m.status[0]), EVENT_QOS)
    rig.until(lambda: heard, 'diagnostics')
    said = 'another node is called /doubled/diffuser_planner: two planners must not command one robot'
    assert said not in heard[-1].message
    session.add(Node('diffuser_planner', context=session.context, namespace='doubled'))
    rig.until(lambda: heard[-1].message.endswith(said), 'the other one')
    assert heard[-1].level == DiagnosticStatus.ERROR


# Signals


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_that_is_inactive(sent, session, tmp_path):
    """The other states are in test_lifecycle."""
    untrained_stacking().save(tmp_path / 'checkpoint')
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'RCUTILS_LOGGING_BUFFERED_STREAM': '0'}
    arguments = ['-r', f'__node:=planner_{sent}', '-p', 'autostart:=false', '-p', f'checkpoint:={tmp_path / "checkpoint"}']
    process = subprocess.Popen([sys.executable, '-m', 'diffuser_ros.planner_node', '--ros-args', *arguments], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    deadline = threading.Timer(90.0, process.kill)
    deadline.start()
    try:
        node = session.add(Node('manager', context=session.context))
        client = node.create_client(ChangeState, f'planner_{sent}/change_state')
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        session.deadline = 90.0
        assert session.call(client, request).success
        os.killpg(process.pid, sent)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and 'Traceback' not in output, output
    finally:
        deadline.cancel()
        process.kill()
        process.wait()
