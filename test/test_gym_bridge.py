"""Gymnasium environments as robots: names, lock-step, clipping, goals, time, and what is refused."""

import gymnasium
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import GymEpisodeStatus, NamedVector
from diffuser_msgs.srv import ResetEpisode
from gymnasium.spaces import Box, Dict, Discrete
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_client import Session
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray

from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_ros.bridges.gym import GymBridge
from diffuser_ros.bridges.gym_robot import EnvError, GymRobot, Recording, parse_kwargs
from diffuser_ros.qos import CLOCK_QOS, COMMAND_QOS, EVENT_QOS, LATCHED_QOS, STATE_QOS
from diffuser_ros.vectors import named_vector

MAZE = 'diffuser/Maze2D-UMaze-v0'
FORCES = ('force.x', 'force.y')


class Peer(Node):
    """What commands the bridge and hears it."""

    def __init__(self, context):
        super().__init__('peer', context=context)
        self.states, self.statuses, self.joints, self.clocks, self.walls = [], [], [], [], []
        for kind, topic, heard, qos in (
                (NamedVector, 'state', self.states, STATE_QOS), (GymEpisodeStatus, 'episode_status', self.statuses, EVENT_QOS),
                (JointState, 'joint_states', self.joints, STATE_QOS), (Clock, '/clock', self.clocks, CLOCK_QOS),
                (MarkerArray, 'gym_bridge/walls', self.walls, LATCHED_QOS)):
            self.create_subscription(kind, topic, heard.append, qos)
        self.command = self.create_publisher(NamedVector, 'command', COMMAND_QOS)
        self.reset = self.create_client(ResetEpisode, 'gym_bridge/reset_episode')
        self.save = self.create_client(Trigger, 'gym_bridge/save_recording')


class Rig:
    def __init__(self, session, **parameters):
        self.session = session
        self.peer = session.add(Peer(session.context))
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.bridge = session.add(GymBridge(context=session.context, parameter_overrides=overrides))
        session.until(lambda: self.bridge.count_subscribers('state') and self.bridge.count_publishers('command')
                      and self.peer.command.get_subscription_count(), 'the bridge')

    def reset(self, seed=0, **more):
        heard = len(self.peer.states)
        answer = self.session.call(self.peer.reset, ResetEpisode.Request(seed=seed, **more))
        if answer.success:
            self.session.until(lambda: len(self.peer.states) > heard, 'the state after the reset')
        return answer

    def act(self, values, names=FORCES, stamp=None):
        """Answer the newest state and wait for the next; the new state's values."""
        heard = len(self.peer.states)
        self.peer.command.publish(named_vector(names, np.asarray(values), stamp or self.peer.states[-1].header.stamp))
        self.session.until(lambda: len(self.peer.states) > heard, 'the next state')
        return np.array(self.peer.states[-1].values)


    @property
    def status(self):
        """The status that was published with the newest state."""
        peer = self.peer
        self.session.until(lambda: peer.statuses and peer.statuses[-1].header.stamp == peer.states[-1].header.stamp,
                           'the status')
        return peer.statuses[-1]


@pytest.fixture
def session():
    session = Session(20.0)
    yield session
    session.close()


@pytest.fixture
def rig(session):
    return Rig(session, env=MAZE, realtime=False, seed=3)


def test_lock_step_is_the_environment_itself(rig):
    rig.reset(5)
    env = gymnasium.make(MAZE)
    expected, _ = env.reset(seed=5)
    assert list(rig.peer.states[-1].names) == ['x', 'y', 'vx', 'vy']
    np.testing.assert_array_equal(rig.peer.states[-1].values, expected)
    rng, returned = np.random.default_rng(0), 0.0
    for _ in range(20):
        force = rng.uniform(-1.0, 1.0, 2)
        expected, reward, *_ = env.step(force.astype(np.float32))
        returned += reward
        np.testing.assert_allclose(rig.act(force), expected, atol=1e-12)
    status = rig.status
    assert (status.seed, status.step, status.limit, status.episode_return) == (5, 20, 300, returned)
    assert status.score == pytest.approx(PointMazeEnv('umaze').layout.score(returned))
    assert (list(status.goal_names), list(status.goal_values)) == (['x', 'y'], [1.0, 1.0])


