"""Evaluation episodes through the launch file, and what is left when they are broken off."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffuser_core.envs.stacking import format_relation
from diffuser_core.envs.stacking_tasks import draw_task
from diffuser_core.evaluate import through_ros
from diffuser_core.evaluate.stacking import Suite, evaluate


@pytest.fixture
def checkpoint():
    """The shipped one: commands of an untrained network begin too far from where the arm is to be sent."""
    return Path(__file__).parents[1] / 'config/checkpoints/kuka_stack'


@pytest.fixture
def launches(monkeypatch):
    """The processes of the launches."""
    started, popen = [], subprocess.Popen

    def keeping(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(through_ros.subprocess, 'Popen', keeping)
    yield started
    for process in started:
        process.kill()
        process.wait()


def processes_marked(mark):
    """Ids of the running processes whose environment holds the variable `mark`."""
    found = []
    for path in Path('/proc').glob('[0-9]*/environ'):
        with contextlib.suppress(OSError):
            if f'{mark}='.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_consecutive_seeds_of_a_task_share_a_launch():
    jobs = [('conditional', 0), ('conditional', 1), ('conditional', 3), ('rearrangement', 4), ('rearrangement', 5)]
    assert through_ros._launches(jobs) == [('conditional', 0, 2), ('conditional', 3, 1), ('rearrangement', 4, 2)]
    assert through_ros._launches([]) == []


def test_a_suite_through_ros_gathers_the_records_of_its_launches(checkpoint, tmp_path, launches):
    suite = Suite(checkpoint, ('rearrangement',), episodes=2, seed_start=1, ros='lock-step')
    summary = evaluate(suite, tmp_path, 'test')
    (row,) = summary['rows']
    assert row['task'] == 'rearrangement' and row['episodes'] == 2 and row['ticks'] == 2 * 384 and row['paper'] == 58.9
    records = [json.loads(line) for line in (tmp_path / 'episodes.jsonl').read_text().splitlines()]
    for record, seed in zip(records, (1, 2), strict=True):
        task = draw_task('rearrangement', seed)
        assert record['seed'] == seed and record['goal'] == [format_relation(pair) for pair in task.goal.relations]
        assert record['start_relations'] and record['replans'] > 50 and 0.0 < record['latency_ms']['p50']
    assert [launch.returncode for launch in launches] == [0]
    assert evaluate(suite, tmp_path, 'test')['rows'] == summary['rows'] and len(launches) == 1
    with pytest.raises(ValueError, match='results of other settings'):
        evaluate(Suite(checkpoint, ('rearrangement',), episodes=2, seed_start=1), tmp_path, 'test')


def test_a_run_that_is_broken_off_ends_its_launch(checkpoint, tmp_path, launches):
    records = through_ros.run([('unconditional', seed) for seed in range(50)], checkpoint, tmp_path, realtime=False)
    assert next(records)['task'] == 'unconditional'
    records.close()
    assert launches[0].poll() is not None
    said = (tmp_path / 'launch.log').read_text()
    assert said.count('[launch]') > 0 and 'episode 1 of 50' in said


def test_the_launch_of_a_run_that_is_killed_ends_too(checkpoint, tmp_path):
    code = ('import pathlib, sys; from diffuser_core.evaluate import through_ros; folder = pathlib.Path(sys.argv[2]); '
            'records = through_ros.run([("unconditional", seed) for seed in range(50)], pathlib.Path(sys.argv[1]), folder, '
            'realtime=False); print(next(records)["task"], flush=True); input()')
    mark = f'DIFFUSER_TEST_{os.getpid()}'
    run = subprocess.Popen([sys.executable, '-c', code, str(checkpoint), str(tmp_path)], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, text=True, env={**os.environ, mark: '1'})
    try:
        assert run.stdout.readline() == 'unconditional\n'
        assert len(processes_marked(mark)) == 5, 'the run, its launch and three nodes'
    finally:
        run.kill()
        run.communicate()
    end = time.monotonic() + 60.0
    while processes_marked(mark) and time.monotonic() < end:
        time.sleep(0.2)
    assert not processes_marked(mark)


def test_a_launch_that_fails_is_named_with_its_log(tmp_path, launches):
    with pytest.raises(ValueError, match='conditional from seed 4 on ended with code .* after 0 of 1 episodes') as error:
        list(through_ros.run([('conditional', 4)], tmp_path / 'none', tmp_path / 'ros', realtime=False))
    log = tmp_path / 'ros' / 'launch.log'
    assert str(log) in str(error.value) and 'no checkpoint at' in log.read_text()


def test_without_ros_the_suite_says_so(checkpoint, tmp_path, monkeypatch):
    find = through_ros.importlib.util.find_spec
    monkeypatch.setattr(through_ros.importlib.util, 'find_spec', lambda name: None if name == 'rclpy' else find(name))
    with pytest.raises(ValueError, match='ROS 2 is not installed here'):
        evaluate(Suite(checkpoint, ('conditional',), episodes=1, ros='lock-step'), tmp_path, 'test')


def test_the_suite_itself_loads_no_ros():
    code = 'import sys, diffuser_core.evaluate.stacking; print("rclpy" in sys.modules, "diffuser_ros" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False', 'False']
