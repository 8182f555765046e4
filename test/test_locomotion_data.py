"""Behaviour policies, the data that they make, and what planners and return predictors learn from it."""

import dataclasses
import json
import warnings

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from locomotion_parts import HOPPER, actor, actors

from diffuser_core.checkpoint import Checkpoint
from diffuser_core.cli import main
from diffuser_core.conditions import Conditions
from diffuser_core.config import load_config
from diffuser_core.data.windows import Symmetries, Windows
from diffuser_core.envs.locomotion import ROBOTS, robot_of, score
from diffuser_core.evaluate.baselines.locomotion import load_locomotion_transitions
from diffuser_core.experts.behaviour import Actor, load_actors, save_actors
from diffuser_core.experts.collect_locomotion import collect_locomotion, drive, snapshots_of
from diffuser_core.experts.train_behaviour import pack
from diffuser_core.planner import Planner
from diffuser_core.shipped import config_folder
from diffuser_core.train import trainer as module
from diffuser_core.train.config import DataConfig, LossConfig, TrainConfig
from diffuser_core.train.data_sets import latest_starts, load_rewarded
from diffuser_core.train.returns import returns_to_go, with_returns
from diffuser_core.train.trainer import Trainer, TrainError
from diffuser_core.train.value import ValueTrainConfig
from diffuser_core.trajectory import Channels
from diffuser_core.unet import UNetConfig


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hopper')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        summary = collect_locomotion(folder / 'data', 'hopper', 'medium-expert', 100_000, 1, steps=600,
                                     actors=actors(folder / 'actors.safetensors'), progress=False)
    return folder / 'data', summary


def test_the_robots_are_gymnasiums_and_the_scores_are_d4rls():
    for robot in ROBOTS.values():
        env = gymnasium.make(robot.env_id)
        assert env.observation_space.shape == (robot.observations,) and env.action_space.shape == (robot.actions,)
        assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
        env.close()
    assert score(robot_of('hopper'), 3234.3) == 100.0 and score(robot_of('walker2d'), 1.629008) == 0.0
    with pytest.raises(ValueError, match="no robot 'ant'; there are hopper, walker2d, halfcheetah"):
        robot_of('ant')


def test_an_actor_is_its_formula_and_draws_around_it():
    made, rng = actor(), np.random.default_rng(1)
    x = rng.normal(size=11)
    hidden = torch.from_numpy(x).float()
    for n in range(2):
        hidden = torch.relu(torch.from_numpy(made.weights[n]).T @ hidden + torch.from_numpy(made.biases[n]))
    mean, log_std = (torch.from_numpy(made.weights[n]).T @ hidden + torch.from_numpy(made.biases[n]) for n in (2, 3))
    np.testing.assert_allclose(made.act(x), mean.tanh().numpy(), rtol=1e-5)
    draws = np.arctanh(np.array([made.act(x, rng) for _ in range(4000)], dtype=np.float64).clip(-1 + 1e-9, 1 - 1e-9))
    np.testing.assert_allclose(draws.mean(0), mean.numpy(), atol=0.06 * log_std.exp().max().item() + 0.02)
    np.testing.assert_allclose(draws.std(0), log_std.exp().numpy(), rtol=0.1)


def test_actors_that_do_not_fit_or_are_damaged_are_refused(tmp_path):
    made = actor()
    with pytest.raises(ValueError, match='do not go together'):
        Actor((made.weights[0], made.weights[1][:2], *made.weights[2:]), made.biases)
    with pytest.raises(ValueError, match='not finite'):
        Actor(made.weights, (np.full_like(made.biases[0], np.nan), *made.biases[1:]))
    path = actors(tmp_path / 'a.safetensors')
    found, medium = load_actors(path)
    assert list(found) == [10, 20, 30] and medium == 20
    np.testing.assert_allclose(found[10].weights[0], actor(10).weights[0], rtol=1e-3)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match='a.safetensors does not hold behaviour policies'):
        load_actors(path)
    save_actors(path, {10: made}, 20, {})
    with pytest.raises(ValueError, match='that of 20 training steps is missing'):
        load_actors(path)
    with pytest.raises(FileNotFoundError, match='no behaviour policies at'):
        load_actors(tmp_path / 'none')


def test_which_snapshots_drive():
    assert snapshots_of([1, 2, 3, 4], 3, 'medium') == [3] and snapshots_of([1, 2, 3, 4], 3, 'expert') == [4]
    assert snapshots_of([1, 2, 3, 4], 3, 'medium-expert') == [3, 4]
    assert snapshots_of([1, 2, 3, 4], 3, 'medium-replay') == [1, 2, 3]
    with pytest.raises(ValueError, match="no quality 'best'"):
        snapshots_of([1], 1, 'best')


