"""Baselines: transitions of the demonstrations, the demonstrator in closed loop, and networks as stacking policies."""

import json

import h5py
import numpy as np
import pytest
import torch

from diffuser_core.cli import main
from diffuser_core.data.demonstrations import find_data_file, load_segments
from diffuser_core.envs.kuka_kinematics import REACH, inverse_kinematics, planar_tip
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import CHANNELS, GROUND, SLAB_HEIGHT
from diffuser_core.envs.stacking_features import FEATURES, cylindrical
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.evaluate.baselines.encoding import (
    ACTION_SCALE,
    ACTIONS,
    OBSERVATIONS,
    decode_action,
    encode_actions,
    encode_observation,
    load_transitions,
    transitions,
)
from diffuser_core.evaluate.baselines.policies import DemonstratorPolicy, LearnedPolicy, wanted_relations
from diffuser_core.evaluate.episode import run_episode
from diffuser_core.experts.collect import collect

RED, GREEN, BLUE, YELLOW = range(4)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp('demonstrations')
    collect(out, 6, 100_000, 1)
    return out


@pytest.fixture(scope='module')
def recorded(folder):
    """Segments, and the recorded actions (rows, 8)."""
    with h5py.File(find_data_file(folder)) as file:
        actions = np.concatenate([np.asarray(file[name]['actions'])[:len(file[name]['truncations'])]
                                  for name in sorted(file, key=lambda name: int(name.rpartition('_')[2]))])
    return load_segments(folder), actions


@pytest.fixture(scope='module')
def env():
    env = KukaStackEnv()
    yield env
    env.close()


def ranges(data):
    """For every segment, the rows of its transitions in the data set and in the transitions."""
    ticks = np.diff(data.bounds, axis=1)[:, 0] - 1
    ends = np.cumsum(ticks)
    return [(slice(start, start + count), slice(end - count, end)) for (start, _), count, end in zip(data.bounds, ticks, ends)]


def test_every_segment_is_an_episode_with_its_reward_at_the_end(folder, recorded):
    data, _ = recorded
    found = load_transitions(folder)
    assert found.observations.shape == found.next_observations.shape == (len(found), len(OBSERVATIONS))
    assert found.actions.shape == (len(found), len(ACTIONS)) and found.fingerprint == data.fingerprint
    assert {array.dtype for array in (found.observations, found.actions, found.rewards, found.terminals)} == {np.dtype('float32')}
    assert found.rewards.sum() == len(data) > 10 and (found.rewards == found.terminals).all()
    assert np.abs(found.actions).max() <= 1.0
    for (_, rows), (upper, lower), bounds in zip(ranges(data), data.pairs, data.bounds):
        assert found.terminals[rows].tolist() == [0.0] * (rows.stop - rows.start - 1) + [1.0]
        assert (found.next_observations[rows][:-1] == found.observations[rows][1:]).all()
        goals = found.observations[rows][:, len(FEATURES):]
        last = found.next_observations[rows][-1]
        assert (goals[:, :3] == last[3:6]).all(), 'the moved block ends up at the goal'
        assert (goals[:, 3] == float(lower == GROUND)).all()
        first = CHANNELS.index('red.x') + 8 * upper
        assert goals[0, :3] == pytest.approx(cylindrical(data.observations[bounds[1] - 1, first:first + 3]), abs=1e-6)


def test_recorded_actions_survive_encoding_and_decoding(folder, recorded):
    data, actions = recorded
    found = load_transitions(folder)
    waiting = 0
    for source, rows in ranges(data):
        states = data.observations[source].astype(np.float64)
        decoded = [decode_action(action, state[:7]) for action, state in zip(found.actions[rows], states)]
        assert np.abs(np.stack([joints for joints, _ in decoded]) - actions[source, :7]).max() < 1e-5
        closed = np.array([grip for _, grip in decoded])
        differs = closed != (actions[source, 7] > 0.5)
        still = (np.abs(planar_tip(actions[source, :7]) - planar_tip(states[:, :7])) < (1e-3, 1e-3, 1e-3)).all(axis=1)
        assert still[differs].all(), 'only labels of a standstill are brought forward'
        waiting += differs.sum()
    assert waiting > 3 * len(data), 'the demonstrator waits before it grips and before it lets go'


