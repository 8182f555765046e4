"""The evaluation suite and the command line around it."""

import json
import math
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import imageio.v2
import numpy as np
import pytest
from checkpoints import untrained_stacking

from diffuser_core.cli import main
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import BLOCKS
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.envs.stacking_tasks import TASKS
from diffuser_core.evaluate import pool as processes
from diffuser_core.evaluate import stacking
from diffuser_core.evaluate.episode import run_episode
from diffuser_core.evaluate.recording import EpisodeLog
from diffuser_core.evaluate.records import FAILURES
from diffuser_core.evaluate.stacking import Suite, evaluate, format_rows
from diffuser_core.evaluate.statistics import mean_interval
from diffuser_core.planner import Planner, Sampling


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


@pytest.fixture
def short(monkeypatch):
    """Episodes of 30 ticks, in a thread of this process instead of processes of their own; returns the jobs run."""
    run, real = [], stacking.run_episode

    def counted(policy, env, *job, **options):
        run.append(job)
        return real(policy, env, *job, **options)

    def pool(suite, jobs):
        monkeypatch.setattr(stacking, '_worker', {'env': env, 'policy': stacking._load(suite), 'displace': suite.displace})
        return ThreadPoolExecutor(1)

    env = KukaStackEnv(episode_steps=30)
    monkeypatch.setattr(stacking, '_pool', pool)
    monkeypatch.setattr(stacking, 'run_episode', counted)
    yield run
    env.close()


def lasting(record):
    return {name: value for name, value in record.items() if name != 'latency_ms'}


@pytest.mark.parametrize('task', TASKS)
def test_an_episode_repeats_exactly_and_starts_as_its_task_says(checkpoint, task):
    env = KukaStackEnv(episode_steps=30)
    policy = StackingPolicy(Planner.from_checkpoint(checkpoint))
    log = EpisodeLog(5, '')
    first, second = (run_episode(policy, env, task, 5, displace=0.1, log=log) for log in (log, None))
    env.close()
    assert lasting(first) == lasting(second)
    assert first['task'] == task and first['ticks'] == 30 and len(log.states) == 31
    assert (first['start_relations'] != []) == (task == 'rearrangement')
    assert first['failure'] in FAILURES and first['displaced'] is None or 10 <= first['displaced']['tick'] < 20


def test_a_displaced_block_lies_elsewhere(checkpoint):
    env = KukaStackEnv(episode_steps=30)
    policy = StackingPolicy(Planner.from_checkpoint(checkpoint))
    log = EpisodeLog(1, '')
    displaced = run_episode(policy, env, 'unconditional', 1, displace=0.1, log=log)['displaced']
    env.close()
    block = 7 + 8 * BLOCKS.index(displaced['block'])
    places = np.stack(log.states)[:, block:block + 2]
    jumps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert int(jumps.argmax()) == displaced['tick'] - 1 and jumps.max() == pytest.approx(0.1, abs=0.01)


def test_a_run_goes_on_where_the_last_one_ended(checkpoint, tmp_path, short):
    out = tmp_path / 'results'
    suite = Suite(checkpoint, ('conditional',), episodes=2)
    first = evaluate(suite, out, 'first')
    lines = (out / 'episodes.jsonl').read_text()
    with open(out / 'episodes.jsonl', 'a') as file:
        file.write('{"task": "conditional", "se')  # as a process killed while it wrote leaves it
    both = evaluate(replace(suite, tasks=('conditional', 'rearrangement'), episodes=3), out, 'second')
    assert short[:2] == [('conditional', 0), ('conditional', 1)]
    assert sorted(short[2:]) == [('conditional', 2), *(('rearrangement', seed) for seed in range(3))]
    text = (out / 'episodes.jsonl').read_text()
    assert text.startswith(lines) and len([json.loads(line) for line in text.splitlines()]) == 6
    assert [row['episodes'] for row in both['rows']] == [3, 3] and (first['episodes_run'], both['episodes_run']) == (2, 4)
    again = evaluate(suite, out, 'third')
    assert len(short) == 6 and again['rows'] == first['rows']
    assert json.loads((out / 'summary.json').read_text())['command'] == 'third'


