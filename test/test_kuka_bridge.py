"""The Kuka bridge against a small client in the same process: lock-step protocol, real time, refusals, episodes."""

import math
import signal
import time

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diffuser_msgs.srv import ResetEpisode
from rclpy.parameter import Parameter
from ros_client import Client, Session

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_NAMES, JOINT_UPPER
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import BLOCKS
from diffuser_core.envs.stacking_tasks import draw_task
from diffuser_ros.bridges.kuka import KukaBridge, TrajectoryCommand
from diffuser_ros.conversions import joint_trajectory


class Rig(Session):
    """A bridge and a client on one executor."""

    def __init__(self, **parameters):
        super().__init__(deadline=60.0)
        self.bridge = self.add(KukaBridge(context=self.context, parameter_overrides=[
            Parameter(name, value=value) for name, value in parameters.items()]))
        self.client = client = self.add(Client(self.context))
        self.until(lambda: client.states and client.command.get_subscription_count()
                   and client.gripper.get_subscription_count() and client.reset.service_is_ready(), 'the bridge')

    def next_state(self):
        """The first state after those seen so far, as (stamp [ns], observation (39,))."""
        seen = len(self.client.states)
        self.until(lambda: len(self.client.states) > seen, 'a state')
        return self.client.states[-1]

    def reset(self, seed, task=''):
        return self.call(self.client.reset, ResetEpisode.Request(seed=seed, task=task))


@pytest.fixture
def rig():
    rigs = []

    def make(**parameters):
        rigs.append(Rig(**parameters))
        return rigs[-1]

    yield make
    for made in rigs:
        made.close()


# ---- Lock-step -------------------------------------------------------------------------------------------------------


def test_lock_step_waits_for_both_commands_with_the_stamp_of_the_state(rig):
    r = rig(realtime=False)
    stamp, start = r.next_state()
    again, same = r.next_state()
    assert again == stamp and np.array_equal(same, start), 'an unanswered state is published again, unchanged'
    target = start[:7] + 0.05
    now = r.client.buffer.newest.stamp
    r.client.command.publish(joint_trajectory(JOINT_NAMES, target[None], start[:7], 1 / 24, now))
    again, same = r.next_state()
    assert again == stamp and np.array_equal(same, start), 'a command without a gripper command moves nothing'
    r.client.send(target, stamp=Time(sec=77))
    again, same = r.next_state()
    assert again == stamp and np.array_equal(same, start), 'a command for another state moves nothing'
    assert r.client.status.step == 0
    r.client.send(target)
    later, moved = r.next_state()
    assert later - stamp == pytest.approx(1e9 / 24, abs=2)
    assert np.abs(moved[:7] - target).max() < 0.01
    velocity = np.array(r.client.buffer.newest.joints.velocity)
    assert velocity == pytest.approx((moved[:7] - start[:7]) * 24)
    r.until(lambda: r.client.status.step == 1, 'the status of step 1')


def test_lock_step_equals_the_environment(rig):
    """Ten answered states are ten steps of KukaStackEnv, to the bit."""
    r = rig(realtime=False, seed=3)
    _, state = r.next_state()
    env = KukaStackEnv()
    try:
        expected, _ = env.reset(seed=3)
        assert np.array_equal(state, expected)
        for k in range(10):
            target = expected[:7] + 0.04 * math.sin(k)
            r.client.send(target, close=k > 5)
            _, state = r.next_state()
            expected, *_ = env.step(np.append(target, float(k > 5)))
            assert np.array_equal(state, expected)
    finally:
        env.close()


def test_an_episode_ends_with_a_frozen_status_and_a_reset_starts_another(rig):
    r = rig(realtime=False, episode_steps=3)
    stamps, first = [], None
    for _ in range(2):
        stamp, state = r.next_state()
        first = state if first is None else first
        assert np.array_equal(state, first), 'the same seed gives the same start'
        stamps.append(stamp)
        for _ in range(3):
            r.client.send(state[:7] + 0.02)
            stamp, state = r.next_state()
            stamps.append(stamp)
        r.until(lambda: r.client.status.done, 'the end of the episode')
        assert (r.client.status.step, r.client.status.limit) == (3, 3)
        r.client.send(state[:7] + 0.02)
        again, same = r.next_state()
        assert again == stamp and np.array_equal(same, state), 'nothing moves after the end'
        assert r.client.status.done and r.client.status.step == 3
        seen = len(r.client.states)
        assert r.reset(0).success
        r.until(lambda seen=seen: len(r.client.states) > seen and not r.client.status.done, 'the new episode')
        assert r.client.status.step == 0
    assert all(a < b for a, b in zip(stamps, stamps[1:], strict=False)), 'stamps increase, also across a reset'