def test_the_snapshots_to_ship_are_chosen_by_their_returns(tmp_path):
    returns = {10: 50.0, 20: 90.0, 30: 120.0, 40: 100.0, 50: 300.0, 60: 200.0}
    lines = [json.dumps({'steps': steps, 'return': value, 'score': value / 32}) for steps, value in returns.items()]
    (tmp_path / 'evaluations.jsonl').write_text('\n'.join(lines) + '\n')
    for steps in returns:
        save_actors(tmp_path / 'snapshots' / f'{steps:08d}.safetensors', {steps: actor(steps)}, steps, {})
    packed = pack(robot_of('hopper'), tmp_path, tmp_path / 'packed.safetensors')
    assert (packed['medium'], packed['best']) == (30, 50)
    found, medium = load_actors(tmp_path / 'packed.safetensors')
    assert list(found) == [10, 20, 30, 50] and medium == 30
    assert pack(robot_of('hopper'), tmp_path, tmp_path / 'packed.safetensors', 40)['medium'] == 40
    with pytest.raises(ValueError, match='no snapshot of 45 steps'):
        pack(robot_of('hopper'), tmp_path, tmp_path / 'packed.safetensors', 45)


def test_data_hold_whole_episodes_that_can_be_driven_again(data):
    folder, summary = data
    episodes = load_rewarded(str(folder))
    assert summary['steps'] == 600 and summary['episodes'] == len(episodes) and summary['snapshots'] == [20, 30]
    assert episodes.channels[:4] == ('action.0', 'action.1', 'action.2', 'obs.0') and episodes.tick_dt == pytest.approx(0.008)
    import minari

    from diffuser_core.data.episodes import datasets_path
    with datasets_path(folder):
        stored = minari.load_dataset('diffuser/hopper/medium-expert-v0')
        assert stored.storage.metadata['ref_max_score'] == 3234.3 and stored.storage.metadata['ref_min_score'] == -20.272305
        first = next(iter(stored.iterate_episodes()))
    env = gymnasium.make('Hopper-v5')
    state, _ = env.reset(seed=100_000)
    for t, action in enumerate(first.actions):
        np.testing.assert_array_equal(state, first.observations[t])
        state, reward, terminated, _, _ = env.step(action)
        assert reward == pytest.approx(first.rewards[t])
    np.testing.assert_array_equal(state, first.observations[-1])
    assert bool(first.terminations[-1]) == terminated == bool(episodes.terminated[0])
    assert (first.infos['snapshot'] == 20).all()
    env.close()
    begun, end = episodes.bounds[0]
    np.testing.assert_allclose(episodes.rewards[begun:end - 1], first.rewards, rtol=1e-6)
    assert episodes.rewards[end - 1] == 0.0


def test_a_stretch_ends_cut_off_and_can_be_stopped(tmp_path):
    path = actors(tmp_path / 'a.safetensors')
    columns = drive(robot_of('hopper'), path, [10], 50, 7, range(7, 8), lambda: False)
    ended = columns['terminations'] | columns['truncations']
    assert ended[-1] and len(columns['last_observations']) == ended.sum() and len(columns['rewards']) == 50
    assert drive(robot_of('hopper'), path, [10], 50, 7, range(7, 8), lambda: True) is None


def test_windows_start_anywhere_but_end_with_what_was_cut_off(data):
    episodes = load_rewarded(str(data[0]))
    latest = latest_starts(episodes, 8, 1)
    for (first, end), terminated, last in zip(episodes.bounds, episodes.terminated, latest.tolist()):
        assert last == (end - 2 if terminated else max(first, end - 8))
    rows = torch.arange(30.0)[:, None]
    windows = Windows(rows, torch.tensor([[0, 9], [10, 29]]), horizon=4, stride=1, goal=(), goal_share=0.0,
                      symmetries=Symmetries.of(Channels(('x',), ('m',)), (), ()), jitter=torch.zeros(1),
                      latest=torch.tensor([8, 26]))
    drawn, mask, starts = windows.sample_with_starts(6000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0, 0], starts.float()) and mask[:, 0].all() and not mask[:, 1:].any()
    counts = torch.bincount(starts, minlength=30)
    assert set(counts.nonzero()[:, 0].tolist()) == {*range(9), *range(10, 27)}
    assert counts[counts > 0].min() > 0.6 * 6000 / 26 and counts.max() < 1.4 * 6000 / 26
    ends = drawn[starts == 8][0, :, 0]
    assert ends.tolist() == [8.0, 9.0, 9.0, 9.0]


