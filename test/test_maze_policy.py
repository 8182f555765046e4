"""The policy that drives a ball through a maze: goals, following, replanning beside, what is kept of earlier plans."""

import pickle

import numpy as np
import pytest
from checkpoints import untrained_maze, untrained_stacking

from diffuser_core.envs.goals import GoalError
from diffuser_core.envs.maze_layout import CHANNELS, FORCES, GOAL_RADIUS, LAYOUTS, TICK
from diffuser_core.envs.maze_motion import MazeGoal, MazeMotion
from diffuser_core.envs.maze_policy import MazePolicy, Smoothing, arrival
from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_core.planner import Planner
from diffuser_core.shipped import checkpoint_folder
from diffuser_core.trajectory import Channels, Plan

NAMES = Channels((*FORCES, *CHANNELS), ('1',) * 6, 2)
START = dict(zip(CHANNELS, (1.0, 1.0, 0.0, 0.0)))


def straight(start, end, rows=16, t0=0.0, arrive=None):
    """A plan from `start` to `end`, there after `arrive` rows."""
    arrive = rows - 1 if arrive is None else arrive
    share = np.minimum(np.arange(rows) / arrive, 1.0)[:, None]
    places = (1.0 - share) * np.asarray(start, dtype=float) + share * np.asarray(end, dtype=float)
    speeds = np.gradient(places, 0.04, axis=0)
    return Plan(np.concatenate([np.zeros((rows, 2)), places, speeds], axis=1), NAMES, t0, 0.04, {'is': object()})


def same(plan, other):
    """Whether it is that scripted plan, smoothed."""
    return plan is not None and plan.provenance['is'] is other.provenance['is']


@pytest.fixture
def policy():
    return MazePolicy(Planner(untrained_maze()), LAYOUTS['umaze'], candidates=2)


@pytest.mark.parametrize('goal, why', [
    ((0.0, 0.0), 'lies in a wall of the maze umaze, in row 0, column 0'), ((2.0, 1.0), 'lies in a wall'),
    ((9.0, 1.0), 'lies outside the maze'), ((-3.0, 1.0), 'lies outside the maze'), ((1.25, 1.0), 'is 0.05 m from a wall'),
    ((float('nan'), 1.0), 'not finite'), ((1.0, float('inf')), 'not finite')])
def test_a_goal_that_cannot_be_is_refused_and_the_old_one_stays(policy, goal, why):
    policy.set_goal(MazeGoal(3.0, 1.0), START)
    plan = policy.act(START, 0.0).plan
    with pytest.raises(GoalError, match=why):
        policy.set_goal(MazeGoal(*goal), START)
    assert policy.goal == MazeGoal(3.0, 1.0)
    assert policy.command(START, TICK).plan is plan


def test_without_a_goal_the_ball_is_stopped(policy):
    moving = START | {'vx': 0.5, 'vy': -3.0}
    decision = policy.act(moving, 0.0)
    assert decision.plan is None and not decision.reached and policy.replans == 0
    assert decision.actions[0].tolist() == [-1.0, 1.0] and not decision.actions[1:].any()


