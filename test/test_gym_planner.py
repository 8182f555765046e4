"""The planner node on a ball in a maze: goals, forces, planning beside the ticks, markers, and whole launches."""

import json
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
from checkpoints import untrained_maze
from diffuser_msgs.msg import GoalStatus, NamedVector, Plan, PlannerStats
from diffuser_msgs.srv import SetGoal
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_client import Session
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import Marker, MarkerArray

from diffuser_core.envs.maze_layout import CHANNELS, FORCES, LAYOUTS
from diffuser_core.envs.maze_motion import MazeGoal
from diffuser_core.envs.maze_policy import MazePolicy
from diffuser_core.envs.policies import make_policy
from diffuser_core.envs.policy_settings import PolicyError, PolicySettings
from diffuser_core.planner import Planner
from diffuser_core.shipped import checkpoint_folder
from diffuser_ros import gym_episode_node
from diffuser_ros.episode_client import EpisodeError
from diffuser_ros.gym_episode_results import GymSettings
from diffuser_ros.parameters import PlannerParameters
from diffuser_ros.planner_node import PlannerNode
from diffuser_ros.qos import COMMAND_QOS, EVENT_QOS, LATCHED_QOS, STATE_QOS
from diffuser_ros.vectors import named_vector

TICK = 0.01
START = (1.0, 1.0, 0.0, 0.0)


class Ball(Node):
    """What the planner talks to."""

    def __init__(self, context):
        super().__init__('ball', context=context)
        self.state = self.create_publisher(NamedVector, 'state', STATE_QOS)
        self.commands, self.stats, self.statuses, self.markers = [], [], [], []
        for kind, topic, heard, qos in (
                (NamedVector, 'command', self.commands, COMMAND_QOS),
                (PlannerStats, 'diffuser_planner/stats', self.stats, EVENT_QOS),
                (GoalStatus, 'diffuser_planner/goal_status', self.statuses, LATCHED_QOS),
                (MarkerArray, 'diffuser_planner/plan_markers', self.markers, EVENT_QOS)):
            self.create_subscription(kind, topic, heard.append, qos)
        self.set_goal = self.create_client(SetGoal, 'diffuser_planner/set_goal')
        self.hold = self.create_client(SetBool, 'diffuser_planner/hold')
        self.clear = self.create_client(Trigger, 'diffuser_planner/clear_goal')


class Rig:
    def __init__(self, session, policy, **parameters):
        self.session, self.now = session, 0.0
        self.ball = session.add(Ball(session.context))
        given = {'robot': 'gym', 'tick_rate': 100.0, **parameters}
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        self.planner = session.add(PlannerNode(context=session.context, parameter_overrides=overrides, policy=policy))
        session.until(lambda: self.ball.statuses and self.ball.state.get_subscription_count()
                      and all(self.planner.count_subscribers(t) for t in ('command', 'diffuser_planner/stats')), 'the planner')

    def publish(self, values=START, names=CHANNELS):
        self.now += TICK
        message = named_vector(names, np.zeros(len(names)), Time(sec=int(self.now), nanosec=round(1e9 * (self.now % 1))))
        message.values = list(map(float, values))
        self.ball.state.publish(message)

    def step(self, values=START, names=CHANNELS):
        """Publish a state in lock-step; the tick's stats and the forces that were sent, if any were."""
        ticks, commands = len(self.ball.stats), len(self.ball.commands)
        self.publish(values, names)
        self.session.until(lambda: len(self.ball.stats) > ticks, 'a tick')
        self.session.spin(0.02)
        sent = self.ball.commands[commands:]
        return self.ball.stats[-1], np.array(sent[-1].values) if sent else None

    def goal(self, values, channels=('x', 'y'), task='state', relations=()):
        request = SetGoal.Request(task=task, channels=list(channels), values=list(map(float, values)), relations=list(relations))
        return self.session.call(self.ball.set_goal, request)


@pytest.fixture
def session():
    session = Session(20.0)
    yield session
    session.close()


