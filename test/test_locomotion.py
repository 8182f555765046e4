"""Return predictors in checkpoints, the policy that plans with them, and the locomotion suite."""

import dataclasses
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml
from locomotion_parts import HOPPER, actors, hopper, told_hopper

from diffuser_core.checkpoint import Checkpoint, CheckpointError
from diffuser_core.cli import main
from diffuser_core.envs.locomotion import robot_of
from diffuser_core.envs.locomotion_motion import RunGoal
from diffuser_core.envs.locomotion_policy import AIM, LocomotionPolicy, LocomotionSettings
from diffuser_core.envs.policies import make_policy
from diffuser_core.envs.policy_settings import PolicySettings
from diffuser_core.evaluate import locomotion, locomotion_policies
from diffuser_core.evaluate.locomotion_mppi import MppiPolicy, MppiSettings
from diffuser_core.evaluate.locomotion_policies import BASELINES, LearnedPolicy, baseline, run_locomotion_episode
from diffuser_core.planner import Planner, Sampling
from diffuser_core.trajectory import Plan

FAST = Sampling(steps=2, warm_steps=1, rule='score')


@pytest.fixture
def folder(tmp_path):
    hopper().save(tmp_path / 'checkpoint')
    return tmp_path / 'checkpoint'


def state(seed=0):
    return dict(zip(HOPPER.observations, np.random.default_rng(seed).normal(size=11).tolist()))


# ---- Return predictors in checkpoints ----------------------------------------------------------------------------------


def test_a_return_predictor_is_read_back_and_judges_as_before(folder):
    original, again = hopper(), Checkpoint.load(folder)
    assert again.value is not None
    assert dataclasses.replace(again.value, weights={}) == dataclasses.replace(original.value, weights={})
    assert set(again.weights) == set(original.weights)
    x = torch.randn(3, 8, 14)
    guide = Planner(again).value_guide()
    network = original.value.network(14, 8)
    for i in (0, 5):
        wanted = 10.0 + 4.0 * network(x / 2.0, torch.tensor([i]))
        torch.testing.assert_close(guide.value(x, i), wanted)
        source = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad((10.0 + 4.0 * network(source / 2.0, torch.tensor([i]))).sum(), source)
        values, gradient = guide.gradient(x, i)
        torch.testing.assert_close(values, wanted)
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-5)
    assert 'discount 0.99' in again.describe()
    with pytest.raises(ValueError, match='has no return predictor'):
        Planner(hopper(value=False)).value_guide()


@pytest.mark.parametrize(('change', 'message'), [
    (lambda d: d.pop('value'), 'a return predictor that value does not describe'),
    (lambda d: d.update(value=3), 'value must hold network'),
    (lambda d: d['value'].pop('scale'), 'value lacks scale'),
    (lambda d: d['value'].update(scale=-1.0), 'a positive scale'),
    (lambda d: d['value'].update(discount=2.0), 'a discount in'),
    (lambda d: d['value']['network'].update(depth=1), "value.network: unknown key 'depth'"),
    (lambda d: d['value']['network'].update(width=16), 'do not fit the network described by value'),
    (lambda d: d.update(horizon=32), 'do not fit the network described by value'),
])
def test_a_wrong_description_of_it_names_file_and_field(folder, change, message):
    described = yaml.safe_load((folder / 'config.yaml').read_text())
    change(described)
    (folder / 'config.yaml').write_text(yaml.safe_dump(described))
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.load(folder)
    assert 'config.yaml' in str(caught.value)


# ---- The policy --------------------------------------------------------------------------------------------------------


def policy(checkpoint=None, **settings):
    chosen = LocomotionSettings(**{'guide_scale': 0.1, 'candidates': 3, 'warm': True, 'sampling': FAST, **settings})
    return LocomotionPolicy(Planner(checkpoint or hopper()), chosen)


def test_the_torques_of_the_newest_plan_are_read_by_the_clock():
    driver = policy()
    assert driver.command(state(), 0.0).plan is None and not driver.command(state(), 0.0).actions.any()
    plan = driver.replan(state(), 1.0).plan
    for step in range(8):
        decision = driver.command(state(), 1.0 + step * 0.008)
        assert decision.plan is plan
        np.testing.assert_allclose(decision.actions[0], plan.actions[step].clip(-1, 1))
        held = min(4, 8 - step)
        assert not decision.actions[held:].any()
    assert driver.command(state(), 1.0 + 8 * 0.008).plan is None
    assert driver.replans == 1


