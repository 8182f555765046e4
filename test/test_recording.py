"""Runs of the planner node, recorded and computed again to the last bit."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import untrained_stacking
from diffuser_msgs.msg import PlannerStats
from diffuser_msgs.srv import LoadCheckpoint
from planner_rig import Rig, positions
from rclpy.parameter import Parameter
from ros_client import Session
from std_srvs.srv import SetBool
from test_inference import save_maze, wait_for

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, inverse_kinematics
from diffuser_ros.parameters import StartError
from diffuser_ros.replay import Replay, replay_file
from diffuser_ros.replay_parts import make_goal, make_prepare, make_session
from diffuser_ros.run_reader import parse_run

READY = np.asarray(inverse_kinematics(0.0, 0.5, 0.3))


@pytest.fixture
def session():
    session = Session(60.0)
    yield session
    session.close()


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp('recording')
    first = untrained_stacking()
    first.save(folder / 'first')
    for name in first.weights:
        first.weights[name] = first.weights[name] * 0.9
    first.save(folder / 'second')
    return folder / 'first', folder / 'second'


def again(path):
    return replay_file(path, Replay(make_session=make_session, make_goal=make_goal, make_prepare=make_prepare))


def drive(rig, ticks, joints=READY):
    """Ticks of an arm that does as it is told; where it is then."""
    for _ in range(ticks):
        _, command = rig.step(joints=joints)
        if command is not None:
            joints = positions(command)[0]
    return joints


LIMITS = {'max_jump': 3.0, 'max_joint_speed': 2.0, 'max_joint_acceleration': 20.0, 'steps': 4, 'warm_steps': 2}


@pytest.mark.parametrize('more', [{}, {'inject_delay': 0.03, 'inject_jitter': 0.05, 'inject_loss': 0.2}],
                         ids=['at once', 'late and lost'])
def test_a_run_with_all_that_can_happen_is_computed_again_to_the_last_bit(session, checkpoints, tmp_path, more):
    log = tmp_path / 'run.mcap'
    rig = Rig(session, None, lock_step=True, checkpoint=str(checkpoints[0]), record=str(log), **LIMITS, **more)
    load = rig.robot.create_client(LoadCheckpoint, 'diffuser_planner/load_checkpoint')
    joints = drive(rig, 1)
    rig.set_goal()
    joints = drive(rig, 8, joints)
    rig.step(joints=joints, names=JOINT_NAMES[:6])                              # a bad state: held
    rig.call('hold', SetBool.Request(data=True))
    drive(rig, 2, joints)
    rig.call('hold', SetBool.Request(data=False))
    joints = drive(rig, 3, joints)
    assert rig.planner.set_parameters([Parameter('max_joint_speed', value=1.0)])[0].successful
    joints = drive(rig, 3, joints)
    rig.set_goal()                                                               # the same goal, named anew
    joints = drive(rig, 3, joints)
    assert session.call(load, LoadCheckpoint.Request(path=str(checkpoints[1]))).success
    joints = drive(rig, 6, joints)
    rig.call('clear_goal')
    drive(rig, 1, joints)
    rig.set_goal()
    joints = drive(rig, 4, joints)
    rig.step(joints=joints + 1.5)                                                # too fast to be true: held
    rig.call('reset')
    drive(rig, 1, joints)
    rig.set_goal()
    drive(rig, 4, joints)
    rig.planner.trigger_deactivate()
    rig.planner.trigger_cleanup()

    run = parse_run(log.read_bytes())
    assert run.complete and len(run.stats) >= 30
    assert max(s.clamped for s in run.stats) > 0, 'the safety filter had something to do'
    kinds = [event.kind for event in run.events]
    assert {kind: kinds.count(kind) for kind in ('start', 'load', 'change', 'reset')} == {
        'start': 1, 'load': 1, 'change': 1, 'reset': 1} and kinds.count('goal') == 5 and kinds.count('clear') == 2
    comparison = again(log)
    assert comparison.same, comparison.first
    assert comparison.complete and comparison.commands > 10 and comparison.plans > 10 and comparison.held > 3

    events = list(run.events)
    at = max(n for n, event in enumerate(events) if event.kind == 'tick' and event.motion)
    flipped = events[at].command.copy()
    flipped.view(np.uint64)[0] ^= 1
    events[at] = replace(events[at], command=flipped)
    different = Replay(make_session=make_session, make_goal=make_goal, make_prepare=make_prepare).run(events)
    assert different.different_commands == 1 and JOINT_NAMES[0] in different.first


def test_a_run_of_a_planning_process_that_is_killed_is_computed_again(tmp_path, monkeypatch):
    """In real time: which plan had come when is read from the log, and so is where its budget cut it short."""
    import test_gym_planner
    monkeypatch.setenv('PYTHONPATH', str(test_gym_planner.__file__.rpartition('/test/')[0]))
    folder, log = save_maze(tmp_path / 'maze'), tmp_path / 'run.mcap'
    session = Session(60.0)
    try:
        rig = test_gym_planner.Rig(session, None, checkpoint=str(folder), record=str(log), replan='every_tick', plan_timeout=10.0)

        def driven(ticks, condition=lambda: True):
            end = rig.now + 60.0
            while ticks > 0 or not condition():
                rig.publish()
                session.spin(0.01)
                ticks -= 1
                assert rig.now < end, 'waited for too long'

        driven(3)
        assert rig.goal((3.0, 1.0)).success
        driven(20, lambda: rig.ball.stats[-1].replans > 3)
        process = rig.planner._inference
        os.kill(process.pid, signal.SIGKILL)
        driven(1, lambda: rig.ball.stats[-1].reason == PlannerStats.PLANNER_DIED)
        assert rig.ball.commands[-1].values.tolist() == [0.0, 0.0]
        driven(1, lambda: rig.ball.stats[-1].reason == PlannerStats.OK and rig.ball.stats[-1].replans > 3)
        assert rig.goal((1.0, 3.0)).success
        driven(20)
    finally:
        session.close()
    comparison = again(log)
    assert comparison.same, comparison.first
    assert comparison.commands > 30 and comparison.plans > 8 and comparison.held > 0


def test_a_full_disk_ends_the_recording_and_not_the_robot(session, checkpoints, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr('diffuser_ros.run_log._new_file', lambda path: open('/dev/full', 'wb', buffering=0))
    rig = Rig(session, None, lock_step=True, checkpoint=str(checkpoints[0]), record=str(tmp_path / 'run.mcap'), **LIMITS)
    joints = drive(rig, 1)
    rig.set_goal()
    drive(rig, 5, joints)
    said = ''

    def ended():
        nonlocal said
        said += capfd.readouterr().err
        return 'No space left on device' in said

    wait_for(ended, 'the end of the recording')
    stats, command = rig.step(joints=joints)
    assert stats.reason == PlannerStats.OK and command is not None and said.count('recording to') == 1


def test_a_file_that_exists_is_not_written_over(session, checkpoints, tmp_path):
    (tmp_path / 'run.mcap').write_text('mine')
    with pytest.raises(StartError, match='the run cannot be recorded: .*run.mcap exists; a run is recorded to a new file'):
        Rig(session, None, lock_step=True, checkpoint=str(checkpoints[0]), record=str(tmp_path / 'run.mcap'))
    assert (tmp_path / 'run.mcap').read_text() == 'mine'
