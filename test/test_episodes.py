"""Minari data sets as training data: ours and those of other environments."""

import shutil
import tempfile

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from diffuser_core.config import load_config
from diffuser_core.data.episodes import load_episodes
from diffuser_core.envs.maze_layout import CHANNELS, FORCES, LAYOUTS
from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_core.experts import waypoint
from diffuser_core.experts.collect_mazes import collect_maze
from diffuser_core.train.config import TrainConfig
from diffuser_core.train.data_sets import load_training_data

SEED = 70_000


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp('mazes')
    collect_maze(out, 'umaze', SEED, 1, steps=3000, drive_ticks=1500, progress=False)
    return out


@pytest.fixture(scope='module')
def data(folder):
    return load_episodes(folder)


def test_channels_come_named_with_the_actions_first(data):
    assert data.channels == (*FORCES, *CHANNELS)
    assert data.units == ('1', '1', 'm', 'm', 'm/s', 'm/s')
    assert (data.actions, data.tick_dt) == (2, 0.01)


def test_journeys_replay_in_the_simulation(data):
    env = PointMazeEnv('umaze')
    env.reset(seed=0)
    for first, end in data.bounds[[0, len(data) // 2, -1]]:
        rows = data.observations[first:end].astype(np.float64)
        env.set_state(rows[0, 2:])
        for row, after in zip(rows[:-1], rows[1:]):
            env.set_state(row[2:])
            state, *_ = env.step(row[:2])
            np.testing.assert_allclose(state, after[2:], atol=2e-4)


def test_journeys_end_at_rest(data):
    ends = data.observations[data.bounds[:, 1] - 1]
    assert len(ends) > 10
    assert np.hypot(*ends[:, 4:].T).max() < waypoint.REST_SPEED + 0.02


def test_journeys_do_not_overlap_and_leave_out_those_that_were_interrupted(data):
    lengths = np.diff(data.bounds, axis=1)[:, 0]
    assert lengths.sum() == len(data.observations) < 3000 + len(data)
    assert (data.bounds[1:, 0] == data.bounds[:-1, 1]).all()


def test_some_journeys_begin_at_speed_because_the_one_before_was_broken_off(data):
    columns = waypoint.journeys('umaze', waypoint.REACH_RANGE, 1500, range(SEED, SEED + 2), lambda: False)
    broken_off = np.diff(columns['journey'] == -1, prepend=0) == 1
    assert broken_off.sum() > 2  # more than the two drives' ends
    starts = data.observations[data.bounds[:, 0], 4:]
    assert np.hypot(*starts.T).max() > 1.0


def test_d4rls_controller_turns_to_the_next_waypoint_a_tick_after_it_came_within_reach():
    observation = np.array([1.0, 1.95, 0.0, 0.0])  # within 0.1 m of the first waypoint, (1, 2); the next is (1, 3)
    forces = {}
    for reach in (None, waypoint.D4RL_REACH):
        controller = waypoint.WaypointController(LAYOUTS['umaze'], reach)
        controller.start((1.0, 1.0), (1.0, 3.0))
        forces[reach] = [controller.act(observation).tolist() for _ in range(2)]
    towards_first, towards_next = [0.0, pytest.approx(0.5)], [0.0, 1.0]
    assert forces[None] == [towards_first, towards_next]
    assert forces[waypoint.D4RL_REACH] == [towards_next, towards_next]


def test_whole_episodes_are_drives(folder, data):
    whole = load_episodes(folder, whole=True)
    assert whole.bounds.tolist() == [[0, 1501], [1501, 3002]]
    assert whole.fingerprint != data.fingerprint


def test_collecting_again_does_nothing_and_other_settings_are_refused(folder, data):
    summary = collect_maze(folder, 'umaze', SEED, 1, steps=3000, drive_ticks=1500, progress=False)
    assert summary['cpu_seconds'] == 0.0
    assert summary['fingerprint'] == data.fingerprint
    with pytest.raises(ValueError, match='reach'):
        collect_maze(folder, 'umaze', SEED, 1, steps=3000, drive_ticks=1500, d4rl_controller=True, progress=False)
    with pytest.raises(ValueError, match='must be at least 1'):
        collect_maze(folder, 'umaze', SEED, 1, steps=0, progress=False)


def test_workers_do_not_change_the_data(tmp_path, data):
    summary = collect_maze(tmp_path, 'umaze', SEED, 2, steps=3000, drive_ticks=1500, progress=False)
    assert summary['fingerprint'] == data.fingerprint


def test_the_d4rl_controller_takes_every_waypoint_within_a_tenth_of_a_metre(tmp_path):
    """On the way round the U, its path comes within 0.1 m of every cell's integer position."""
    collect_maze(tmp_path, 'umaze', SEED, 1, steps=1500, d4rl_controller=True, progress=False)
    rows = load_episodes(tmp_path, whole=True).observations[:, 2:4]
    for corner in ((1, 3), (3, 3)):
        assert np.hypot(*(rows - corner).T).min() < 0.1


@pytest.mark.parametrize('overrides, whole', [([], False), (['data.whole_episodes=true'], True)])
def test_a_training_configuration_reads_it(folder, overrides, whole):
    config = load_config(TrainConfig, 'config/maze2d_umaze.yaml', [f'data.path={folder}', *overrides])
    data = load_training_data(config.data.path, whole=config.data.whole_episodes)
    assert data.channels == (*FORCES, *CHANNELS)
    assert (len(data.bounds) == 2) is whole


# ---- Data sets of others ---------------------------------------------------------------------------------------------


def make(monkeypatch, root, name, env_id, observations, steps=30, **columns):
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(root))
    env = gymnasium.make(env_id)
    rng = np.random.default_rng(0)
    buffer = EpisodeBuffer(observations=observations(rng, steps + 1), rewards=np.zeros(steps),
                           actions=rng.uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32),
                           terminations=np.zeros(steps, dtype=bool), truncations=np.arange(steps) == steps - 1)
    minari.create_dataset_from_buffers(name, [buffer, buffer], env=env.spec, data_format='hdf5')
    env.close()