@pytest.fixture
def policy():
    return MazePolicy(Planner(untrained_maze()), LAYOUTS['umaze'], candidates=2)


@pytest.fixture
def rig(session, policy):
    return Rig(session, policy, lock_step=True)


def test_without_a_goal_nothing_is_commanded(rig):
    stats, forces = rig.step()
    assert stats.reason == PlannerStats.NO_GOAL and forces is None


def test_a_goal_is_driven_to_and_reached(rig, policy):
    rig.step()
    answer = rig.goal((3.0, 1.0))
    assert answer.success and answer.goal_id == 'goal-1', answer.message
    stats, forces = rig.step()
    assert stats.reason == PlannerStats.OK and stats.goal_id == 'goal-1'
    assert forces.shape == (2,) and (np.abs(forces) <= 1.0).all()
    assert list(rig.ball.commands[-1].names) == list(FORCES)
    rig.now += 1.0
    stats, _ = rig.step((3.0, 1.1, 0.0, 0.0))
    assert stats.reason == PlannerStats.GOAL_REACHED
    assert rig.ball.statuses[-1].status == GoalStatus.REACHED


@pytest.mark.parametrize('wrong, why', [
    ({'values': (2.0, 1.0)}, 'lies in a wall'), ({'values': (30.0, 1.0)}, 'lies outside the maze'),
    ({'values': (float('nan'), 1.0)}, 'not a finite number'), ({'values': (1.0, 2.0, 3.0)}, 'equally many'),
    ({'values': (1.0,), 'channels': ('x',)}, 'a goal has the channels x, y, got x'),
    ({'values': (1.0, 1.0), 'channels': ('x', 'vx')}, 'a goal has the channels x, y'),
    ({'values': (), 'channels': (), 'task': 'stack'}, "use the task 'state'")])
def test_a_goal_that_cannot_be_is_refused_with_the_reason_and_the_old_one_stays(rig, policy, wrong, why):
    rig.step()
    assert rig.goal((3.0, 1.0)).success
    rig.step()
    before = policy.goal
    answer = rig.goal(**wrong)
    assert not answer.success and why in answer.message and answer.goal_id == ''
    assert policy.goal is not None and policy.goal == before
    stats, forces = rig.step()
    assert (stats.goal_id, stats.reason) == ('goal-1', PlannerStats.OK) and forces is not None


def test_the_goal_can_be_changed_on_the_way(rig, policy):
    rig.step()
    rig.goal((3.0, 1.0))
    rig.step()
    assert rig.goal((1.0, 3.0)).goal_id == 'goal-2'
    stats, _ = rig.step()
    assert stats.goal_id == 'goal-2'
    assert policy.command(dict(zip(CHANNELS, START)), rig.now).plan.states[-1, :2].tolist() == [1.0, 3.0]


@pytest.mark.parametrize('values, names, why', [
    ((1.0, 1.0, float('nan'), 0.0), CHANNELS, 'vx is nan'), (START[:3], CHANNELS[:3], 'lacks the channel vy'),
    (START[:3], CHANNELS, '4 names and 3 values'), (START, ('x', 'y', 'vx', 'x'), 'x more than once')])
def test_after_a_bad_state_no_force_is_applied(rig, values, names, why):
    rig.step()
    rig.goal((3.0, 1.0))
    rig.step()
    stats, forces = rig.step(values, names)
    assert stats.reason == PlannerStats.BAD_STATE and why in stats.reason_text
    assert forces.tolist() == [0.0, 0.0]
    stats, _ = rig.step()
    assert stats.reason == PlannerStats.OK


def test_hold_and_clear_let_the_ball_go(rig):
    rig.step()
    rig.goal((3.0, 1.0))
    rig.step()
    rig.session.call(rig.ball.hold, SetBool.Request(data=True))
    stats, forces = rig.step()
    assert stats.reason == PlannerStats.HOLD_REQUESTED and forces.tolist() == [0.0, 0.0]
    rig.session.call(rig.ball.hold, SetBool.Request(data=False))
    assert rig.step()[0].reason == PlannerStats.OK
    rig.session.call(rig.ball.clear, Trigger.Request())
    assert rig.step()[0].reason == PlannerStats.NO_GOAL


