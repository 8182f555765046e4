"""The mazes: physics against another implementation, rules against brute force, errors."""

import tempfile

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import diffuser_core.envs  # noqa: F401  registers the environments
from diffuser_core.envs.maze_layout import BALL_RADIUS, LAYOUTS, LOWER_EDGE, layout
from diffuser_core.envs.maze_picture import draw
from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_core.evaluate.maze_policies import BASELINES, run_maze_episode
from diffuser_core.evaluate.statistics import mean_interval

SIZES = tuple(LAYOUTS)
PLACES = st.tuples(st.floats(-2.0, 13.0), st.floats(-2.0, 13.0))


@pytest.fixture(scope='module')
def other(tmp_path_factory):
    """gymnasium-robotics' ball in the large maze, whose x runs along our columns and y against our rows, from the middle."""
    from gymnasium_robotics.envs.maze.maps import LARGE_MAZE
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv as Other
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, 'tempdir', str(tmp_path_factory.mktemp('model')))  # it leaves its model file behind
        env = Other(maze_map=LARGE_MAZE)
    env.reset(seed=0)
    yield env.point_env
    env.close()


def to_other(state):
    """Our state in their coordinates: cells are centred at integers + 0.5 - half the maze there, at integers - 0.2 here."""
    rows, columns = LAYOUTS['large'].walls.shape
    x, y, vx, vy = state
    return np.array([y + LOWER_EDGE - columns / 2, rows / 2 - (x + LOWER_EDGE), vy, -vx])


@pytest.mark.parametrize('seed', range(8))
def test_the_physics_is_that_of_gymnasium_robotics_walls_included(other, seed):
    rng = np.random.default_rng(seed)
    env = PointMazeEnv('large', multi_task=True)
    state, _ = env.reset(seed=seed)
    mapped = to_other(state)
    other.set_state(mapped[:2], mapped[2:])
    touched, push = False, np.zeros(2)
    for tick in range(200):
        if tick % 40 == 0:  # long pushes, so that the ball runs into walls
            push = rng.uniform(-1.5, 1.5, 2)
        state, *_ = env.step(push)
        theirs, *_ = other.step(np.array([push[1], -push[0]]))
        np.testing.assert_allclose(to_other(state), theirs, atol=1e-6)
        touched |= bool(env.data.ncon)
    assert touched


@pytest.mark.parametrize('policy, expected', [('waypoint', (142.8, 156.0, 200.0)), ('random', (0.0, 0.0, 0.0))])
def test_reference_controllers_score_what_is_known_of_them(policy, expected):
    """The replanning waypoint controller over 300 episodes elsewhere; random forces score 0 by definition."""
    for size, known in zip(SIZES, expected):
        env, controller = PointMazeEnv(size), BASELINES[policy](LAYOUTS[size])
        scores = np.array([run_maze_episode(controller, env, size, seed)['score'] for seed in range(40)])
        low, high = mean_interval(scores, confidence=0.99)
        assert low <= known <= high, (size, scores.mean(), low, high)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ['Maze2D', 'Multi2D'])
def test_registered_environments_pass_gymnasiums_checker_and_end_at_their_limit(size, kind):
    title = {'umaze': 'UMaze', 'medium': 'Medium', 'large': 'Large'}[size]
    env = gymnasium.make(f'diffuser/{kind}-{title}-v0')
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    steps = 1
    while not env.step(np.zeros(2, dtype=np.float32))[3]:
        steps += 1
    assert steps == {'umaze': 300, 'medium': 600, 'large': 800}[size]


def test_the_seed_decides_start_and_goal():
    env = PointMazeEnv('medium', multi_task=True)
    starts = [env.reset(seed=seed)[0] for seed in (3, 4, 3)]
    goals = [env.reset(seed=seed)[1]['goal'] for seed in (3, 4, 3)]
    for drawn in (starts, goals):
        assert np.array_equal(drawn[0], drawn[2]) and not np.array_equal(drawn[0], drawn[1])
    single = PointMazeEnv('medium')
    assert [single.reset(seed=seed)[1]['goal'].tolist() for seed in (3, 4)] == [[6.0, 6.0]] * 2


@pytest.mark.parametrize('size', SIZES)
def test_every_start_and_goal_is_a_place_where_the_ball_can_be(size):
    env = PointMazeEnv(size, multi_task=True)
    for seed in range(60):
        state, info = env.reset(seed=seed)
        for place in (state[:2], info['goal']):
            assert env.layout.why_not(place) == ''
            assert np.abs(place - np.round(place)).max() <= 0.1


@pytest.mark.parametrize('distance, reward', [(0.499, 1.0), (0.501, 0.0)])
def test_the_reward_is_one_within_half_a_metre_of_the_goal(distance, reward):
    env = PointMazeEnv('medium')
    env.reset(seed=0, options={'goal': (6.0, 5.9), 'state': (6.0, 5.9 - distance, 0.0, 0.0)})
    _, got, terminated, truncated, info = env.step(np.zeros(2))
    assert (got, info['success'], terminated, truncated) == (reward, bool(reward), False, False)


