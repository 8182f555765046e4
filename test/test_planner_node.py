"""The planner node, driven by states that the tests publish. In lock-step nothing depends on the clock."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from checkpoints import untrained, untrained_stacking
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from diffuser_msgs.msg import GoalStatus, PlannerStats
from diffuser_msgs.srv import SetGoal
from planner_rig import HOME, RED_ON_GREEN, TICK, Rig, StubPolicy, positions
from rclpy.parameter import Parameter
from ros_client import Session
from std_srvs.srv import SetBool
from visualization_msgs.msg import Marker, MarkerArray

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, JOINT_UPPER, planar_tip
from diffuser_core.envs.policies import make_policy
from diffuser_core.envs.policy_settings import PolicyError, PolicySettings
from diffuser_core.envs.stacking import BLOCKS
from diffuser_core.envs.stacking_features import FEATURES, PLACES, TIP, cartesian
from diffuser_core.trajectory import Channels
from diffuser_ros.commander import Commander
from diffuser_ros.conversions import nanoseconds
from diffuser_ros.parameters import StartError
from diffuser_ros.qos import EVENT_QOS, LATCHED_QOS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def session():
    session = Session(10.0)
    yield session
    session.close()


@pytest.fixture
def policy():
    return StubPolicy()


@pytest.fixture
def rig(session, policy):
    return Rig(session, policy, lock_step=True)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint') / 'untrained'
    untrained_stacking().save(folder)
    return folder


def last_status(rig):
    status = rig.robot.statuses[-1]
    return status.goal_id, status.status


# Goals


@pytest.mark.parametrize('request_, said', [
    ({'task': 'juggle'}, "unknown task 'juggle'"),
    ({'task': 'relations', 'relations': ['red on pink']}, "unknown block 'pink'"),
    ({'task': 'relations', 'relations': ['red on green', 'green on red']}, 'form a cycle'),
    ({'task': 'state', 'channels': ['red.x', 'red.y'], 'values': [0.5]}, 'got 2 and 1'),
    ({'task': 'state', 'channels': ['red.x'], 'values': [math.inf]}, 'not a finite number'),
    ({'task': 'state', 'channels': ['red.x'], 'values': [0.5]}, 'this robot takes block goals'),
    ({'task': 'stack', 'channels': ['red.x'], 'values': [0.5]}, 'takes no channels'),
])
def test_a_refused_goal_leaves_the_one_before_in_force(rig, request_, said):
    rig.step()
    goal = rig.set_goal()
    answer = rig.call('set_goal', SetGoal.Request(**request_))
    assert not answer.success and said in answer.message and answer.goal_id == ''
    assert last_status(rig) == (goal, GoalStatus.ACTIVE)
    assert rig.step()[0].goal_id == goal


def test_a_goal_is_refused_without_a_usable_state_and_by_the_policy(rig, policy):
    answer = rig.call('set_goal', RED_ON_GREEN)
    assert not answer.success and answer.message == 'no state received yet on joint_states / object_states'
    rig.step(blocks=BLOCKS[:3])
    answer = rig.call('set_goal', RED_ON_GREEN)
    assert not answer.success and answer.message == 'object_states lacks the block yellow'
    rig.step()
    policy.refuse = 'green is not free'
    answer = rig.call('set_goal', RED_ON_GREEN)
    assert not answer.success and answer.message == 'green is not free'
    assert last_status(rig) == ('', GoalStatus.NONE)


def test_a_goal_runs_from_active_to_reached_and_a_late_subscriber_hears_the_newest_status(rig, policy, session):
    rig.step()
    assert rig.set_goal() == 'goal-1'
    assert last_status(rig) == ('goal-1', GoalStatus.ACTIVE)
    assert rig.step()[0].reason == PlannerStats.OK
    policy.reached = True
    stats, command = rig.step()
    assert stats.reason == PlannerStats.GOAL_REACHED and command is not None
    rig.until(lambda: last_status(rig) == ('goal-1', GoalStatus.REACHED), 'the status')
    heard = []
    rig.robot.create_subscription(GoalStatus, 'diffuser_planner/goal_status', heard.append, LATCHED_QOS)
    rig.until(lambda: heard, 'the latched status')
    assert (heard[0].goal_id, heard[0].status) == ('goal-1', GoalStatus.REACHED)
    assert rig.set_goal() == 'goal-2'


# Lock-step


def test_without_a_goal_nothing_is_commanded(rig):
    stats, command = rig.step()
    assert stats.reason == PlannerStats.NO_GOAL and command is None
    assert not rig.robot.commands and not rig.robot.grippers


def test_every_stamp_is_answered_once_and_the_same_way_again(rig, policy):
    rig.step()
    rig.set_goal()
    stats, first = rig.step(stamp=rig.clock)
    assert stats.reason == PlannerStats.OK, 'a state that had no answer is decided on when it is repeated'
    for _ in range(3):
        stats, command = rig.step()
        assert nanoseconds(command.header.stamp) == round(1e9 * rig.clock)
        assert rig.robot.grippers[-1].header.stamp == command.header.stamp and rig.robot.grippers[-1].close
        np.testing.assert_allclose(positions(command), HOME + 0.01 * np.arange(1, 13)[:, None])
        assert command.joint_names == list(JOINT_NAMES)
    assert (stats.tick, stats.replans, stats.late_ticks) == (5, 4, 0)
    assert 0.0 < stats.planning_ms <= stats.latency_ms
    acted, answered = len(policy.times), len(rig.robot.commands)
    rig.robot.publish(rig.clock, joints=HOME + 0.5)
    rig.until(lambda: len(rig.robot.commands) > answered and len(rig.robot.grippers) > answered, 'the answer once more')
    assert rig.robot.commands[-1] == command and len(policy.times) == acted
    np.testing.assert_allclose(np.diff(policy.times), TICK)


@pytest.mark.parametrize('trouble, said', [
    ({'joints': np.where(np.arange(7) == 3, np.nan, HOME)}, 'lbr_iiwa_joint_4 is nan'),
    ({'names': JOINT_NAMES[:6]}, 'lacks the joint lbr_iiwa_joint_7'),
    ({'blocks': BLOCKS[1:]}, 'lacks the block red'),
])
def test_the_arm_is_held_in_a_bad_state_and_goes_on_by_itself(rig, policy, trouble, said):
    rig.step()
    rig.set_goal()
    assert rig.step(**trouble)[1] is None, 'nothing to hold before the first command'
    _, before = rig.step()
    for _ in range(3):
        stats, command = rig.step(**trouble)
        assert stats.reason == PlannerStats.BAD_STATE and said in stats.reason_text
        np.testing.assert_array_equal(positions(command), np.tile(positions(before)[0], (12, 1)))
        assert not any(any(point.velocities) for point in command.points)
        assert nanoseconds(command.header.stamp) == round(1e9 * rig.clock) and rig.robot.grippers[-1].close
    stats, command = rig.step()
    assert stats.reason == PlannerStats.OK
    np.testing.assert_allclose(positions(command), positions(before))
    assert policy.times[-1] - policy.times[-2] == pytest.approx(TICK), 'time stands still for the policy meanwhile'


def test_a_failing_plan_holds_the_arm(rig, policy):
    rig.step()
    rig.set_goal()
    _, before = rig.step()
    policy.error = FloatingPointError('the network returned a plan with non-finite values')
    stats, command = rig.step()
    assert stats.reason == PlannerStats.PLAN_FAILED and 'non-finite' in stats.reason_text
    np.testing.assert_array_equal(positions(command)[-1], positions(before)[0])
    policy.error, policy.speed = None, math.nan
    stats, command = rig.step()
    assert stats.reason == PlannerStats.UNSAFE_COMMAND and np.isfinite(positions(command)).all()
    policy.speed = 0.24
    assert rig.step()[0].reason == PlannerStats.OK


def test_commands_are_clamped_to_speed_and_limits_and_counted(rig, policy):
    rig.step()
    rig.set_goal()
    policy.speed = 9.0
    rig.planner.set_parameters([Parameter('max_joint_acceleration', value=200.0)])
    stats, command = rig.step()
    np.testing.assert_allclose(positions(command)[0], HOME + 6.0 * TICK)
    assert (positions(command) <= JOINT_UPPER).all() and stats.clamped > 12
    set_ = rig.planner.set_parameters([Parameter('max_joint_speed', value=1.2), Parameter('seed', value=3)])
    assert [result.successful for result in set_] == [True, False]
    np.testing.assert_allclose(positions(rig.step()[1])[0], HOME + (6.0 + 1.2) * TICK, rtol=1e-6)  # from what is commanded on
    assert not rig.planner.set_parameters([Parameter('max_joint_speed', value=-1.0)])[0].successful


def test_hold_clear_goal_and_reset(rig, policy):
    rig.step()
    rig.set_goal()
    _, before = rig.step()
    assert rig.call('hold', SetBool.Request(data=True)).success
    stats, command = rig.step(joints=HOME + 0.3)
    assert stats.reason == PlannerStats.HOLD_REQUESTED
    np.testing.assert_array_equal(positions(command), np.tile(positions(before)[0], (12, 1)))
    assert rig.call('hold', SetBool.Request(data=False)).success
    assert rig.step()[0].reason == PlannerStats.OK

    assert rig.call('clear_goal').success and policy.goal is None
    assert last_status(rig) == ('goal-1', GoalStatus.CLEARED)
    assert rig.step()[1] is None
    assert rig.call('clear_goal').message == 'there was no goal'

    rig.set_goal()
    stats, _ = rig.step()
    assert stats.goal_id == 'goal-2' and stats.tick > 1
    assert rig.call('reset').success and policy.goal is None and policy.seed == 0
    assert last_status(rig) == ('goal-2', GoalStatus.CLEARED)
    stats, command = rig.step()
    assert (stats.reason, stats.tick, stats.replans, stats.goal_id) == (PlannerStats.NO_GOAL, 1, 0, '')
    assert command is None
    rig.set_goal()
    assert rig.step(names=JOINT_NAMES[:6])[1] is None, 'what was commanded before the reset is forgotten'


# Real time


def test_a_stale_state_holds_the_arm_until_states_come_again(session, policy):
    rig = Rig(session, policy, state_timeout=0.3)
    stats = rig.robot.stats

    def tick_with(reason, feed=True):
        before = len(stats)

        def heard():
            now = time.monotonic()
            if feed and now > rig.clock + 0.02:
                rig.clock = now
                rig.robot.publish(rig.clock)
            return any(s.reason == reason for s in stats[before:])

        rig.until(heard, f'reason {reason}')

    assert not rig.robot.commands
    tick_with(PlannerStats.NO_STATE, feed=False)
    tick_with(PlannerStats.NO_GOAL)
    rig.set_goal()
    tick_with(PlannerStats.OK)
    ok = next(s for s in stats if s.reason == PlannerStats.OK)
    assert ok.latency_ms > 0.0 and ok.planning_ms > 0.0 and ok.plan_age_ms > 0.0
    tick_with(PlannerStats.STALE_STATE, feed=False)
    stale = next(s for s in stats if s.reason == PlannerStats.STALE_STATE)
    assert stale.state_age_ms > 300.0 and 'allowed are 300 ms' in stale.reason_text
    rig.robot.commands.clear()
    tick_with(PlannerStats.STALE_STATE, feed=False)
    rig.until(lambda: rig.robot.commands, 'a hold')
    held = positions(rig.robot.commands[-1])
    assert (held == held[0]).all() and (held[0] > HOME).all()
    tick_with(PlannerStats.OK)


def test_diagnostics_name_the_reason(session, policy):
    rig = Rig(session, policy, lock_step=True)
    heard = []
    rig.robot.create_subscription(DiagnosticArray, '/diagnostics', heard.append, EVENT_QOS)
    rig.step()
    rig.set_goal()
    rig.step()
    rig.step(names=JOINT_NAMES[:6])
    rig.until(lambda: heard, 'diagnostics')
    status = heard[-1].status[0]
    values = {entry.key: entry.value for entry in status.values}
    assert (status.name, status.level) == ('/diffuser_planner', DiagnosticStatus.ERROR)
    assert 'lbr_iiwa_joint_7' in status.message and values['reason'] == 'BAD_STATE' and values['ticks'] == '3'


@pytest.mark.parametrize('lock_step, elapsed, point', [
    (False, 0.5, 0), (False, 1.5, 1), (False, 3.5, 3), (False, 100.0, 3), (True, 3.5, 0)])
def test_a_hold_stops_the_arm_at_the_point_that_it_follows_by_now(monkeypatch, lock_step, elapsed, point):
    sent = {'command': [], 'gripper_command': []}
    now = 5.0
    monkeypatch.setattr('diffuser_ros.commander.time.monotonic', lambda: now)
    node = SimpleNamespace(create_publisher=lambda kind, topic, qos: SimpleNamespace(publish=sent[topic].append))
    commander = Commander(node, TICK, lock_step=lock_step, brake=lambda moving, points: np.tile(moving.position, (points, 1)))
    path = HOME + 0.1 * np.arange(4)[:, None]
    commander.send(path, HOME, True, Time(sec=1))
    now += elapsed * TICK
    commander.hold(commander.last, Time(sec=2))
    np.testing.assert_array_equal(positions(sent['command'][-1]), np.tile(path[point], (4, 1)))
    assert sent['command'][-1].header.stamp.sec == 2 and sent['gripper_command'][-1].close


# With a network


def test_an_untrained_network_drives_the_robot_and_a_reset_repeats_it(session, checkpoint):
    rig = Rig(session, None, lock_step=True, checkpoint=str(checkpoint), steps=4, warm_steps=2, max_jump=3.0)

    def episode():
        rig.step()
        rig.set_goal()
        joints, commands = HOME, []
        for _ in range(3):
            stats, command = rig.step(joints=joints)
            assert stats.reason == PlannerStats.OK and stats.reason_text == 'building red on green'
            joints = positions(command)[0]
            commands.append(positions(command))
        assert stats.denoising_steps in (2, 4), 'from the last plan, or from noise where the arm was too slow for it'
        return np.array(commands)

    first = episode()
    plan = rig.robot.plans[-1]
    rows = np.reshape(plan.values, (plan.horizon, len(plan.channels)))
    assert plan.horizon == 16 and plan.step_dt == pytest.approx(1 / 12) and plan.goal_id == 'goal-1'
    assert nanoseconds(plan.header.stamp) == round(1e9 * rig.clock)
    tip = [plan.channels.index(name) for name in TIP]
    np.testing.assert_allclose(rows[0, tip], planar_tip(first[1, 0]), atol=1e-6)
    np.testing.assert_allclose(rows[-1, plan.channels.index('red.z')], 0.03 + 0.06, atol=1e-6)
    assert rig.call('reset').success
    rig.clock = 0.0
    np.testing.assert_array_equal(episode(), first)


def test_the_way_of_the_tip_is_drawn_in_space_for_those_who_look(session, checkpoint):
    rig = Rig(session, None, lock_step=True, checkpoint=str(checkpoint), steps=2, warm_steps=1, max_jump=3.0)
    heard = []
    rig.robot.create_subscription(MarkerArray, 'diffuser_planner/plan_markers', heard.append, EVENT_QOS)
    rig.until(lambda: rig.planner.count_subscribers('diffuser_planner/plan_markers'), 'who looks')
    rig.step()
    rig.set_goal()
    rig.step()
    rig.until(lambda: heard, 'markers')
    markers = {marker.ns: marker for marker in heard[0].markers}
    assert len(markers['plan'].points) == 16 and markers['plan'].action == Marker.ADD
    first, tip = markers['plan'].points[0], cartesian(planar_tip(HOME))
    np.testing.assert_allclose([first.x, first.y, first.z], tip, atol=1e-6)
    assert markers['goal'].action == markers['candidates'].action == Marker.DELETE


def test_a_checkpoint_of_another_robot_is_refused(tmp_path):
    names = (*FEATURES[:2], *PLACES, 'door.angle')
    untrained(Channels(names, ('1',) * len(names)), PLACES).save(tmp_path / 'other')
    with pytest.raises(PolicyError, match=r'other: the checkpoint does not fit this robot: it lacks the channels '
                                         r'tip.z, moved.attached.* unknown channels door.angle'):
        make_policy(PolicySettings(checkpoint=str(tmp_path / 'other')))


@pytest.mark.parametrize('parameter, said', [
    ({'tick_rate': 24}, 'the parameter tick_rate must be a number with a decimal point from 1.0 to 200.0: .*INTEGER'),
    ({'steps': 0}, 'the parameter steps must be a whole number from 1 to 1000: .*out of range'),
    ({'max_joint_speed': math.nan}, 'the parameter max_joint_speed must be a number'),
    ({'lock_step': 'yes'}, 'the parameter lock_step must be true or false'),
    ({'device': 'toaster'}, "the device 'toaster' cannot be used"),
    ({'backend': 'abacus'}, "unknown backend 'abacus'; there are eager, traced"),
])
def test_a_bad_parameter_is_refused_by_name(session, parameter, said):
    with pytest.raises(StartError, match=said):
        Rig(session, None, **parameter)


# As a process


def start(*arguments):
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'RCUTILS_LOGGING_BUFFERED_STREAM': '0'}
    return subprocess.Popen([sys.executable, '-m', 'diffuser_ros.planner_node', '--ros-args', *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_bad_checkpoint_is_one_sentence_and_exit_code_1(tmp_path):
    damaged = tmp_path / 'damaged'
    untrained_stacking().save(damaged)
    weights = damaged / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1])
    cases = {('-p', 'checkpoint:=/nowhere'): 'no checkpoint at /nowhere: config.yaml is missing there',
             ('-p', f'checkpoint:={damaged}'): f'{weights} is damaged'}
    for process, said in [(start(*arguments), said) for arguments, said in cases.items()]:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1 and said in output
        assert 'Traceback' not in output and output.count('\n') == 1


def test_sigterm_and_sigint_end_the_process_cleanly(checkpoint):
    parameters = ('--params-file', str(ROOT / 'config' / 'kuka_planner.yaml'), '-p', f'checkpoint:={checkpoint}')
    running = {sent: start(*parameters) for sent in (signal.SIGTERM, signal.SIGINT)}
    deadline = threading.Timer(60.0, lambda: [process.kill() for process in running.values()])
    deadline.start()
    try:
        for sent, process in running.items():
            said = process.stdout.readline()
            assert 'planning at 24 Hz with the checkpoint' in said
            process.send_signal(sent)
            output, _ = process.communicate(timeout=30)
            assert process.returncode == 0, (sent, output)
            assert 'Traceback' not in output and 'ticks, 0 replans' in output
    finally:
        deadline.cancel()
        for process in running.values():
            process.kill()
            process.wait()