def test_labels_carried_out_in_the_simulator_make_the_move(folder, recorded, env):
    data, _ = recorded
    found = load_transitions(folder)
    made = []
    for (source, rows), (upper, _) in list(zip(ranges(data), data.pairs))[:5]:
        env.reset(seed=0)
        env.set_state(data.observations[source.start].astype(np.float64))
        for action in found.actions[rows]:
            joints, closed = decode_action(action, env.observe()[:7])
            env.step(np.append(joints, float(closed)))
        first = CHANNELS.index('red.x') + 8 * upper
        goal = data.observations[source.stop, first:first + 3]
        made.append(np.abs(env.observe()[first:first + 3] - goal).max() < 0.02 and env.held is None)
    assert made == [True] * 5


def test_encoding_says_what_does_not_fit(recorded):
    data, actions = recorded
    state = data.observations[:1].astype(np.float64)
    far = np.append(inverse_kinematics(planar_tip(state[0, :7])[0] + 0.3, 0.6, 0.3), 0.0)[None]
    with pytest.raises(ValueError, match='times the largest step'):
        encode_actions(state, far)
    with pytest.raises(ValueError, match=r'actions must have shape \(\d+, 8\), got \(3, 8\)'):
        transitions(data, actions[:3])


def test_decoded_actions_are_bounded_in_step_and_reach():
    joints = inverse_kinematics(0.2, 0.6, 0.3)
    target, closed = decode_action(np.array([5.0, -5.0, 1.0, 0.1]), joints)
    assert planar_tip(target) == pytest.approx(np.array([0.2, 0.6, 0.3]) + ACTION_SCALE * (1.0, -1.0, 1.0)) and closed
    target, closed = decode_action(np.array([0.0, 0.0, -1.0, 0.0]), inverse_kinematics(0.2, 0.6, 0.05))
    assert planar_tip(target)[2] == pytest.approx(REACH[0, 2]) and not closed


def test_an_observation_holds_features_goal_and_ground_flag(env):
    state, _ = env.reset(seed=3)
    states = np.stack([state, state])
    seen = encode_observation(states, np.array([BLUE, RED]), np.array([[0.0, 0.5, 0.09], [0.6, 0.0, 0.03]]),
                              np.array([False, True]))
    named = [dict(zip(OBSERVATIONS, row)) for row in seen]
    assert named[0]['goal.azimuth'] == pytest.approx(np.pi / 2) and named[0]['goal.radius'] == pytest.approx(0.5)
    assert (named[0]['goal.z'], named[0]['goal.ground'], named[1]['goal.ground']) == (0.09, 0.0, 1.0)
    assert named[0]['moved.z'] == pytest.approx(SLAB_HEIGHT / 2.0, abs=1e-3)
    assert named[1]['moved.azimuth'] == pytest.approx(np.arctan2(state[8], state[7]))


def layout(*stacks):
    """Centres (4, 3) [m] and standing relations of stacks (azimuth, block, block ...), bottom first."""
    centres = np.zeros((4, 3))
    for azimuth, *blocks in stacks:
        for level, block in enumerate(blocks):
            centres[block] = 0.6 * np.cos(azimuth), 0.6 * np.sin(azimuth), SLAB_HEIGHT * (level + 0.5)
    return centres, {pair for _, *blocks in stacks for pair in zip(blocks[1:], blocks)}


@pytest.mark.parametrize('stacks, held, wanted', [
    (((0.1, RED), (1.0, GREEN), (-0.7, BLUE), (2.0, YELLOW)), None, ((BLUE, RED),)),       # on the most central, the nearest
    (((1.0, RED, GREEN), (0.0, BLUE), (1.7, YELLOW)), None, ((YELLOW, GREEN),)),           # on the tallest tower
    (((1.0, RED, GREEN, BLUE), (-2.0, YELLOW)), None, ((YELLOW, BLUE),)),
    (((1.0, RED, GREEN), (0.5, BLUE, YELLOW)), None, ((GREEN, YELLOW),)),                  # only tops are free
    (((1.0, RED, GREEN), (0.0, BLUE), (1.7, YELLOW)), BLUE, ((BLUE, GREEN),)),             # what is held goes first
    (((1.0, YELLOW, RED, GREEN, BLUE),), None, ()),                                        # nothing left
])
def test_a_tower_grows_by_the_nearest_free_block(stacks, held, wanted):
    centres, standing = layout(*stacks)
    assert wanted_relations(StackingGoal('stack'), centres, standing, held) == wanted
    goal = StackingGoal('relations', ((RED, BLUE),))
    assert wanted_relations(goal, centres, standing, held) == goal.relations