def test_the_same_seed_gives_the_same_plans_and_a_warm_start_other_ones():
    driver = policy()
    runs = []
    for _ in range(2):
        driver.reset(5)
        runs.append([driver.act(state(n), 0.008 * n).actions for n in range(3)])
    np.testing.assert_array_equal(runs[0], runs[1])
    warm = [driver.replan(state(n), 0.008 * n).plan.provenance['warm'] for n in range(3, 5)]
    assert warm == [True, True] and driver.replan(state(), 9.0).plan.provenance['warm'] is False
    assert policy(warm=False).act(state(), 0.0).plan.provenance['warm'] is False
    cold = policy(warm=False)
    assert [cold.replan(state(n), 0.008 * n).plan.provenance['warm'] for n in range(2)] == [False, False]


def test_the_candidate_of_the_largest_predicted_return_is_followed(monkeypatch):
    """Candidates whose first torque is 0.1, 0.2, 0.3, and a predictor that likes large torques."""
    driver = policy(guide_scale=0.0)
    monkeypatch.setattr(driver.planner, 'candidates', lambda *a, count, **k: [
        Plan(np.full((8, 14), 0.1 * (n + 1)), HOPPER, k['t0'], 0.008, {}) for n in (0, 2, 1)[:count]])
    monkeypatch.setattr(driver._select, 'network', lambda x, i: x.sum((1, 2)))
    assert driver.act(state(), 0.0).actions[0] == pytest.approx([0.3] * 3)


def test_the_guide_is_measured_in_deviations_of_the_returns():
    """A scale of s moves by s / deviation times the return's gradient, whatever the unit of the reward."""
    same = hopper()
    scaled = dataclasses.replace(same, value=dataclasses.replace(same.value, offset=1000.0, scale=400.0))
    plans = [policy(c, guide_scale=0.5, candidates=1).replan(state(), 0.0).plan.values for c in (same, scaled)]
    np.testing.assert_allclose(plans[0], plans[1], atol=1e-4)
    free = policy(same, guide_scale=0.0, candidates=1).replan(state(), 0.0).plan.values
    assert np.abs(free - plans[0]).max() > 1e-3


def test_a_planner_that_is_told_the_return_is_told_what_is_aimed_at():
    driver = policy(told_hopper(), guide_scale=0.0, candidates=1, warm=False, aim=1.5)
    driver.set_goal(RunGoal(), state())
    plan = driver.replan(state(), 0.0).plan
    assert plan.values[0, -1] == pytest.approx(100.0 + 1.5 * 20.0)
    np.testing.assert_allclose(plan.values[0, 3:-1], list(state().values()), atol=1e-5)
    other = policy(told_hopper(), guide_scale=0.0, candidates=1, warm=False, aim=0.5).replan(state(), 0.0).plan
    assert np.abs(plan.actions - other.actions).max() > 1e-3
    with pytest.raises(ValueError, match='aim finite'):
        LocomotionSettings(aim=float('inf'))


def test_until_a_plan_is_followed_it_does_what_the_last_one_says():
    driver = policy()
    last = driver.act(state(), 0.0).plan
    plan = driver.replan(state(1), 2 * 0.008, delay=2.5 * 0.008).plan
    assert plan.provenance['committed'] == 3
    np.testing.assert_allclose(plan.actions[:3], last.actions[2:5], atol=1e-12)
    assert np.abs(plan.actions[3] - last.actions[5]).max() > 1e-3
    assert np.abs(plan.values[1:3, 3:] - last.values[3:5, 3:]).min() > 0.0  # states follow from what is seen now
    motion = pickle.loads(pickle.dumps(driver.replan(state(), 9.0, delay=0.1)))
    assert motion.waits and motion.begun(9.1).plan.t0 == 9.1 and motion.plan.provenance['warm'] is False


def test_what_the_policy_cannot_do_is_said():
    with pytest.raises(ValueError, match='no return predictor: guide_scale must be 0'):
        policy(hopper(value=False))
    assert policy(hopper(value=False), guide_scale=0.0, candidates=1).act(state(), 0.0).plan is not None
    with pytest.raises(ValueError, match='candidates at least 1'):
        LocomotionSettings(candidates=0)
    with pytest.raises(ValueError, match='guide_scale is a number from 0 up'):
        LocomotionSettings(guide_scale=float('nan'))
    with pytest.raises(KeyError, match='lacks channel obs.10'):
        policy().replan({k: v for k, v in state().items() if k != 'obs.10'}, 0.0)
    with pytest.raises(ValueError, match='obs.3 is not a finite number'):
        policy().replan({**state(), 'obs.3': float('nan')}, 0.0)