def test_reset_changes_the_layout_with_the_seed_and_refuses_a_negative_one(rig):
    r = rig(realtime=False, seed=1)
    _, before = r.next_state()
    answer = r.reset(-1)
    assert not answer.success and '-1' in answer.message
    _, same = r.next_state()
    assert np.array_equal(same, before)
    assert r.reset(2).success
    r.until(lambda: r.client.status.seed == 2, 'the status of the new episode')
    _, other = r.next_state()
    assert not np.allclose(other[7:], before[7:])


def test_reset_takes_an_evaluation_task_and_refuses_an_unknown_one(rig):
    r = rig(realtime=False, seed=1)
    _, own = r.next_state()
    answer = r.reset(1, 'stack')
    assert not answer.success and "unknown task 'stack'" in answer.message
    _, same = r.next_state()
    assert np.array_equal(same, own), 'a refused reset resets nothing'
    for task in ('rearrangement', 'conditional', ''):
        seen = len(r.client.states)
        assert r.reset(1, task).success
        r.until(lambda seen=seen: len(r.client.states) > seen, 'the new episode')
        _, state = r.next_state()
        centres = state[7:].reshape(4, 8)[:, :3]
        if task == 'rearrangement':
            assert centres == pytest.approx(np.array(draw_task(task, 1).reset['blocks'])[:, :3], abs=1e-6)
            r.until(lambda: list(r.client.status.relations) == ['blue on red', 'red on yellow'], 'what stands at the start')
        else:
            assert np.array_equal(state, own)


# ---- Commands --------------------------------------------------------------------------------------------------------


def trajectory(joints=None, names=JOINT_NAMES):
    joints = np.zeros((3, 7)) if joints is None else joints
    return joint_trajectory(names, joints, joints[0], 1 / 24, Time())


def spoilt(**changes):
    message = trajectory()
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def with_point(point, joint, value):
    message = trajectory()
    message.points[point].positions[joint] = value
    return message


def with_times(*nanosec):
    message = trajectory()
    for point, value in zip(message.points, nanosec, strict=True):
        point.time_from_start.sec, point.time_from_start.nanosec = 0, value
    return message


def short_point():
    message = trajectory()
    message.points[1].positions = [0.0] * 6
    return message


@pytest.mark.parametrize(('message', 'said'), [
    (spoilt(joint_names=list(JOINT_NAMES[:6])), 'joint_names'),
    (spoilt(joint_names=[*JOINT_NAMES[:6], 'elbow']), 'elbow'),
    (spoilt(joint_names=[]), 'none'),
    (spoilt(points=[]), 'no points'),
    (short_point(), 'got 6'),
    (with_point(2, 3, math.nan), 'lbr_iiwa_joint_4 in point 2'),
    (with_point(0, 0, math.inf), 'lbr_iiwa_joint_1 in point 0'),
    (with_point(1, 1, JOINT_UPPER[1] + 0.01), 'lbr_iiwa_joint_2 in point 1'),
    (with_point(1, 6, JOINT_LOWER[6] - 0.01), 'lbr_iiwa_joint_7 in point 1'),
    (with_times(0, 1, 2), 'time_from_start'),
    (with_times(5, 5, 6), 'time_from_start'),
])
def test_a_command_that_cannot_be_played_is_refused_with_its_reason(message, said):
    with pytest.raises(ValueError, match=said) as refusal:
        TrajectoryCommand.parse(message)
    assert '\n' not in str(refusal.value)


def test_a_command_is_sorted_by_joint_and_held_point_by_point():
    joints = np.arange(21.0).reshape(3, 7) / 100
    order = [3, 1, 0, 2, 6, 5, 4]
    command = TrajectoryCommand.parse(trajectory(joints[:, order], [JOINT_NAMES[n] for n in order]))
    assert np.allclose(command.targets, joints)
    played = [command.target(period / 120) for period in range(16)]
    assert played[15] is None
    assert np.allclose(played[:15], np.repeat(joints, 5, axis=0)), 'five periods of 1/120 s for every point'


# ---- Real time -------------------------------------------------------------------------------------------------------