@pytest.mark.parametrize('task, seed', [('conditional', 0), ('conditional', 5), ('unconditional', 2), ('rearrangement', 0),
                                        ('rearrangement', 7)])
def test_the_demonstrator_scores_100(env, task, seed):
    record = run_episode(DemonstratorPolicy(), env, task, seed)
    assert (record['score'], record['failure'], record['held']) == (100.0, None, None)
    assert record['reached_at'] is not None and 1 <= record['replans'] <= 3


def test_the_demonstrator_plans_anew_when_a_block_it_needs_is_displaced(env):
    records = [run_episode(DemonstratorPolicy(), env, 'conditional', seed, displace=0.1) for seed in range(5)]
    assert sum(record['displaced'] is not None for record in records) >= 2
    assert [record['score'] for record in records] == [100.0] * 5


@pytest.mark.parametrize('moved, when', [(GREEN, 8), (RED, 8), (GREEN, 33)])
def test_the_demonstrator_notices_what_happens_to_its_blocks(env, moved, when):
    """Displaced before the grip: the block to be picked up, the one to be built on; after it: a block that was let go."""
    observation, _ = env.reset(seed=1)
    policy = DemonstratorPolicy()
    policy.set_goal(StackingGoal.parse('relations', ['green on red']), dict(zip(CHANNELS, observation)))
    for tick in range(200):
        if tick == when:
            if env.held is not None:
                env.apply(np.append(observation[:7], 0.0))
            else:
                azimuth = np.arctan2(*env.observe()[[8 + 8 * moved, 7 + 8 * moved]])
                env.displace(moved, 0.05 * np.cos(azimuth), 0.05 * np.sin(azimuth))
            observation = env.observe()
            plans = policy.replans
        decision = policy.act(dict(zip(CHANNELS, observation)), tick / 24)
        observation, *_ = env.step(np.append(decision.joints[0], float(decision.gripper[0])))
    assert policy.replans > plans == 1
    assert decision.reached and (GREEN, RED) in env.relations()


def test_without_a_goal_the_arm_holds(env):
    observation, _ = env.reset(seed=0)
    named = dict(zip(CHANNELS, observation))
    for policy in (DemonstratorPolicy(), LearnedPolicy(Rule())):
        decision = policy.act(named, 0.0)
        assert (decision.joints[0] == observation[:7]).all() and not decision.gripper[0] and not decision.reached
        with pytest.raises(KeyError, match='red.x'):
            policy.set_goal(StackingGoal('stack'), {name: value for name, value in named.items() if name != 'red.x'})


class Rule(torch.nn.Module):
    """A network by hand: over the block, down, grip, over the goal, down, let go, up. It sees and does what a baseline does."""

    CRUISE = 0.36

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('metres', torch.tensor([0.6, 1.0]))
        self.register_buffer('above', torch.tensor([0.0, 0.0, SLAB_HEIGHT / 2.0 + 0.0015]))
        self.register_buffer('scale', torch.tensor(ACTION_SCALE, dtype=torch.float32))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        tip, moved, attached, goal = observation[:, :3], observation[:, 3:6], observation[:, 6:7] > 0.5, observation[:, 16:19]
        apart = (moved - goal)[:, :2] * self.metres
        there = (apart.norm(dim=1, keepdim=True) < 0.03) & ((moved - goal)[:, 2:].abs() < 0.008)
        error = torch.where(attached, goal, moved) + self.above - tip
        aside = (error[:, :2] * self.metres).norm(dim=1, keepdim=True)
        away = (aside > 0.006) | (there & ~attached)
        rise = self.CRUISE - tip[:, 2:]
        sideways = torch.where((aside > 0.006) & (rise > 0.03), 0.0, error[:, :2])
        step = torch.cat([sideways, torch.where(away, rise, error[:, 2:])], dim=1) / self.scale
        close = (attached & ~(there & (error[:, 2:].abs() < 0.004))) | (~attached & ~away & (error[:, 2:].abs() < 0.004))
        return torch.cat([step.clamp(-0.6, 0.6), torch.where(close, 1.0, -1.0)], dim=1)