def test_the_papers_settings_are_the_presets():
    settings = LocomotionSettings.paper('hopper-medium-expert', 50.0)
    assert (settings.candidates, settings.warm, settings.guide_scale) == (64, False, 1e-4 * 50.0)
    assert (settings.sampling.rule, settings.sampling.guide_steps, settings.sampling.stop_level) == ('released', 2, 4)
    assert LocomotionSettings.paper('hopper-medium', 50.0).guide_scale == pytest.approx(0.1 * 50.0)
    with pytest.raises(ValueError, match='has no guide'):
        LocomotionSettings.paper('kuka', 1.0)


# ---- The suite ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Episodes run in a thread of this process, behaviour policies are small random ones."""
    def pool(suite, jobs):
        monkeypatch.setattr(locomotion, '_worker', {'suite': suite, 'controller': suite.controller()})
        return ThreadPoolExecutor(1)

    path = actors(tmp_path / 'actors.safetensors')
    monkeypatch.setattr(locomotion_policies, 'actors_file', lambda robot: path)
    monkeypatch.setattr(locomotion, '_pool', pool)


def run(*words):
    return main(['evaluate', 'locomotion', *map(str, words)])


def summary(out):
    return json.loads((out / 'summary.json').read_text())


def test_a_planner_is_run_with_the_data_it_learnt_from_and_goes_on(tmp_path, folder, here, capsys):
    described = yaml.safe_load((folder / 'config.yaml').read_text())
    described['provenance'] = {'config': {'data': {'path': 'minari:some/data-v0'}}, 'data_fingerprint': 'abc'}
    (folder / 'config.yaml').write_text(yaml.safe_dump(described))
    out = tmp_path / 'out'
    words = ('--checkpoint', folder, '--steps', 1, '--warm-steps', 1, '--candidates', 2, '--out', out)
    assert run(*words, '--episodes', 1) == 0
    assert 'minari:some/data-v0' in capsys.readouterr().out
    assert run(*words, '--episodes', 2) == 0
    done = summary(out)
    assert (done['episodes_run'], done['episodes'], done['seed_start']) == (1, 2, 100)
    (row,) = done['rows']
    records = [json.loads(line) for line in (out / 'episodes.jsonl').read_text().splitlines()]
    assert row['score'] == pytest.approx(np.mean([r['score'] for r in records])) and row['paper'] == 107.2
    assert row['data'] == 'minari:some/data-v0' and row['failures'] == {'fell': 2}
    assert all(r['replans'] == r['ticks'] for r in records)
    assert run(*words, '--guide-scale', 0.2, '--episodes', 1) == 2
    assert 'holds results of other settings (settings)' in capsys.readouterr().err


def test_a_planner_that_is_told_the_return_is_run(tmp_path, here):
    told_hopper().save(tmp_path / 'told')
    words = ('--checkpoint', tmp_path / 'told', '--episodes', 1, '--out', tmp_path / 'out')
    assert run(*words, '--aim', 0.25) == 0
    assert summary(tmp_path / 'out')['settings']['aim'] == 0.25
    assert run(*words[:-1], tmp_path / 'as it is') == 0
    assert summary(tmp_path / 'as it is')['settings']['aim'] == AIM


def test_the_aim_that_scores_best_is_written_into_the_checkpoint_and_followed(tmp_path, here, capsys):
    folder = tmp_path / 'told'
    told_hopper().save(folder)
    words = ('--checkpoint', folder, '--episodes', 2, '--out', tmp_path / 'aims')
    assert main(list(map(str, ('evaluate', 'locomotion-aim', *words, '--aims', -1, 0.25, 4)))) == 0
    runs = {aim: summary(tmp_path / f'aims/aim_{aim:g}') for aim in (-1.0, 0.25, 4.0)}
    rows = {aim: found['rows'][0] for aim, found in runs.items()}
    best = max(rows, key=lambda aim: rows[aim]['ci95'][0])
    assert len({row['score'] for row in rows.values()}) == 3 and {found['seed_start'] for found in runs.values()} == {5000}
    assert f'aims at {best:g} from now on' in capsys.readouterr().out
    found = Checkpoint.load(folder)
    assert found.aim == best and f'aim          {best:g} deviations above' in found.describe()
    assert found.provenance['aim']['seeds'] == [5000, 5001] and found.provenance['made'] == 'by a test'
    assert found.provenance['aim']['scores'] == {
        f'{aim:g}': pytest.approx([row['score'], *row['ci95']], abs=0.06) for aim, row in rows.items()}
    assert run(*words[:-1], tmp_path / 'out') == 0
    assert summary(tmp_path / 'out')['settings']['aim'] == best
    plan = LocomotionPolicy(Planner(found)).replan(state(), 0.0).plan
    assert plan.values[0, -1] == pytest.approx(100.0 + best * 20.0)

    before = (folder / 'config.yaml').stat().st_mtime_ns
    assert main(list(map(str, ('evaluate', 'locomotion-aim', *words, '--aims', -1, 0.25, 4)))) == 0
    assert (folder / 'config.yaml').stat().st_mtime_ns == before