def test_real_time_publishes_by_itself_and_counts_from_the_first_command(rig):
    r = rig()
    stamp, start = r.next_state()
    r.until(lambda: r.client.status.limit == 384, 'a status')
    later, state = r.next_state()
    assert later > stamp and r.client.status.step == 0 and not r.client.status.done
    assert np.abs(state[:7] - start[:7]).max() < 1e-3, 'without a command the arm holds'
    assert abs(1e-9 * later - time.time()) < 60.0, "real-time stamps are the node's clock"
    r.client.send(np.tile(start[:7] + 0.1, (12, 1)))
    r.until(lambda: r.client.status.step >= 2, 'counted steps')


def test_real_time_stops_where_the_last_command_ran_out(rig):
    r = rig()
    _, start = r.next_state()
    ramp = start[:7] + np.outer(np.arange(1, 13), np.full(7, 0.01))
    r.client.send(ramp)
    r.until(lambda: np.abs(r.client.joints - ramp[-1]).max() < 1e-3, 'the end of the ramp')
    r.spin(0.3)
    _, rest = r.next_state()
    assert np.abs(rest[:7] - ramp[-1]).max() < 1e-3
    assert np.abs(r.client.buffer.newest.joints.velocity).max() < 1e-2


def test_real_time_goes_on_with_the_old_command_when_one_is_refused(rig):
    r = rig()
    _, start = r.next_state()
    good, bad = np.tile(start[:7] + 0.1, (12, 1)), np.full((12, 7), 9.0)
    r.client.send(good)
    r.until(lambda: r.client.status.step > 0, 'the good command')
    r.client.send(bad)
    r.until(lambda: r.bridge.refused == 1, 'the refusal')
    r.until(lambda: np.abs(r.client.joints - good[0]).max() < 1e-3, 'the good command at work')


def test_real_time_holds_after_the_end_and_ignores_commands_from_before_a_reset(rig):
    r = rig(episode_steps=4)
    _, start = r.next_state()
    old = r.client.buffer.newest.stamp
    r.client.send(np.tile(start[:7] + 0.1, (12, 1)))
    r.until(lambda: r.client.status.done, 'the end of the episode')
    _, end = r.next_state()
    r.client.send(np.tile(end[:7] + 0.2, (12, 1)))
    r.spin(0.3)
    _, state = r.next_state()
    assert r.client.status.step == 4 and np.abs(state[:7] - end[:7]).max() < 0.05
    assert r.reset(5).success
    r.until(lambda: r.client.status.seed == 5, 'the new episode')
    r.client.send(np.tile(start[:7] + 0.2, (12, 1)), stamp=old)
    r.spin(0.3)
    _, state = r.next_state()
    assert r.client.status.step == 0 and np.abs(state[:7] - start[:7]).max() < 1e-3


def test_the_gripper_takes_and_lets_go(rig):
    """The arm is put over a block by a lock-step episode of one long approach, then closes and opens."""
    from diffuser_core.envs.kuka_kinematics import inverse_kinematics
    r = rig(realtime=False)
    _, state = r.next_state()
    block = state[7:].reshape(len(BLOCKS), 8)[0]
    azimuth, radius = math.atan2(block[1], block[0]), math.hypot(block[0], block[1])
    path = [state[:7], inverse_kinematics(azimuth, radius, 0.2), inverse_kinematics(azimuth, radius, 0.062)]
    for begin, end in zip(path, path[1:], strict=False):
        for share in np.linspace(0.0, 1.0, 25)[1:]:
            r.client.send(begin + share * (end - begin))
            r.next_state()
    r.client.send(path[-1], close=True)
    r.next_state()
    r.until(lambda: r.client.status.gripper_holds == BLOCKS[0], 'the hold')
    r.client.send(path[-1], close=True)
    r.next_state()
    assert list(r.client.buffer.newest.objects.attached) == [True, False, False, False]
    r.client.send(path[-1], close=False)
    r.next_state()
    r.until(lambda: r.client.status.gripper_holds == '', 'the release')


def test_a_bad_parameter_is_one_sentence_and_exit_code_1(capsys, monkeypatch):
    from diffuser_ros.bridges.kuka import main
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    monkeypatch.delenv('DISPLAY', raising=False)
    for argument, said in (('episode_steps:=0', 'episode_steps'), ('gui:=true', 'DISPLAY'), ('seed', 'seed')):
        assert main(['kuka_bridge', '--ros-args', '-p', argument]) == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('kuka_bridge: ')]
        assert len(errors) == 1 and said in errors[0]