def test_plans_start_at_the_state_and_end_at_rest_in_the_goal(policy):
    policy.set_goal(MazeGoal(3.0, 1.2), START)
    plan = policy.act(START, 2.0).plan
    assert plan.t0 == 2.0
    np.testing.assert_array_equal(plan.states[0], [1.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(plan.states[-1], [3.0, 1.2, 0.0, 0.0])


def test_the_law_follows_the_plan_with_its_forces_fed_forward():
    values = np.zeros((16, 6))
    values[:, 0], values[:, 2], values[:, 3], values[:, 4] = 0.25, 1.02, 0.99, 0.1
    decision = MazeMotion(Plan(values, NAMES, 0.0, 0.04, {}), (3.0, 1.0), 'states', 5).decide(START, 0.0)
    np.testing.assert_allclose(decision.actions[0], [0.25 + 20.0 * 0.02 + 2.0 * 0.1, 20.0 * -0.01], atol=1e-12)
    np.testing.assert_allclose(decision.actions[1:], [[0.25, 0.0]] * 4)


@pytest.mark.parametrize('execution, expected', [('actions', [0.25, 0.0]), ('paper', [0.02 + 0.1, -0.01])])
def test_other_ways_to_carry_a_plan_out(execution, expected):
    values = np.zeros((16, 6))
    values[:, 0], values[:, 2], values[:, 3], values[:, 4] = 0.25, 1.02, 0.99, 0.1
    decision = MazeMotion(Plan(values, NAMES, 0.0, 0.04, {}), (3.0, 1.0), execution, 5).decide(START, 0.0)
    np.testing.assert_allclose(decision.actions[0], expected, atol=1e-12)


def test_the_paper_plans_once(policy):
    once = MazePolicy(Planner(untrained_maze()), LAYOUTS['umaze'], execution='paper', candidates=1)
    for driver in (once, policy):
        driver.set_goal(MazeGoal(3.0, 1.0), START)
        for tick in range(4):
            driver.act(START, tick * TICK)
    assert (once.replans, policy.replans) == (1, 4)


def test_forces_stay_in_their_limits(policy):
    policy.set_goal(MazeGoal(3.0, 1.0), START)
    for tick in range(5):
        actions = policy.act(START | {'x': 1.0 + 0.5 * tick}, tick * TICK).actions
        assert actions.shape == (5, 2) and (np.abs(actions) <= 1.0).all()


def test_arrival_is_when_a_plan_stays_in_the_goal():
    goal = np.array([2.0, 1.0])
    plan = straight((1.0, 1.0), (2.0, 1.0), rows=11, arrive=10)
    assert arrival(plan, goal) == pytest.approx(5 * 0.04)
    assert arrival(plan, goal, 0.05) == pytest.approx(9.5 * 0.04)
    assert arrival(plan, np.array([1.0, 1.0])) == np.inf
    assert arrival(straight((2.0, 1.0), (2.0, 1.1)), goal) == 0.0


@pytest.mark.parametrize('trust', [1.0, 300.0])
def test_smoothing_minimises_its_objective_and_keeps_the_ends(trust):
    """Against a general least-squares solver."""
    rng, rows, dt = np.random.default_rng(0), 12, 0.04
    places, speeds = rng.normal(size=(rows, 2)), rng.normal(size=(rows, 2))
    change = np.diff(np.eye(rows), axis=0)
    travelled = dt * (speeds[1:] + speeds[:-1]) / 2
    inner = np.concatenate([np.eye(rows), np.sqrt(trust) * change])[:, 1:-1]
    ends = np.concatenate([np.eye(rows), np.sqrt(trust) * change])[:, [0, -1]] @ places[[0, -1]]
    expected = np.linalg.lstsq(inner, np.concatenate([places, np.sqrt(trust) * travelled]) - ends, rcond=None)[0]
    smooth = Smoothing(rows, dt, trust)(places, speeds)
    np.testing.assert_array_equal(smooth[[0, -1]], places[[0, -1]])
    np.testing.assert_allclose(smooth[1:-1], expected, atol=1e-6)


def test_smoothing_takes_noise_from_places_and_leaves_a_motion_alone():
    times = 0.04 * np.arange(64)
    places = np.stack([np.sin(times), 1.0 - np.cos(times)], axis=1)
    speeds = np.stack([np.cos(times), np.sin(times)], axis=1)
    smoothing, noise = Smoothing(64, 0.04), 0.1 * np.random.default_rng(0).normal(size=(64, 2))
    noise[[0, -1]] = 0.0
    np.testing.assert_allclose(smoothing(places, speeds), places, atol=1e-4)
    assert np.abs(smoothing(places + noise, speeds) - places).std() < 0.3 * noise.std()


class Scripted:
    """A planner that draws the given plans, one after another."""

    def __init__(self, plans):
        planner = Planner(untrained_maze())
        self.channels, self.conditions, self.checkpoint = planner.channels, planner.conditions, planner.checkpoint
        self.step_dt = planner.step_dt
        self.plans, self.warm = list(plans), []

    def reseed(self, seed):
        pass

    def candidates(self, observation, conditions, *, count, sampling, t0, budget):
        return [self.plans.pop(0) for _ in range(count)]

    def plan(self, observation, conditions, *, guide, warm_start, sampling, t0, budget):
        self.warm.append(warm_start)
        return self.plans.pop(0)


def test_of_the_first_plans_the_one_that_arrives_first_and_crosses_no_wall_is_taken():
    crossing = straight((1.0, 1.0), (3.0, 1.0), arrive=3)
    slow, fast = straight((1.0, 1.0), (1.0, 3.0), arrive=12), straight((1.0, 1.0), (1.0, 3.0), arrive=8)
    policy = MazePolicy(Scripted([crossing, slow, fast]), LAYOUTS['umaze'], candidates=3)
    policy.set_goal(MazeGoal(1.0, 3.0), START)
    assert same(policy.act(START, 0.0).plan, fast)


def test_a_new_plan_is_taken_only_if_it_arrives_earlier_or_the_ball_is_off_the_old_one():
    first = straight((1.0, 1.0), (1.0, 3.0), arrive=8)
    later, earlier, any_plan = (straight((1.0, 1.0), (1.0, 3.0), t0=TICK, arrive=n) for n in (8, 7, 15))
    policy = MazePolicy(Scripted([first, later, earlier, any_plan]), LAYOUTS['umaze'], candidates=1)
    policy.set_goal(MazeGoal(1.0, 3.0), START)
    assert same(policy.act(START, 0.0).plan, first)
    assert same(policy.act(START, TICK).plan, first)          # `later` would arrive a tick later
    assert same(policy.act(START, TICK).plan, earlier)
    assert same(policy.act(START | {'x': 0.7}, TICK).plan, any_plan)
    assert policy.replans == 4


def test_a_plan_that_crosses_a_wall_is_drawn_again_from_noise():
    crossing, also, round_ = (straight((1.0, 1.0), end, t0=t, arrive=8)
                              for end, t in (((3.0, 1.0), 0.0), ((3.0, 1.0), TICK), ((1.0, 3.0), TICK)))
    planner = Scripted([crossing, crossing, also, round_])
    policy = MazePolicy(planner, LAYOUTS['umaze'], candidates=2)
    policy.set_goal(MazeGoal(1.0, 3.0), START)
    assert same(policy.act(START, 0.0).plan, crossing)
    assert same(policy.act(START, TICK).plan, round_)
    assert planner.warm == []


def test_plans_are_followed_smoothed_the_first_and_later_ones():
    def jagged(t0, arrive):
        plan = straight((1.0, 1.0), (1.0, 3.0), t0=t0, arrive=arrive)
        plan.values[1:-1, 2] += 0.05 * (-1.0) ** np.arange(len(plan.values) - 2)
        return plan

    plans = [jagged(0.0, 12), jagged(TICK, 8)]
    policy = MazePolicy(Scripted(plans), LAYOUTS['umaze'], candidates=1)
    policy.set_goal(MazeGoal(1.0, 3.0), START)
    for tick, raw in enumerate(plans):
        plan = policy.act(START, tick * TICK).plan
        assert same(plan, raw)
        np.testing.assert_allclose(plan.values[:, 2:4], Smoothing(16, 0.04)(raw.values[:, 2:4], raw.values[:, 4:]))
        assert np.abs(plan.values[:, 2] - 1.0).max() < 0.01


def test_a_new_goal_starts_a_new_plan_from_noise():
    plans = [straight((1.0, 1.0), (1.0, 3.0)), straight((1.0, 1.0), (1.0, 3.0), arrive=3), straight((1.0, 1.0), (1.0, 2.0))]
    planner = Scripted(plans)
    policy = MazePolicy(planner, LAYOUTS['umaze'], candidates=1)
    policy.set_goal(MazeGoal(1.0, 3.0), START)
    policy.act(START, 0.0)
    policy.act(START, TICK)
    policy.set_goal(MazeGoal(1.0, 3.0), START)  # the same: nothing changes
    assert same(policy.command(START, TICK).plan, plans[1])
    policy.set_goal(MazeGoal(1.0, 2.0), START)
    assert policy.command(START, TICK).plan is None
    assert same(policy.act(START, 2 * TICK).plan, plans[2])
    assert [warm is None for warm in planner.warm] == [True, False, True]


def test_a_ball_that_is_stuck_gets_a_plan_from_noise():
    planner = Scripted([straight((1.0, 1.0), (1.0, 3.0), t0=n * TICK) for n in range(200)])
    policy = MazePolicy(planner, LAYOUTS['umaze'], candidates=1)
    policy.set_goal(MazeGoal(1.0, 3.0), START)
    for tick in range(100):
        policy.act(START, tick * TICK)
    assert sum(warm is None for warm in planner.warm) == 2


def test_the_same_seed_drives_the_same_way(policy):
    def forces(seed):
        policy.reset(seed)
        policy.set_goal(MazeGoal(3.0, 1.0), START)
        return np.concatenate([policy.act(START, tick * TICK).actions for tick in range(3)])

    first = forces(1)
    np.testing.assert_array_equal(forces(1), first)
    assert not np.array_equal(forces(2), first)
    assert policy.replans == 3


def test_a_checkpoint_of_another_robot_is_refused():
    with pytest.raises(ValueError, match='does not fit this robot'):
        MazePolicy(Planner(untrained_stacking()), LAYOUTS['umaze'])
    with pytest.raises(ValueError, match="execution is one of states, actions, paper, got 'best'"):
        MazePolicy(Planner(untrained_maze()), LAYOUTS['umaze'], execution='best')
    with pytest.raises(ValueError, match='does not say which maze'):
        MazePolicy.maze_of(Planner(untrained_maze()))


def test_an_observation_that_lacks_a_channel_is_named(policy):
    with pytest.raises(KeyError, match='vy'):
        policy.set_goal(MazeGoal(3.0, 1.0), {'x': 1.0, 'y': 1.0, 'vx': 0.0})


@pytest.mark.parametrize('size', ['umaze', 'medium', 'large'])
def test_the_shipped_planner_drives_to_its_goals_and_to_new_ones_on_the_way(size):
    """Seeds 6000 - 6002; results are on other seeds. Half-way the goal is moved back to where the ball started."""
    planner = Planner.from_checkpoint(checkpoint_folder(f'maze2d_{size}'))
    maze = MazePolicy.maze_of(planner)
    assert maze is LAYOUTS[size]
    env, policy = PointMazeEnv(size, multi_task=True), MazePolicy(planner, maze)
    for seed in range(6000, 6003):
        state, _ = env.reset(seed=seed)
        policy.reset(seed)
        start = MazeGoal(*np.round(state[:2]))
        for goal in (MazeGoal(*env.goal), start):
            policy.set_goal(goal, dict(zip(CHANNELS, state)))
            for tick in range(maze.limit):
                if tick % 20 == 0:
                    policy.replan(dict(zip(CHANNELS, state)), tick * TICK)
                decision = policy.command(dict(zip(CHANNELS, state)), tick * TICK)
                if decision.reached:
                    break
                state, *_ = env.step(decision.actions[0])
            assert np.hypot(*(state[:2] - (goal.x, goal.y))) <= GOAL_RADIUS, (seed, goal)


def test_a_plan_that_took_long_begins_when_it_is_first_followed(policy):
    """The ball was being stopped while the plan was made: it must not be taken for one that has driven since."""
    policy.set_goal(MazeGoal(3.0, 1.0), START)
    made = policy.replan(START, 1.0).plan
    assert made.t0 == 1.0
    decision = policy.command(START, 1.6)
    assert decision.plan.t0 == 1.6 and np.array_equal(decision.plan.values, made.values)
    np.testing.assert_allclose(decision.actions[0], np.clip(
        20.0 * (made.at(np.array([1.01]))[0, 2:4] - [1.0, 1.0]) + 2.0 * made.at(np.array([1.01]))[0, 4:]
        + made.values[0, :2], -1.0, 1.0))
    assert policy.command(START, 1.7).plan is decision.plan, 'it began once'
    policy._better = lambda kept, *_: kept is decision.plan
    assert policy.replan(START | {'x': 1.1}, 1.8).plan is decision.plan, 'the next one is compared with what is followed'
    policy._better = lambda *_: False
    later = policy.replan(START | {'x': 1.2}, 1.9).plan
    assert policy.command(START, 2.1).plan is later and later.t0 == 1.9, 'a plan made on the way is a moving target'


def test_a_motion_is_followed_like_the_policy_elsewhere(policy):
    """What `replan` gives is all that another process needs."""
    policy.set_goal(MazeGoal(3.0, 1.0), START)
    motion = pickle.loads(pickle.dumps(policy.replan(START, 1.0)))
    assert motion.waits
    motion = motion.begun(1.6)
    np.testing.assert_array_equal(motion.decide(START, 1.7).actions, [policy.command(START, t) for t in (1.6, 1.7)][1].actions)
    assert not motion.begun(1.8).waits and motion.begun(1.8).plan.t0 == 1.6


def test_a_plan_agrees_with_the_last_one_until_it_is_followed(policy):
    policy._better = lambda *_: False
    policy._crossings = lambda *_: 0
    policy._smoothed = lambda plan: plan
    policy.set_goal(MazeGoal(3.0, 1.0), START)
    policy.act(START, 0.0)
    last = policy.command(START, 0.0).plan
    step = policy.planner.step_dt
    new = policy.replan(START, 2 * step, delay=2.5 * step).plan
    assert new.provenance['committed'] == 3
    np.testing.assert_allclose(new.values[1:4, 2:], last.values[3:6, 2:], atol=1e-12)
    np.testing.assert_allclose(new.actions[:3], last.actions[2:5], atol=1e-12)
    assert np.abs(new.values[4] - last.values[6]).max() > 1e-3
    np.testing.assert_allclose(new.values[0, 2:], [START[name] for name in CHANNELS])