def test_a_sure_aim_is_preferred_to_one_that_is_better_in_the_mean(tmp_path, monkeypatch):
    told_hopper().save(tmp_path / 'told')
    rows = {0.5: (60.0, [59.0, 61.0]), 1.0: (99.0, [98.0, 100.0]), 1.5: (101.0, [95.0, 105.0])}

    def evaluate(suite, out, command):
        score, interval = rows[suite.settings.aim]
        return {'rows': [{'score': score, 'ci95': interval}]}

    monkeypatch.setattr(locomotion, 'evaluate_locomotion', evaluate)
    found = locomotion.choose_aim(locomotion.LocomotionSuite(checkpoint=tmp_path / 'told'), list(rows), tmp_path, 'a test')
    assert [row['aim'] for row in found] == [1.0, 1.5, 0.5] and Checkpoint.load(tmp_path / 'told').aim == 1.0


def test_an_aim_is_chosen_for_planners_alone_that_have_one(tmp_path, folder, here, capsys):
    def refused(*words):
        assert main(list(map(str, ('evaluate', 'locomotion-aim', '--episodes', 1, *words)))) == 2
        return capsys.readouterr().err

    assert 'of a checkpoint that is named' in refused()
    assert 'is not told the return, so it has no aim' in refused('--checkpoint', folder)
    assert 'one or more different numbers' in refused('--checkpoint', folder, '--aims', 1, 1)
    told_hopper().save(tmp_path / 'told')
    assert 'aim finite' in refused('--checkpoint', tmp_path / 'told', '--aims', 'nan')
    assert Checkpoint.load(tmp_path / 'told').aim is None


def test_the_nodes_offset_adds_to_the_checkpoints_aim(tmp_path):
    dataclasses.replace(told_hopper(), aim=2.0).save(tmp_path / 'told')
    made = make_policy(PolicySettings('runner', str(tmp_path / 'told'), candidates=1, aim_offset=-0.5))
    assert made.replan(state(), 0.0).plan.values[0, -1] == pytest.approx(100.0 + 1.5 * 20.0)


@pytest.mark.parametrize('aim', ['high', float('nan'), True])
def test_a_wrong_aim_in_a_checkpoint_names_file_and_field(tmp_path, aim):
    told_hopper().save(tmp_path / 'told')
    described = yaml.safe_load((tmp_path / 'told/config.yaml').read_text())
    (tmp_path / 'told/config.yaml').write_text(yaml.safe_dump({**described, 'aim': aim}))
    with pytest.raises(CheckpointError, match=r'config.yaml: aim must be a finite number'):
        Checkpoint.load(tmp_path / 'told')


def test_a_robot_that_stays_where_it_is_counts_as_stuck():
    """The half cheetah cannot fall: without torques it stands, driven by its best behaviour policy it runs."""
    robot = robot_of('halfcheetah')
    network = torch.nn.Linear(17, 6)
    torch.nn.init.zeros_(network.weight)
    torch.nn.init.zeros_(network.bias)
    record = run_locomotion_episode(LearnedPolicy(network, robot), robot, 'halfcheetah-medium', 0)
    assert record['failure'] == 'stuck' and record['ticks'] == 1000 and abs(record['return']) < 20.0
    record = run_locomotion_episode(baseline(BASELINES[2], robot), robot, 'halfcheetah-medium', 0)
    assert record['failure'] is None and record['return'] > 7000.0
    hopper = robot_of('hopper')
    record = run_locomotion_episode(baseline(BASELINES[0], hopper), hopper, 'hopper-medium', 0)
    assert record['failure'] == 'fell' and record['ticks'] < 100


def test_plans_may_arrive_late(tmp_path, here, monkeypatch):
    told_hopper().save(tmp_path / 'told')
    committed = []
    original = LocomotionPolicy.replan

    def replan(self, observation, now, delay=0.0, budget=None):
        motion = original(self, observation, now, delay, budget)
        committed.append(motion.plan.provenance['committed'])
        return motion

    monkeypatch.setattr(LocomotionPolicy, 'replan', replan)
    words = ('--checkpoint', tmp_path / 'told', '--episodes', 1)
    assert run(*words, '--delay', 0.016, '--out', tmp_path / 'late') == 0
    assert committed[0] == 0 and set(committed[1:]) == {2}
    assert summary(tmp_path / 'late')['delay'] == 0.016
    assert run(*words, '--delay', -1, '--out', tmp_path / 'wrong') == 2