def test_an_interrupt_keeps_the_episodes_that_run(checkpoint, tmp_path, short, monkeypatch):
    def interrupted(futures):
        yield next(as_completed(futures))
        raise KeyboardInterrupt

    suite = Suite(checkpoint, ('conditional',), episodes=6)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(processes, 'as_completed', interrupted)
        evaluate(suite, tmp_path, '')
    kept = [json.loads(line)['seed'] for line in (tmp_path / 'episodes.jsonl').read_text().splitlines()]
    assert sorted(kept) == sorted(seed for _, seed in short) and 1 <= len(kept) < 6
    assert not (tmp_path / 'summary.json').exists()
    evaluate(suite, tmp_path, '')
    assert sorted(seed for _, seed in short) == list(range(6))


def test_results_of_other_settings_are_not_mixed(checkpoint, tmp_path, short):
    suite = Suite(checkpoint, ('conditional',), episodes=1)
    evaluate(suite, tmp_path, '')
    for other, name in ((replace(suite, displace=0.1), 'displace'), (replace(suite, commit=1), 'commit'),
                        (replace(suite, sampling=Sampling(steps=2)), 'sampling')):
        with pytest.raises(ValueError, match=rf'results of other settings \({name}\); give another folder'):
            evaluate(other, tmp_path, '')
    (tmp_path / 'settings.json').unlink()
    with pytest.raises(ValueError, match='results of unknown settings'):
        evaluate(suite, tmp_path, '')
    assert len(short) == 1


def test_rows_count_what_is_in_the_records(tmp_path, checkpoint, short, monkeypatch):
    scores = {0: 100.0, 1: 0.0, 2: 100 / 3, 3: 100.0}

    def scripted(policy, env, task, seed, **unused):
        failed = scores[seed] < 100.0
        return {'task': task, 'seed': seed, 'score': scores[seed], 'legacy_score': 100.0, 'reached_at': None if failed else seed,
                'failure': 'time out' if failed else None, 'ticks': 384, 'late_ticks': seed,
                'displaced': {'block': 'red', 'tick': 130} if failed else None, 'latency_ms': {'p50': 10.0 + seed, 'p99': 20.0}}

    monkeypatch.setattr(stacking, 'run_episode', scripted)
    monkeypatch.setattr(stacking, 'write_video', lambda path, log: films.append((path.name, log.seed, log.note)))
    films = []
    summary = evaluate(Suite(checkpoint, ('rearrangement',), episodes=4, videos=True), tmp_path, '')
    (row,) = summary['rows']
    assert row['score'] == pytest.approx(175 / 3) and row['ci95'] == list(mean_interval(np.array(list(scores.values()))))
    assert row['paper'] == 58.9 and row['failures'] == {'time out': 2}
    assert row['displaced'] == 2 and row['displaced_score'] == pytest.approx(50 / 3) and '2 (16.7)' in format_rows([row])
    assert row['reached_at_median'] == 1.5 and row['late_ticks'] == 6 and row['latency_ms']['p50'] == 11.5
    assert '58.3' in format_rows([row]) and '2 time out' in format_rows([row])
    assert sorted(films) == [('rearrangement_best.mp4', 0, 'rearrangement, best of 4: score 100.0'),
                             ('rearrangement_median.mp4', 2, 'rearrangement, median of 4: score 33.3'),
                             ('rearrangement_worst.mp4', 1, 'rearrangement, worst of 4: score 0.0')]
    assert sorted(summary['videos']) == ['videos/' + name for name, *_ in sorted(films)]


def test_films_are_of_the_episodes_in_the_results_and_one_warning_says_if_not(tmp_path, checkpoint, short, monkeypatch):
    suite = Suite(checkpoint, ('unconditional',), episodes=1, videos=True)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='run again')
        evaluate(suite, tmp_path, '')
    with imageio.v2.get_reader(tmp_path / 'videos' / 'unconditional_best.mp4') as video:
        assert sum(1 for _ in video) == pytest.approx(30 / 24 * 12, abs=1)
    lines = tmp_path / 'episodes.jsonl'
    lines.write_text(lines.read_text().replace('"score": 0.0', '"score": 50.0'))
    monkeypatch.setattr(stacking, 'write_video', lambda path, log: None)
    with pytest.warns(UserWarning, match='scored differently: unconditional seed 0;'):
        evaluate(suite, tmp_path, '')