def test_plan_trail_and_goal_are_drawn(rig):
    rig.step()
    rig.goal((3.0, 1.0))
    end = time.monotonic() + 20.0
    while not any(m.ns == 'trail' and len(m.points) > 1 for array in rig.ball.markers for m in array.markers):
        assert time.monotonic() < end
        rig.step()
    markers = {m.ns: m for m in rig.ball.markers[-1].markers}
    assert markers['goal'].action == Marker.ADD
    assert (markers['goal'].pose.position.x, markers['goal'].pose.position.y) == (3.0, 1.0)
    assert len(markers['plan'].points) == 16
    first = {m.ns: m for m in rig.ball.markers[0].markers}
    assert len(first['candidates'].points) == 2 * 2 * 15, 'two candidates of 15 stretches'
    assert markers['plan'].points[-1].x == 3.0


def test_the_stamp_of_a_plan_is_the_time_of_its_first_row(rig, policy):
    """Also when an earlier plan is still followed."""
    heard = []
    rig.ball.create_subscription(Plan, 'diffuser_planner/plan', heard.append, EVENT_QOS)
    rig.session.until(lambda: rig.planner.count_subscribers('diffuser_planner/plan'), 'the subscription')
    rig.step()
    rig.goal((3.0, 1.0))
    policy._better = lambda *_: True
    for _ in range(3):
        rig.step()
    rig.session.until(lambda: len(heard) == 3, 'the plans')
    stamps = [plan.header.stamp.sec + 1e-9 * plan.header.stamp.nanosec for plan in heard]
    np.testing.assert_allclose(stamps, 2 * TICK, atol=1e-6)


def test_in_real_time_ticks_do_not_wait_for_plans(session, policy):
    """While a planning run hangs, states are answered from the plan before it."""
    rig = Rig(session, policy)
    rig.publish()
    session.spin(0.1)
    assert rig.goal((3.0, 1.0)).success

    def driven():
        rig.publish()
        session.spin(0.01)
        return any(stats.reason == PlannerStats.OK and stats.replans > 2 for stats in rig.ball.stats)

    session.until(driven, 'plans')
    hanging, go_on = threading.Event(), threading.Event()
    replan = policy.replan

    def slow(*given):
        hanging.set()
        assert go_on.wait(20.0)
        return replan(*given)

    policy.replan = slow
    session.until(lambda: driven() and hanging.is_set(), 'a planning run that hangs')
    commands, replans = len(rig.ball.commands), policy.replans
    session.until(lambda: driven() and len(rig.ball.commands) > commands + 10, 'ticks meanwhile')
    assert policy.replans == replans
    go_on.set()
    session.until(lambda: driven() and policy.replans > replans + 2, 'further plans')


def test_the_robot_follows_from_the_checkpoint(tmp_path):
    untrained_maze().save(tmp_path / 'maze')
    with pytest.raises(PolicyError, match='does not say which maze it is for'):
        make_policy(PolicySettings(checkpoint=str(tmp_path / 'maze')))
    with pytest.raises(PolicyError, match="the robot 'gym' needs the parameter checkpoint"):
        make_policy(PolicySettings(robot='gym'))
    with pytest.raises(PolicyError, match="unknown robot 'boat'; there are auto, kuka, gym, runner"):
        make_policy(PolicySettings(robot='boat'))


@pytest.mark.parametrize('error', [EpisodeError('the bridge has gone'), KeyboardInterrupt()])
def test_episodes_that_are_broken_off_leave_no_recording(tmp_path, error):
    settings = GymSettings('Hopper-v5', {}, 2, 0, 'random', (), tmp_path, False, False, 'test')

    def run():
        (tmp_path / gym_episode_node.RECORDING).write_bytes(b'of the first episode')
        raise error

    with pytest.raises(type(error)):
        gym_episode_node._run(SimpleNamespace(settings=settings, run=run))
    assert not list(tmp_path.iterdir())