def test_an_installed_data_set_of_a_mujoco_robot_loads_by_its_id(monkeypatch, tmp_path):
    make(monkeypatch, tmp_path, 'mujoco/hopper/test-v0', 'Hopper-v5', lambda rng, n: rng.standard_normal((n, 11)))
    data = load_training_data('minari:mujoco/hopper/test-v0')
    assert data.channels[:4] == ('action.0', 'action.1', 'action.2', 'obs.0') and len(data.channels) == 14
    assert data.bounds.tolist() == [[0, 31], [31, 62]]
    assert data.tick_dt == pytest.approx(0.008)


def test_of_a_goal_conditioned_maze_the_observation_counts(monkeypatch, tmp_path):
    import gymnasium_robotics
    gymnasium.register_envs(gymnasium_robotics)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # its environment leaves its model file behind

    def observations(rng, n):
        return {'observation': rng.standard_normal((n, 4)), 'achieved_goal': np.zeros((n, 2)), 'desired_goal': np.ones((n, 2))}

    make(monkeypatch, tmp_path, 'D4RL/pointmaze/test-v0', 'PointMaze_UMaze-v3', observations)
    data = load_training_data('minari:D4RL/pointmaze/test-v0')
    assert data.channels == ('action.0', 'action.1', 'obs.0', 'obs.1', 'obs.2', 'obs.3')
    assert data.tick_dt == pytest.approx(0.01)
    assert np.abs(data.observations[:, 2:]).max() > 1.5  # not the goals, which are 0 and 1


def test_what_cannot_be_used_is_said(monkeypatch, tmp_path, folder):
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='D4RL/pointmaze/umaze-v2 is not installed'):
        load_training_data('minari:D4RL/pointmaze/umaze-v2')
    with pytest.raises(FileNotFoundError, match='must hold one data set'):
        load_training_data(str(tmp_path / 'nothing'))
    make(monkeypatch, tmp_path, 'test/nan-v0', 'Hopper-v5', lambda rng, n: np.full((n, 11), np.nan))
    with pytest.raises(ValueError, match='episode 0 holds numbers that are not finite'):
        load_training_data('minari:test/nan-v0')
    broken = tmp_path / 'broken'
    shutil.copytree(folder, broken)
    next(broken.glob('**/main_data.hdf5')).write_bytes(b'not HDF5')
    with pytest.raises(ValueError, match='is damaged'):
        load_training_data(str(broken))