@pytest.mark.parametrize(('changes', 'message'), [
    ({'tasks': ('stack',)}, "unknown task 'stack'; the evaluation tasks are unconditional, conditional, rearrangement"),
    ({'episodes': 0}, 'at least one episode'),
    ({'seed_start': -1}, 'a first seed of 0 or greater'),
    ({'workers': 0}, 'at least one worker'),
    ({'displace': -0.1}, 'displaced by 0 to 0.3 m, got -0.1'),
    ({'displace': math.nan}, 'displaced by 0 to 0.3 m'),
    ({'ros': 'lock-step', 'videos': True}, 'made without ROS'),
    ({'ros': 'realtime', 'displace': 0.1}, 'made without ROS'),
    ({'policy': 'demonstrator', 'ros': 'lock-step'}, 'a baseline has no checkpoint and runs without ROS'),
    ({'policy': 'demonstrator', 'checkpoint': Path('x')}, 'a baseline has no checkpoint and runs without ROS'),
    ({'ros': 'yes'}, "'lock-step' or 'realtime', got 'yes'"),
])
def test_what_cannot_be_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Suite(**changes)


def test_evaluate_writes_a_row_a_task_and_a_line_an_episode(checkpoint, tmp_path):
    out = tmp_path / 'results'
    arguments = ['evaluate', 'stacking', '--checkpoint', str(checkpoint), '--task', 'conditional', '--episodes', '1',
                 '--workers', '1', '--steps', '1', '--warm-steps', '1', '--out', str(out)]
    done = subprocess.run([sys.executable, '-m', 'diffuser_core', *arguments], capture_output=True, text=True, check=True)
    summary = json.loads((out / 'summary.json').read_text())
    assert {'command', 'version', 'seed_start', 'episodes', 'device', 'wall_s', 'rows'} <= set(summary)
    (row,) = summary['rows']
    assert row['task'] == 'conditional' and row['paper'] == 45.6 and row['episodes'] == 1 and sum(row['failures'].values()) == 1
    (line,) = (out / 'episodes.jsonl').read_text().splitlines()
    assert json.loads(line)['ticks'] == 384
    assert 'conditional' in done.stdout


@pytest.mark.parametrize(('arguments', 'message'), [
    (['inspect', '{tmp}/none'], 'inspect: no checkpoint at {tmp}/none: config.yaml is missing there'),
    (['evaluate', 'stacking', '--checkpoint', '{tmp}/none'], 'evaluate: no checkpoint at {tmp}/none'),
    (['evaluate', 'stacking', '--realtime'], 'evaluate: --realtime needs --through-ros'),
    (['evaluate', 'stacking', '--through-ros', '--workers', '2'], 'evaluate: --through-ros runs one episode at a time'),
    (['evaluate', 'stacking', '--through-ros', '--steps', '2'], 'leave out --workers, --steps'),
    (['evaluate', 'stacking', '--displace', '3'], 'evaluate: a block can be displaced by 0 to 0.3 m, got 3'),
    (['evaluate', 'stacking', '--policy', '{tmp}/none.pt', '--out', '{tmp}/o'], 'evaluate: no trained baseline at {tmp}/none.pt'),
    (['evaluate', 'stacking', '--policy', 'demonstrator', '--commit', '1'], 'evaluate: a baseline does not denoise; leave out'),
    (['train', '{tmp}/none.yaml'], 'train: cannot read the configuration {tmp}/none.yaml'),
    (['train', 'config/kuka_stack.yaml', 'data.path={tmp}'], 'train: {tmp} must hold one data set, as `collect`'),
    (['train', 'config/kuka_stack.yaml', 'data.hight=3'], "unknown key 'hight'"),
])
def test_a_users_mistake_is_one_sentence_and_code_2(tmp_path, capsys, arguments, message):
    assert main([a.replace('{tmp}', str(tmp_path)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message.replace('{tmp}', str(tmp_path)) in error and error.count('\n') == 1


def test_inspect_says_what_a_checkpoint_is(checkpoint, capsys):
    assert main([str(checkpoint), '--ros-args', '-r', '__node:=x'], verb='inspect') == 0
    said = capsys.readouterr().out
    assert 'horizon      16 steps' in said and 'moved.azimuth [rad]' in said and 'made: by a test' in said