def test_stamps_count_steps_and_only_the_newest_state_is_answered(rig):
    rig.reset(0)
    stamp = rig.peer.states[-1].header.stamp
    rig.act([0.0, 0.0])
    after = rig.peer.states[-1].header.stamp
    assert 1e9 * (after.sec - stamp.sec) + after.nanosec - stamp.nanosec == pytest.approx(1e7)
    steps = rig.status.step
    rig.peer.command.publish(named_vector(FORCES, np.ones(2), stamp))  # an answer to a state of the past
    rig.act([0.0, 0.0])
    assert rig.status.step == steps + 1


def test_commands_are_put_in_order_clipped_and_counted(rig):
    rig.reset(0)
    state = np.array(rig.peer.states[-1].values)
    after = rig.act([7.0, -0.5], names=('force.y', 'force.x'))
    env = PointMazeEnv('umaze')
    env.reset(seed=0, options={'state': state})
    np.testing.assert_allclose(after, env.step(np.array([-0.5, 1.0]))[0], atol=1e-12)
    assert rig.status.clipped == rig.bridge.clipped == 1


@pytest.mark.parametrize('names, values', [
    (FORCES, [np.nan, 0.0]), (('force.x',), [1.0]), (('force.x', 'force.z'), [1.0, 1.0]), (('force.x', 'force.x'), [1.0, 1.0]),
    (FORCES, [1.0])])
def test_commands_that_make_no_sense_are_refused_and_counted(rig, names, values):
    rig.reset(0)
    rig.peer.command.publish(NamedVector(header=rig.peer.states[-1].header, names=list(names), values=list(map(float, values))))
    rig.session.until(lambda: rig.bridge.refused == 1, 'the refusal')
    rig.act([0.0, 0.0])
    assert (rig.status.step, rig.status.refused) == (1, 1)


def test_the_same_seed_gives_the_same_episode_and_a_goal_can_be_given(rig):
    rig.reset(4)
    first = np.array(rig.peer.states[-1].values)
    rig.reset(9)
    assert not np.array_equal(rig.peer.states[-1].values, first)
    assert rig.reset(4, goal=[3.0, 1.0]).success
    np.testing.assert_array_equal(rig.peer.states[-1].values, first)
    assert list(rig.status.goal_values) == [3.0, 1.0]


@pytest.mark.parametrize('request_, why', [
    ({'seed': -1}, 'must be 0 or greater'), ({'seed': 0, 'goal': [0.0, 0.0]}, 'lies in a wall'),
    ({'seed': 0, 'goal': [1.0]}, 'two numbers'),
    ({'seed': 0, 'goal': [float('nan'), 1.0]}, 'not finite'), ({'seed': 0, 'task': 'conditional'}, 'has no tasks')])
def test_a_reset_that_cannot_be_done_changes_nothing(rig, request_, why):
    rig.reset(0)
    rig.act([0.5, 0.0])
    answer = rig.session.call(rig.peer.reset, ResetEpisode.Request(**request_))
    assert not answer.success and why in answer.message
    rig.act([0.5, 0.0])
    assert (rig.status.step, list(rig.status.goal_values)) == (2, [1.0, 1.0])


def test_an_episode_stands_still_once_it_has_ended_and_can_be_run_again(session, tmp_path):
    rig = Rig(session, env=MAZE, kwargs='{max_episode_steps: 3}', realtime=False, recording=str(tmp_path / 'episode.npz'))
    rig.reset(2)
    assert not session.call(rig.peer.save, Trigger.Request()).success
    for _ in range(3):
        last = rig.act([1.0, 0.2])
    assert rig.status.done
    rig.peer.command.publish(named_vector(FORCES, np.ones(2), rig.peer.states[-1].header.stamp))
    assert session.call(rig.peer.save, Trigger.Request()).success
    assert rig.status.step == 3
    recording = Recording.load(tmp_path / 'episode.npz')
    robot = GymRobot(recording.env, recording.kwargs)
    robot.reset(recording.seed, recording.goal)
    for action in recording.actions:
        state, *_ = robot.step(action)
    np.testing.assert_array_equal(state, last)
    np.testing.assert_array_equal(state, recording.last)