@pytest.mark.parametrize('push, rest', [((-1.0, 0.0), (0.4, 1.0)), ((1.0, 0.0), (1.2, 1.0)), ((0.0, -1.0), (1.0, 0.4))])
def test_the_free_space_is_off_centre_as_in_d4rl(push, rest):
    """The ball's body is at +1.2, a wall of row i reaches from i + 0.5 to i + 1.5, and the ball's radius is 0.1 m."""
    env = PointMazeEnv('umaze')
    env.reset(seed=0, options={'state': (1.0, 1.0, 0.0, 0.0)})
    for _ in range(150):
        state, *_ = env.step(np.array(push))
    np.testing.assert_allclose(state[:2], rest, atol=0.01)


def test_forces_and_speeds_are_clipped():
    env = PointMazeEnv('large')
    start = {'state': (1.0, 1.0, 0.0, 0.0)}
    env.reset(seed=0, options=start)
    ours, *_ = env.step(np.array([0.3, 7.0]))
    env.reset(seed=0, options=start)
    np.testing.assert_array_equal(ours, env.step(np.array([0.3, 1.0]))[0])
    env.reset(seed=0, options={'state': (1.0, 1.0, 0.0, 50.0)})
    after, *_ = env.step(np.zeros(2))
    assert after[1] == pytest.approx(1.05, abs=0.001)


@pytest.mark.parametrize('options, why', [
    ({'state': (0.0, 0.0, 0.0, 0.0)}, 'lies in a wall'), ({'goal': (99.0, 1.0)}, 'lies outside'),
    ({'goal': (1.0,)}, 'two numbers'),
    ({'state': (1.0, 1.0)}, 'needs four finite numbers'), ({'state': (1.0, 1.0, np.nan, 0.0)}, 'needs four finite numbers'),
    ({'speed': 1.0}, "unknown reset option 'speed'")])
def test_bad_options_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        PointMazeEnv('umaze').reset(seed=0, options=options)


def test_bad_actions_sizes_and_render_modes_are_refused():
    env = PointMazeEnv('umaze')
    env.reset(seed=0)
    for action in (np.zeros(3), np.array([np.nan, 0.0])):
        with pytest.raises(ValueError, match='two finite numbers'):
            env.step(action)
    with pytest.raises(ValueError, match='there are umaze, medium, large'):
        PointMazeEnv('huge')
    with pytest.raises(ValueError, match="'rgb_array'"):
        PointMazeEnv('umaze', render_mode='human')


# ---- Layout ----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(SIZES), PLACES)
def test_clearance_is_the_distance_to_the_nearest_wall(size, place):
    """Against the nearest of many points on all walls."""
    maze = layout(size)
    steps = np.linspace(0.0, 1.0, 21)
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    points = (np.argwhere(maze.walls)[:, None] - LOWER_EDGE + grid).reshape(-1, 2)
    assert maze.clearance(place) == pytest.approx(np.hypot(*(points - place).T).min(), abs=0.036)


@given(st.sampled_from(SIZES), PLACES)
def test_a_place_is_good_exactly_if_the_ball_fits_there(size, place):
    maze = layout(size)
    cell = tuple(np.floor(np.add(place, LOWER_EDGE)).astype(int))
    inside = all(0 <= n < size for n, size in zip(cell, maze.walls.shape))
    fits = inside and not maze.walls[cell] and maze.clearance(place) >= BALL_RADIUS
    assert (maze.why_not(place) == '') == fits


@pytest.mark.parametrize('size', SIZES)
def test_ways_are_shortest(size):
    """Against the powers of the adjacency matrix."""
    maze = layout(size)
    cells = maze.free_cells
    adjacent = np.array([[abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for b in cells] for a in cells])
    reach, steps = np.eye(len(cells), dtype=bool), np.zeros((len(cells), len(cells)), dtype=int)
    for n in range(1, 40):
        new = (reach @ adjacent) & ~reach
        steps[new] = n
        reach |= new
    assert reach.all()
    for a, start in enumerate(cells):
        for b, end in enumerate(cells):
            way = [start, *maze.way(start, end)]
            assert len(way) - 1 == steps[a, b] and way[-1] == end
            assert all(adjacent[cells.index(p), cells.index(q)] for p, q in zip(way, way[1:]))


def test_scores_are_d4rls():
    assert layout('umaze').score(161.86) == pytest.approx(100.0)
    assert layout('large').score([6.7, 273.99]) == pytest.approx([0.0, 100.0])


def test_a_picture_shows_walls_goal_trail_and_ball():
    maze = layout('umaze')
    picture = draw(maze, (3.0, 1.0), (1.0, 1.0), trail=[[1.0, 2.0], [1.0, 3.0]], plans=[[[3.0, 2.0], [3.0, 3.0]]], scale=40)
    assert picture.shape == (200, 200, 3)

    def at(x, y):
        return picture[int((x + LOWER_EDGE) * 40), int((y + LOWER_EDGE) * 40)].tolist()

    wall, floor, ball = at(0.0, 0.0), at(1.2, 1.2), at(3.0, 1.0)
    assert len({tuple(colour) for colour in (wall, floor, ball, at(1.0, 2.5), at(3.0, 2.5))}) == 5