@pytest.mark.parametrize('task', ['unconditional', 'conditional', 'rearrangement'])
def test_what_a_learned_policy_sees_and_does_is_enough_for_100(env, task):
    record = run_episode(LearnedPolicy(Rule()), env, task, 3)
    assert (record['score'], record['failure']) == (100.0, None)


class Still(torch.nn.Module):
    """Does nothing and keeps what it has seen."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        self.seen = dict(zip(OBSERVATIONS, observation[0].tolist()))
        return torch.zeros(1, len(ACTIONS))


def named(centres, held=None, tip=(0.0, 0.6, 0.4)):
    """A state by name: blocks at centres (4, 3) [m], the tip in cylindrical coordinates."""
    blocks = np.zeros((4, 8))
    blocks[:, :3], blocks[:, 6] = centres, 1.0
    if held is not None:
        blocks[held, 7] = 1.0
    return dict(zip(CHANNELS, np.concatenate([inverse_kinematics(*tip), blocks.ravel()])))


def test_the_next_move_waits_until_the_arm_has_backed_off():
    apart, _ = layout((0.0, RED), (1.0, GREEN), (2.0, BLUE), (-1.0, YELLOW))
    built, _ = layout((0.0, RED, GREEN), (2.0, BLUE), (-1.0, YELLOW))
    low, high = (0.0, 0.6, 0.14), (0.0, 0.6, 0.24)
    policy = LearnedPolicy(Still())

    def subgoals(*tips):
        policy.reset()
        policy.set_goal(StackingGoal.parse('relations', ['green on red', 'blue on green']), named(apart))
        assert policy.act(named(apart), 0.0).subgoal == (GREEN, RED)
        return [policy.act(named(built, tip=tip), 0.0).subgoal for tip in tips]

    assert subgoals(low, low, high) == [(GREEN, RED), (GREEN, RED), (BLUE, GREEN)]
    assert subgoals(*[low] * 30)[-1] == (BLUE, GREEN), 'it does not wait for ever'


def test_a_chosen_move_is_kept_and_a_goal_is_pursued_from_wherever_things_are():
    before, _ = layout((0.1, RED), (1.0, GREEN), (-0.7, BLUE), (2.0, YELLOW))
    after, _ = layout((0.1, RED), (0.65, GREEN), (-0.7, BLUE), (2.0, YELLOW))
    policy = LearnedPolicy(Still())
    policy.set_goal(StackingGoal('stack'), named(before))
    assert [policy.act(named(centres), 0.0).subgoal for centres in (before, after)] == [(BLUE, RED)] * 2
    policy.reset()
    policy.set_goal(StackingGoal('stack'), named(after))
    assert policy.act(named(after), 0.0).subgoal == (GREEN, RED)
    policy.set_goal(StackingGoal.parse('relations', ['yellow on blue']), named(after))
    assert policy.act(named(after), 0.0).subgoal == (YELLOW, BLUE)
    assert policy.act(named(after, held=RED), 0.0).subgoal == (RED, GROUND), 'the wrong block goes down first'


def test_the_place_on_the_ground_stays_until_something_else_stands_there():
    network = Still()
    policy = LearnedPolicy(network)
    start, _ = layout((0.0, GREEN, RED), (1.0, BLUE), (-1.0, YELLOW))
    policy.set_goal(StackingGoal.parse('relations', ['green on blue']), named(start))

    def place(centres, held=None):
        assert policy.act(named(centres, held), 0.0).subgoal == (RED, GROUND)
        assert network.seen['goal.ground'] == 1.0 and network.seen['goal.z'] == pytest.approx(SLAB_HEIGHT / 2.0)
        return network.seen['goal.azimuth']

    first = place(start)
    carried = start.copy()
    carried[RED] = -0.6, 0.1, 0.3
    assert place(carried, RED) == first
    occupied = carried.copy()
    occupied[YELLOW, :2] = 0.6 * np.cos(first), 0.6 * np.sin(first)
    assert abs(place(occupied, RED) - first) > 0.3


class Random(torch.nn.Module):
    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return 0.1 * torch.randn(observation.shape[0], 4)


def test_a_network_that_draws_repeats_itself_with_the_same_seed(env):
    observation, _ = env.reset(seed=0)
    named = dict(zip(CHANNELS, observation))
    policy = LearnedPolicy(Random())

    def actions(seed):
        policy.reset(seed)
        policy.set_goal(StackingGoal('stack'), named)
        return np.stack([policy.act(named, 0.0).joints[0] for _ in range(3)])

    assert (actions(4) == actions(4)).all() and (actions(4) != actions(5)).any()


def test_networks_are_read_from_torchscript_and_checked(tmp_path, env):
    path = tmp_path / 'policy.pt'
    torch.jit.trace(Rule(), torch.zeros(1, len(OBSERVATIONS))).save(path)
    observation, _ = env.reset(seed=2)
    named = dict(zip(CHANNELS, observation))
    decisions = []
    for policy in (LearnedPolicy.load(path), LearnedPolicy(Rule())):
        policy.set_goal(StackingGoal('stack'), named)
        decisions.append(policy.act(named, 0.0))
    assert (decisions[0].joints == decisions[1].joints).all() and decisions[0].subgoal == decisions[1].subgoal is not None
    with pytest.raises(FileNotFoundError, match='no trained baseline at'):
        LearnedPolicy.load(tmp_path / 'none.pt')
    path.write_text('not a network')
    with pytest.raises(ValueError, match='not a trained baseline'):
        LearnedPolicy.load(path)
    with pytest.raises(ValueError, match=r'must turn \(1, 20\) into \(1, 4\), it gives \(1, 3\)'):
        LearnedPolicy(torch.nn.Linear(20, 3))


def test_the_suite_scores_a_baseline_and_goes_on_where_it_stopped(tmp_path, capsys):
    arguments = ['evaluate', 'stacking', '--policy', 'demonstrator', '--task', 'conditional', '--workers', '1',
                 '--out', str(tmp_path / 'out'), '--episodes']
    assert main([*arguments, '1']) == 0 and main([*arguments, '2']) == 0
    assert 'demonstrator  conditional' in capsys.readouterr().out
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert (summary['episodes_run'], summary['episodes'], summary['policy']) == (1, 2, 'demonstrator')
    assert summary['rows'][0]['score'] == 100.0 and summary['rows'][0]['ci95'] == [100.0, 100.0]
    records = [json.loads(line) for line in (tmp_path / 'out' / 'episodes.jsonl').read_text().splitlines()]
    assert [record['seed'] for record in records] == [0, 1]
    assert main([*arguments, '2', '--displace', '0.1']) == 2
    assert 'results of other settings (displace)' in capsys.readouterr().err


def test_results_of_different_networks_are_not_mixed(tmp_path, capsys):
    networks = (Rule(), torch.nn.Linear(len(OBSERVATIONS), len(ACTIONS)))
    for name, network in zip(('rule', 'linear'), networks):
        (tmp_path / name).mkdir()
        torch.jit.trace(network, torch.zeros(1, len(OBSERVATIONS)), check_trace=False).save(tmp_path / name / 'policy.pt')
    run = ['evaluate', 'stacking', '--task', 'conditional', '--episodes', '1', '--workers', '1', '--out', str(tmp_path / 'out')]
    assert main([*run, '--policy', str(tmp_path / 'rule' / 'policy.pt')]) == 0
    (row,) = json.loads((tmp_path / 'out' / 'summary.json').read_text())['rows']
    assert row['policy'] == 'rule' and row['episodes'] == 1
    assert main([*run, '--policy', str(tmp_path / 'linear' / 'policy.pt')]) == 2
    assert 'results of other settings (policy_sha256)' in capsys.readouterr().err