def test_in_real_time_a_command_that_stops_coming_gives_way_to_the_neutral_action(session):
    rig = Rig(session, env=MAZE, realtime=True, command_timeout=0.05)
    rig.reset(0)
    first = rig.status.step
    assert first == 0  # it waits for the first command
    rig.peer.command.publish(named_vector(FORCES, np.array([1.0, 0.0]), Time()))
    session.until(lambda: rig.bridge.timeouts > 3, 'the timeout')
    session.until(lambda: rig.peer.statuses[-1].timeouts > 3, 'its count')
    assert rig.peer.statuses[-1].step > rig.peer.statuses[-1].timeouts


def test_in_real_time_a_command_from_before_the_reset_does_not_begin_the_episode(session):
    rig = Rig(session, env=MAZE, realtime=True)
    rig.reset(0)
    rig.peer.command.publish(named_vector(FORCES, np.array([1.0, 0.0]), Time(nanosec=1)))
    session.spin(0.2)
    assert rig.status.step == 0
    rig.peer.command.publish(named_vector(FORCES, np.array([1.0, 0.0]), rig.peer.states[-1].header.stamp))
    session.until(lambda: rig.status.step > 0, 'the first step')


def test_in_lock_step_a_state_that_nobody_answers_is_published_again(session, monkeypatch):
    monkeypatch.setattr('diffuser_ros.bridges.gym.ANSWER_TIMEOUT', 0.1)
    rig = Rig(session, env=MAZE, realtime=False)
    rig.reset(0)
    heard, stamp = len(rig.peer.states), rig.peer.states[-1].header.stamp
    session.until(lambda: len(rig.peer.states) > heard, 'the state again')
    assert rig.peer.states[-1].header.stamp == stamp and rig.status.step == 0


def test_a_mujoco_robot_publishes_its_joints_and_the_clock(session):
    rig = Rig(session, env='Hopper-v5', realtime=False, publish_clock=True)
    rig.reset(0)
    before = rig.bridge.robot.joint_values()
    rig.act([0.1, -0.2, 0.3], names=('action.0', 'action.1', 'action.2'))
    stamp = rig.peer.states[-1].header.stamp
    session.until(lambda: any(joints.header.stamp == stamp for joints in rig.peer.joints), 'the joints')
    session.until(lambda: any(message.clock == stamp for message in rig.peer.clocks), 'the clock')
    joints = rig.peer.joints[-1]
    assert {'thigh_joint', 'leg_joint', 'foot_joint'} <= set(joints.name)
    data = rig.bridge.robot._simulation()[1]
    assert joints.position[joints.name.index('foot_joint')] == pytest.approx(data.qpos[5])
    assert not np.array_equal(before[0], joints.position)
    assert len(rig.peer.states[-1].names) == 11 and rig.peer.states[-1].names[10] == 'obs.10'


def test_a_maze_of_gymnasium_robotics_has_named_parts_joints_and_walls():
    """Its observation is a Dict, and its MuJoCo model belongs to an environment inside it."""
    robot = GymRobot('gymnasium_robotics:PointMaze_UMaze-v3', {'max_episode_steps': 50})
    try:
        state = robot.reset(3)
        assert robot.state_names == ('achieved_goal.0', 'achieved_goal.1', 'desired_goal.0', 'desired_goal.1',
                                     'observation.0', 'observation.1', 'observation.2', 'observation.3')
        np.testing.assert_array_equal(state[4:6], state[:2])
        assert robot.action_names == ('action.0', 'action.1') and (robot.dt, robot.limit) == (0.01, 50)
        assert [joint.name for joint in robot.joints] == ['ball_x', 'ball_y']
        np.testing.assert_allclose(np.concatenate(robot.joint_values()), state[4:])
        assert len(robot.static_boxes()) == 18 and robot.goal()[0] == () and np.isnan(robot.score(1.0))
        with pytest.raises(EnvError, match='takes no goal'):
            robot.reset(0, [1.0, 1.0])
    finally:
        robot.close()