@pytest.mark.parametrize('name', ['random', 'behaviour-medium', 'behaviour-best'])
def test_baselines_are_run(tmp_path, here, name):
    assert run('--policy', name, '--episodes', 2, '--out', tmp_path / 'out') == 0
    (row,) = summary(tmp_path / 'out')['rows']
    assert row['policy'] == name and row['data'] is None and row['planning_ms']['p50'] is None


class Still(torch.nn.Module):
    """No torque."""

    def forward(self, x):
        return 0.0 * x[:, :3]


def test_a_learned_policy_runs_from_its_file(tmp_path, here):
    path = tmp_path / 'hopper_bc' / 'policy.pt'
    path.parent.mkdir()
    torch.jit.script(Still()).save(str(path))
    assert run('--policy', path, '--episodes', 1, '--out', tmp_path / 'out') == 0
    assert summary(tmp_path / 'out')['rows'][0]['policy'] == 'hopper_bc'
    with pytest.raises(ValueError, match=r'must turn \(1, 17\) into \(1, 6\)'):
        LearnedPolicy.load(path, robot_of('walker2d'))
    path.write_bytes(b'nonsense')
    with pytest.raises(ValueError, match='is not a trained baseline'):
        LearnedPolicy.load(path, robot_of('hopper'))


@pytest.mark.parametrize('words, why', [
    (('--checkpoint', 'nowhere'), 'no checkpoint at nowhere'), (('--policy', 'random', '--checkpoint', 'x'), 'has no checkpoint'),
    (('--policy', 'no/policy.pt'), 'no trained baseline at no/policy.pt'),
    (('--policy', 'random', '--episodes', '0'), 'at least 1'),
    (('--policy', 'random', '--candidates', '2'), 'leave out --guide-scale'),
    (('--paper', '--steps', '2'), 'leave out --guide-scale'),
    (('--policy', 'random', '--replan-every', '2'), 'does not plan'), (('--rule', 'best', '--checkpoint', 'x'), 'rule one of')])
def test_what_cannot_be_run_is_said(tmp_path, capsys, words, why):
    assert run(*words, '--out', tmp_path / 'out') == 2
    assert why in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_a_planner_of_another_robot_is_refused(tmp_path, folder, capsys):
    assert run('--robot', 'walker2d', '--checkpoint', folder, '--out', tmp_path / 'out') == 2
    assert 'does not fit the walker2d, which has 6 actions and 17 observations' in capsys.readouterr().err


# ---- The model as a model of the dynamics, inside MPPI -----------------------------------------------------------------


def test_predictions_hold_the_actions_and_the_present_state():
    planner = Planner(hopper())
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (5, 8, 3))
    present = planner.channels.vector(state())
    predicted = planner.predict(present, actions, steps=2)
    np.testing.assert_allclose(predicted[..., :3], actions, atol=1e-6)
    np.testing.assert_allclose(predicted[:, 0, 3:], np.tile(present, (5, 1)), atol=1e-6)
    assert np.abs(predicted[0, 1:, 3:] - predicted[1, 1:, 3:]).max() > 1e-3
    with pytest.raises(ValueError, match=r'shape \(count, horizon, 3\), got \(8, 3\)'):
        planner.predict(present, actions[0])
    with pytest.raises(ValueError, match='a multiple of 2, got 7'):
        planner.predict(present, actions[:, :7])


def test_mppi_finds_the_torques_of_the_largest_return(monkeypatch):
    """A return that is largest where all torques are 0.5."""
    driver = MppiPolicy(Planner(hopper()), MppiSettings(samples=256, temperature=0.1, steps=1))
    monkeypatch.setattr(driver._judge, 'network', lambda x, i: -(2.0 * x[..., :3] - 0.5).square().sum((1, 2)))
    for tick in range(60):
        driver.replan(state(), 0.008 * tick)
    torques = driver.command(state(), 0.008 * 59).actions
    assert torques.shape == (1, 3) and np.abs(torques - 0.5).max() < 0.2
    driver.reset()
    assert not driver.command(state(), 0.0).actions.any() and driver.replans == 0
    with pytest.raises(ValueError, match='a positive spread'):
        MppiSettings(spread=0.0)


def test_mppi_is_run(tmp_path, folder, here):
    assert run('--policy', 'mppi', '--checkpoint', folder, '--episodes', 1, '--out', tmp_path / 'out') == 0
    (row,) = summary(tmp_path / 'out')['rows']
    assert row['policy'] == 'mppi' and row['planning_ms']['p50'] > 0.0
