"""The evaluation suite and the command line around it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import untrained_stacking

from diffuser_core.cli import main
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.evaluate.stacking import episode_goal, run_episode
from diffuser_core.evaluate.statistics import mean_interval
from diffuser_core.planner import Planner


@pytest.fixture
def checkpoint(tmp_path):
    untrained_stacking().save(tmp_path / 'checkpoint')
    return tmp_path / 'checkpoint'


def test_interval_agrees_with_the_normal_approximation_for_many_values():
    values = np.random.default_rng(3).normal(50.0, 10.0, 400)
    reach = 1.96 * values.std(ddof=1) / 20.0
    assert mean_interval(values) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.1)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(np.full(5, 100.0)) == (100.0, 100.0)
    with pytest.raises(ValueError, match='non-empty'):
        mean_interval(np.array([]))


def test_goals_of_episodes_are_a_function_of_the_seed():
    orders = {tuple(episode_goal('relations', seed)[1]) for seed in range(40)}
    assert len(orders) > 15 and episode_goal('relations', 7) == episode_goal('relations', 7)
    assert episode_goal('stack', 7)[0].task == 'stack'


def test_an_episode_repeats_exactly_and_scores_its_final_state(checkpoint):
    env = KukaStackEnv(episode_steps=30)
    policy = StackingPolicy(Planner.from_checkpoint(checkpoint))
    first, second = (run_episode(policy, env, 'relations', 5) for _ in range(2))
    env.close()
    for record in (first, second):
        del record['latency_ms']
    assert first == second
    assert first['ticks'] == first['replans'] == 30 and first['score'] == 0.0 and first['failure'] == 'nothing built'


def test_evaluate_writes_a_row_a_task_and_a_line_an_episode(checkpoint, tmp_path, capsys):
    out = tmp_path / 'results'
    arguments = ['evaluate', 'stacking', '--checkpoint', str(checkpoint), '--task', 'relations', '--episodes', '1',
                 '--workers', '1', '--steps', '1', '--warm-steps', '1', '--out', str(out)]
    done = subprocess.run([sys.executable, '-m', 'diffuser_core', *arguments], capture_output=True, text=True, check=True)
    summary = json.loads((out / 'summary.json').read_text())
    assert {'command', 'version', 'seed_start', 'episodes', 'device', 'wall_s', 'rows'} <= set(summary)
    (row,) = summary['rows']
    assert row['task'] == 'relations' and row['paper'] == 45.6 and row['episodes'] == 1 and sum(row['failures'].values()) == 1
    (line,) = (out / 'episodes.jsonl').read_text().splitlines()
    assert json.loads(line)['ticks'] == 384
    assert 'relations' in done.stdout


@pytest.mark.parametrize(('arguments', 'message'), [
    (['inspect', '{tmp}/none'], 'inspect: no checkpoint at {tmp}/none: config.yaml is missing there'),
    (['evaluate', 'stacking', '--checkpoint', '{tmp}/none'], 'evaluate: no checkpoint at {tmp}/none'),
    (['train', '{tmp}/none.yaml'], 'train: cannot read the configuration {tmp}/none.yaml'),
    (['train', 'config/kuka_stack.yaml', 'data.path={tmp}'], 'train: no demonstrations at {tmp}'),
    (['train', 'config/kuka_stack.yaml', 'data.hight=3'], "unknown key 'hight'"),
])
def test_a_users_mistake_is_one_sentence_and_code_2(tmp_path, capsys, arguments, message):
    assert main([a.replace('{tmp}', str(tmp_path)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message.replace('{tmp}', str(tmp_path)) in error and error.count('\n') == 1


def test_inspect_says_what_a_checkpoint_is(checkpoint, capsys):
    assert main([str(checkpoint), '--ros-args', '-r', '__node:=x'], verb='inspect') == 0
    said = capsys.readouterr().out
    assert 'horizon      16 steps' in said and 'red.azimuth [rad]' in said and 'made: by a test' in said