def test_the_walls_of_a_maze_are_published_as_markers(rig):
    rig.session.until(lambda: rig.peer.walls, 'the walls')
    walls = rig.peer.walls[-1].markers
    expected = PointMazeEnv('umaze').layout.wall_boxes
    centres = np.array([[m.pose.position.x, m.pose.position.y] for m in walls])
    np.testing.assert_allclose(sorted(centres.tolist()), sorted(((expected[:, :2] + expected[:, 2:]) / 2).tolist()), atol=1e-6)
    assert {(m.scale.x, m.scale.y) for m in walls} == {(1.0, 1.0)}


class Odd(gymnasium.Env):
    """An environment with the given spaces."""

    metadata = {'render_fps': 50}

    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


@pytest.fixture
def odd():
    def register(observation, action):
        gymnasium.register('test/Odd-v0', lambda: Odd(observation, action))
        return 'test/Odd-v0'

    yield register
    gymnasium.registry.pop('test/Odd-v0', None)


def test_dict_observations_are_laid_out_flat(odd):
    space = Dict({'arm': Box(-1, 1, (2,)), 'camera': Dict({'x': Box(-1, 1, (1,))})})
    robot = GymRobot(odd(space, Box(-2, 3, (1,))))
    assert robot.state_names == ('arm.0', 'arm.1', 'camera.x.0')
    assert (robot.action_names, robot.dt, robot.limit) == (('action.0',), 0.02, 0)
    assert robot.reset(0).shape == (3,)


@pytest.mark.parametrize('observation, action, why', [
    (Box(-1, 1, (2,)), Discrete(3), 'its action space is Discrete, not Box'),
    (Discrete(3), Box(-1, 1, (2,)), 'its observation space is Discrete, not Box'),
    (Dict({'a': Discrete(2)}), Box(-1, 1, (2,)), 'observation space is Discrete at a')])
def test_environments_of_other_kinds_are_refused(odd, observation, action, why):
    with pytest.raises(EnvError, match=why):
        GymRobot(odd(observation, action))


@pytest.mark.parametrize('parameters, why', [
    ({}, 'the parameter env is missing'), ({'env': 'Hopper-v99'}, "the environment 'Hopper-v99' cannot be made"),
    ({'env': MAZE, 'kwargs': 'size: [', }, 'kwargs is not YAML'), ({'env': MAZE, 'kwargs': 'umaze'}, 'kwargs must be a mapping'),
    ({'env': MAZE, 'kwargs': '{colour: red}'}, 'cannot be made')])
def test_a_bridge_that_cannot_start_says_why(session, parameters, why):
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    with pytest.raises(EnvError, match=why):
        GymBridge(context=session.context, parameter_overrides=overrides)


def test_arguments_are_yaml_or_json():
    assert parse_kwargs('') == {}
    assert parse_kwargs('{"size": "large"}') == parse_kwargs('size: large') == {'size': 'large'}


@pytest.mark.parametrize(('env', 'kwargs', 'named'), [('Hopper-v5', {}, 'track'), ('Hopper-v5', {'camera_id': -1}, None),
                                                      ('InvertedPendulum-v5', {}, None)])
def test_pictures_are_from_the_camera_that_follows_the_robot_if_there_is_one(env, kwargs, named):
    robot = GymRobot(env, kwargs, render=True)
    renderer = robot._env.unwrapped.mujoco_renderer
    assert (renderer.model.camera(renderer.camera_id).name if renderer.camera_id >= 0 else None) == named
    robot.close()