def test_windows_start_in_proportion_to_weights(data):
    rows, weights = torch.arange(30.0)[:, None], torch.arange(30.0)
    settings = {'horizon': 4, 'stride': 1, 'goal': (), 'goal_share': 0.0, 'jitter': torch.zeros(1), 'weights': weights,
                'symmetries': Symmetries.of(Channels(('x',), ('m',)), (), ())}
    windows = Windows(rows, torch.tensor([[0, 9], [10, 29]]), latest=torch.tensor([8, 26]), **settings)
    drawn, _, starts = windows.sample_with_starts(40000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0, 0], starts.float())
    expected = weights.clone()
    expected[[9, 27, 28, 29]] = 0.0  # no window may start there
    expected *= 40000 / expected.sum()
    counts = torch.bincount(starts, minlength=30)
    assert (counts[expected == 0] == 0).all()
    assert ((counts - expected).abs() < 4.0 * expected.sqrt() + 1.0).all()
    with pytest.raises(ValueError, match='no window has a weight above zero: data.tilt is too large'):
        Windows(rows, torch.tensor([[0, 9], [10, 29]]), latest=torch.tensor([8, 26]), **{**settings, 'weights': 0.0 * weights})
    with pytest.raises(ValueError, match='weights are for windows that start anywhere'):
        Windows(rows, torch.tensor([[0, 9], [10, 29]]), **settings)


def test_the_first_action_is_learnt_since_the_planner_does_not_know_it(tmp_path, data):
    """What training shows of the first step is what the planner knows there: the observation."""
    config = TrainConfig('t', DataConfig(str(data[0]), ('*',), horizon=8, whole_episodes=True, continuing=True,
                                         normalizer='gaussian'), UNetConfig(8, (1, 2)))
    trainer = Trainer(config, load_rewarded(str(data[0])), tmp_path)
    _, mask = trainer._train.sample(3, torch.Generator().manual_seed(0))
    known = Planner(trainer.checkpoint(0.0))._known(np.zeros(11), Conditions.none(8, HOPPER))[0]
    assert (mask.numpy() == known).all() and not mask[:, 0, :3].any() and mask[:, 0, 3:].all()


def test_actions_under_way_are_shown_in_a_quarter_of_the_windows(tmp_path, data):
    config = TrainConfig('t', DataConfig(str(data[0]), ('*',), horizon=8, whole_episodes=True, continuing=True, prefix=3,
                                         normalizer='gaussian'), UNetConfig(8, (1, 2)))
    _, mask = Trainer(config, load_rewarded(str(data[0])), tmp_path)._train.sample(4000, torch.Generator().manual_seed(0))
    shown = mask[:, :, :3].all(-1)
    counts = shown.sum(1)
    assert torch.equal(shown, torch.arange(8) < counts[:, None])
    assert torch.bincount(counts).div(4000).tolist() == pytest.approx([0.75, 1 / 12, 1 / 12, 1 / 12], abs=0.02)
    assert mask[:, 0, 3:].all() and not mask[:, 1:, 3:].any()
    with pytest.raises(ValueError, match='data.prefix lies in 0 ... horizon - 1'):
        DataConfig('d', ('*',), horizon=8, whole_episodes=True, continuing=True, prefix=8)


def test_the_first_action_that_is_not_known_counts_most(tmp_path, data, monkeypatch):
    config = TrainConfig('t', DataConfig(str(data[0]), ('*',), horizon=8, whole_episodes=True, continuing=True, prefix=3,
                                         normalizer='gaussian'), UNetConfig(8, (1, 2)), loss=LossConfig(first_action=10.0))
    trainer = Trainer(config, load_rewarded(str(data[0])), tmp_path)
    seen = []
    monkeypatch.setattr(module, 'training_loss', lambda *given: seen.append(given) or torch.zeros(()))
    trainer._loss(*trainer._train.sample(64, torch.Generator().manual_seed(0)), torch.Generator())
    mask, weights = seen[0][2], seen[0][-1]
    known = mask[:, :, :3].all(-1).sum(1)
    assert set(known.tolist()) == {0, 1, 2, 3}
    for row, count in zip(weights, known.tolist()):
        wanted = torch.ones(8, 14)
        wanted[count, :3] = 10.0
        assert torch.equal(row, wanted)