def test_states_that_stop_coming_are_noticed_and_the_ball_is_let_go(session, policy):
    rig = Rig(session, policy, state_timeout=0.2)
    rig.publish()
    session.spin(0.1)
    assert rig.goal((3.0, 1.0)).success

    def driven():
        rig.publish()
        session.spin(0.01)
        return bool(rig.ball.commands)

    session.until(driven, 'a command')
    session.until(lambda: rig.ball.stats[-1].reason == PlannerStats.STALE_STATE, 'a stale state')
    session.until(lambda: list(rig.ball.commands[-1].values) == [0.0, 0.0], 'no force')


def test_in_lock_step_no_tick_is_late_however_long_it_takes(rig, policy):
    replan = policy.replan
    policy.replan = lambda *given: (time.sleep(0.05), replan(*given))[1]  # five ticks' time
    rig.step()
    rig.goal((3.0, 1.0))
    stats = [rig.step()[0] for _ in range(3)][-1]
    assert stats.latency_ms > 10.0 and stats.late_ticks == 0


def test_the_parameters_reach_the_planner_which_is_warmed_up():
    """Nothing is compiled any more when the first goal comes."""
    parameters = PlannerParameters(checkpoint=str(checkpoint_folder('maze2d_umaze')), backend='openvino', steps=4, warm_steps=2,
                                   warm_level=0.4, seed=5)
    policy = make_policy(parameters.policy)
    assert (policy.replans, policy.goal) == (0, None)
    compiled = policy.planner._denoiser.network._requests
    ready = set(compiled)
    observation = dict(zip(CHANNELS, START))
    policy.set_goal(MazeGoal(3.0, 1.0), observation)
    first = policy.act(observation, 0.0).plan
    policy._horizon.follow(first)
    again = policy._horizon.update(policy.planner.channels.vector(observation), policy._conditions(np.array([3.0, 1.0])), 0.0)
    assert set(compiled) == ready
    assert (len(first.provenance['levels']), len(again.provenance['levels'])) == (4, 2)
    assert again.provenance['levels'][0] < 0.4 * 64


# ---- Launches --------------------------------------------------------------------------------------------------------


def launch(folder, *words):
    """Run a launch file as users do and return what it printed; whatever it leaves running is killed and fails the test."""
    command = [str(Path(sys.executable).parent / 'diffuser-ros'), 'launch', *words, f'out:={folder}']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=300.0)
    finally:
        left = process.poll() is None
        if left:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def test_the_maze_launch_file_drives_repeats_itself_and_makes_a_video(tmp_path):
    words = ('maze2d.launch.py', 'size:=umaze', 'multi_task:=true', 'realtime:=false', 'seed:=6000')
    launch(tmp_path / 'first', *words, 'video:=true')
    launch(tmp_path / 'second', *words, 'video:=false')
    first, second = (json.loads((tmp_path / name / 'summary.json').read_text()) for name in ('first', 'second'))
    assert first['score'] == second['score'] > 60.0
    assert (first['ticks'], first['late_ticks'], first['refused'], first['episodes']) == (300, 0, 0, 1)
    assert first['command'].startswith('ros2 launch diffuser_ros maze2d.launch.py')
    assert sorted(p.name for p in (tmp_path / 'first').iterdir()) == ['episode.mp4', 'episodes.jsonl', 'summary.json']
    assert (tmp_path / 'first' / 'episode.mp4').stat().st_size > 3000


def test_the_mujoco_launch_file_runs_any_environment_at_random(tmp_path):
    output = launch(tmp_path, 'mujoco.launch.py', 'env:=InvertedPendulum-v5', 'realtime:=false', 'episodes:=2')
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert (summary['task'], summary['driver']) == ('InvertedPendulum-v5', 'random')
    assert (summary['episodes'], summary['score']) == (2, None)
    assert len(summary['returns']) == 2 and summary['ticks'] >= 2
    assert 'driven by actions drawn evenly' in output