def test_returns_of_cut_off_and_of_ended_episodes(data):
    episodes = load_rewarded(str(data[0]))
    returns = returns_to_go(episodes, 0.9)
    (fallen,) = np.flatnonzero(episodes.terminated)[:1]
    first, end = episodes.bounds[fallen]
    rewards = episodes.rewards[first:end - 1].astype(np.float64)
    assert returns[first] == pytest.approx((0.9 ** np.arange(len(rewards)) * rewards).sum())
    (cut,) = np.flatnonzero(~episodes.terminated)[:1]
    first, end = episodes.bounds[cut]
    last = episodes.rewards[first:end - 1][-100:].mean() / 0.1
    assert returns[end - 2] == pytest.approx(episodes.rewards[end - 2] + 0.9 * last)
    penalised = returns_to_go(episodes, 0.99, termination_penalty=-100.0, continuing=False)
    assert penalised[episodes.bounds[fallen][1] - 2] == -100.0
    assert penalised[end - 2] == pytest.approx(episodes.rewards[end - 2])


def write(path, config):
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_planner_and_its_return_predictor_are_trained_on_it(tmp_path, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planner = write(tmp_path / 'hopper.yaml', {
        'name': 'hopper', 'data': {'path': str(data[0]), 'channels': ['*'], 'whole_episodes': True, 'continuing': True,
                                   'horizon': 8, 'normalizer': 'gaussian'},
        'model': {'width': 8, 'multipliers': [1, 2]}, 'diffusion': {'levels': 8, 'clip': False},
        'optimizer': {'steps': 3, 'batch': 4, 'warmup': 1, 'precision': 'float32'}, 'loss': {'first_action': 10.0}})
    assert main(['train', str(planner)]) == 0
    judge = write(tmp_path / 'value.yaml', {
        'data': str(data[0]), 'checkpoint': 'runs/train/hopper/checkpoint', 'out': 'runs/train/judged/checkpoint',
        'network': {'width': 8, 'multipliers': [1, 8], 'head': 'flat'}, 'steps': 3, 'batch': 4})
    assert main(['train', '--value', str(judge)]) == 0
    made = Checkpoint.load(tmp_path / 'runs/train/judged/checkpoint')
    assert made.value is not None and made.value.discount == 0.99 and made.horizon == 8
    returns = returns_to_go(load_rewarded(str(data[0])), 0.99)
    assert made.value.offset == pytest.approx(returns.mean()) and made.value.scale == pytest.approx(returns.std())
    assert set(made.value.provenance['held_out']) == {f'level {i}' for i in (0, 2, 4, 5, 7)}
    assert (tmp_path / 'runs/train/judged/calibration.png').stat().st_size > 1000
    capsys.readouterr()
    assert main(['train', '--value', str(judge), 'checkpoint=nowhere']) == 2
    assert 'no checkpoint at nowhere' in capsys.readouterr().err
    assert main(['train', '--value', str(judge), 'discount=1.5']) == 2
    assert 'discount in (0, 1)' in capsys.readouterr().err
    assert main(['train', '--value', '--classifier', str(judge)]) == 2
    assert 'one at a time' in capsys.readouterr().err
    assert main(['train', str(planner), 'data.whole_episodes=false']) == 2
    assert 'data.continuing needs data.whole_episodes' in capsys.readouterr().err


def test_a_planner_that_is_told_the_return_is_shown_it_on_the_first_step(tmp_path, data, capsys, monkeypatch):
    episodes = load_rewarded(str(data[0]))
    told = with_returns(episodes, 0.9)
    assert told.channels == (*episodes.channels, 'return') and told.actions == 3
    np.testing.assert_allclose(told.observations[:, -1], returns_to_go(episodes, 0.9), rtol=1e-6)
    np.testing.assert_array_equal(told.observations[:, :-1], episodes.observations)
    monkeypatch.chdir(tmp_path)
    planner = write(tmp_path / 'hopper.yaml', {
        'name': 'told', 'data': {'path': str(data[0]), 'channels': ['*'], 'whole_episodes': True, 'continuing': True,
                                 'horizon': 8, 'normalizer': 'gaussian', 'returns': 0.9},
        'model': {'width': 8, 'multipliers': [1, 2], 'context': 8}, 'diffusion': {'levels': 8, 'clip': False},
        'optimizer': {'steps': 2, 'batch': 4, 'warmup': 1, 'precision': 'float32'}})
    assert main(['train', str(planner)]) == 0
    made = Checkpoint.load('runs/train/told/checkpoint')
    assert made.channels.observations == (*HOPPER.observations, 'return')
    assert made.normalizer.offset[-1] == pytest.approx(told.observations[:, -1].mean(), rel=1e-4)
    _, mask = Trainer(load_config(TrainConfig, planner), told, tmp_path / 'out')._train.sample(
        5, torch.Generator().manual_seed(0))
    assert mask[:, 0, 3:].all() and not mask[:, 0, :3].any() and not mask[:, 1:].any()
    capsys.readouterr()
    judge = write(tmp_path / 'value.yaml', {'data': str(data[0]), 'checkpoint': 'runs/train/told/checkpoint', 'out': 'o'})
    assert main(['train', '--value', str(judge)]) == 2
    assert 'is told which return to reach and needs no predictor' in capsys.readouterr().err
    assert main(['train', str(planner), 'data.returns=1.0']) == 2
    assert 'data.returns is a discount in (0, 1)' in capsys.readouterr().err


@pytest.mark.parametrize('words, why', [
    (('locomotion', '--demonstrations', '3'), 'takes neither --demonstrations'), (('locomotion', '--steps', '-1'), 'at least 1'),
    (('kuka_stack', '--robot', 'hopper'), 'takes neither --robot nor --quality')])
def test_what_cannot_be_collected_is_said(tmp_path, capsys, words, why):
    assert main(['collect', *words, '--out', str(tmp_path / 'out')]) == 2
    assert why in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_baselines_learn_from_the_same_steps(data, tmp_path):
    episodes, found = load_rewarded(str(data[0])), load_locomotion_transitions(data[0])
    cut = int((~episodes.terminated).sum())
    assert len(found) == 600 - cut and found.terminals.sum() == episodes.terminated.sum()
    assert found.fingerprint == episodes.fingerprint
    assert found.return_span == pytest.approx(np.ptp(episodes.returns), rel=1e-6)
    first, end = episodes.bounds[0]
    np.testing.assert_allclose(found.observations[:end - first - 1], episodes.observations[first:end - 1, 3:], rtol=1e-6)
    np.testing.assert_allclose(found.next_observations[0], episodes.observations[first + 1, 3:], rtol=1e-6)
    np.testing.assert_allclose(found.actions[:3], episodes.observations[first:first + 3, :3], rtol=1e-6)
    with pytest.raises(FileNotFoundError, match='must hold one data set'):
        load_locomotion_transitions(tmp_path)


def test_tilted_training_draws_windows_by_the_exponential_of_their_episodes_return(tmp_path, data):
    """Against the shares that the weights give in closed form."""
    episodes = load_rewarded(str(data[0]))
    config = TrainConfig('t', DataConfig(str(data[0]), ('*',), horizon=8, whole_episodes=True, continuing=True, tilt=1.5,
                                         normalizer='gaussian'), UNetConfig(8, (1, 2)))
    trainer = Trainer(config, episodes, tmp_path)
    _, _, starts = trainer._train.sample_with_starts(20000, torch.Generator().manual_seed(0))
    returns = np.array([episodes.rewards[first:end].sum(dtype=np.float64) for first, end in episodes.bounds])
    weights = np.exp(1.5 * returns / returns.std()) * (latest_starts(episodes, 8, 1).numpy() - episodes.bounds[:, 0] + 1)
    rows = np.exp(1.5 * (returns - returns.max()) / returns.std()) * (np.diff(episodes.bounds)[:, 0])
    assert trainer._summary(0.0)['episodes_in_effect'] == pytest.approx(rows.sum() ** 2 / (rows ** 2).sum(), abs=0.06)
    weights[-1] = 0.0  # held out
    shares = weights / weights.sum()
    found = np.bincount(np.searchsorted(episodes.bounds[:, 1], starts.numpy(), side='right'), minlength=len(shares)) / 20000
    assert np.abs(found - shares).max() < 0.015 and shares.max() > 3.0 / len(shares)
    with pytest.raises(ValueError, match='needs data.continuing'):
        DataConfig('d', ('*',), whole_episodes=True, tilt=1.0)
    with pytest.raises(ValueError, match='a number from 0 up'):
        DataConfig('d', ('*',), whole_episodes=True, continuing=True, tilt=-1.0)
    with pytest.raises(TrainError, match='needs a data set with rewards'):
        Trainer(config, dataclasses.replace(episodes, rewards=None), tmp_path)


@pytest.mark.parametrize('robot', ['hopper', 'walker2d', 'halfcheetah'])
def test_the_shipped_configurations_are_valid_and_go_together(robot):
    planner = load_config(TrainConfig, config_folder() / f'{robot}.yaml')
    judge = load_config(ValueTrainConfig, config_folder() / f'{robot}_value.yaml')
    assert planner.data.continuing and planner.data.path == judge.data == f'runs/collect/{robot}_medium-expert'
    assert judge.checkpoint == f'runs/train/{planner.name}_guided/checkpoint' and planner.name == robot
    assert planner.data.returns is not None
