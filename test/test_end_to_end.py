"""Bridge, planner and episodes as processes of their own, over DDS."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from diffuser_msgs.msg import PlannerStats
from diffuser_msgs.srv import SetGoal
from ros_client import Client, Session
from trajectory_msgs.msg import JointTrajectory

from diffuser_ros.qos import COMMAND_QOS, EVENT_QOS

ROOT = Path(__file__).parents[1]
DEADLINE = 120.0


class Watcher(Client):
    """The robot's client, which also hears what the planner commands and says."""

    def __init__(self, context):
        super().__init__(context)
        self.commands, self.stats = [], PlannerStats()
        self.create_subscription(JointTrajectory, 'command', self.commands.append, COMMAND_QOS)
        self.create_subscription(PlannerStats, 'diffuser_planner/stats', self._take_stats, EVENT_QOS)
        self.set_goal = self.create_client(SetGoal, 'diffuser_planner/set_goal')

    def _take_stats(self, stats):
        self.stats = stats


class Processes:
    """Processes that the test started, each the leader of a group, whose output goes to a file."""

    def __init__(self, folder):
        self.folder, self.running, self.left = folder, [], set()

    def start(self, name, *command, **variables):
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), **variables}
        environment = {key: value for key, value in environment.items() if value is not None}
        with open(self.folder / f'{name}.log', 'ab') as log:
            process = subprocess.Popen([sys.executable, *command], cwd=self.folder, env=environment, stdout=log,
                                       stderr=subprocess.STDOUT, start_new_session=True)
        process.name = name
        self.running.append(process)
        return process

    def node(self, executable, **parameters):
        words = [word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')]
        script = str(ROOT / 'scripts' / 'diffuser_ros' / executable)
        return self.start(executable, script, *(['--ros-args', *words] if words else []))

    def output(self, name):
        return (self.folder / f'{name}.log').read_text()

    def check(self, *expected):
        """Fail at once if one of these processes has ended."""
        for process in expected:
            assert process.poll() is None, f'{process.name} ended: {self.output(process.name)}'

    def kill(self, process):
        """SIGKILL to its whole group, noting the shared memory of DDS that it cannot take away any more."""
        with contextlib.suppress(OSError):
            maps = Path(f'/proc/{process.pid}/maps').read_text()
            self.left |= set(re.findall(r'/dev/shm/(fastdds_\w+)', maps))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def clean_up(self):
        for process in self.running:
            self.kill(process)
        for name in self.left:
            for path in (name, f'{name}_el', f'sem.{name}_mutex'):
                Path('/dev/shm', path).unlink(missing_ok=True)


@pytest.fixture
def processes(tmp_path):
    processes = Processes(tmp_path)
    yield processes
    processes.clean_up()


@pytest.fixture
def session():
    session = Session(DEADLINE)
    yield session
    session.close()


@pytest.fixture
def checkpoint():
    """The shipped one: commands of an untrained network begin too far from where the arm is to be sent."""
    return ROOT / 'config/checkpoints/kuka_stack'


def shared_memory():
    """Ports in /dev/shm of this test's ROS domain. A process that ends in order takes its own away."""
    first = 7400 + 250 * int(os.environ['ROS_DOMAIN_ID'])
    names = (path.name.removeprefix('fastdds_port') for path in Path('/dev/shm').glob('fastdds_port*'))
    return {name for name in names if name.isdecimal() and first <= int(name) < first + 250}


def test_a_launched_episode_moves_the_arm_and_writes_its_summary(processes, session, checkpoint, tmp_path):
    before = shared_memory()
    watcher = session.add(Watcher(session.context))
    launch = processes.start(
        'launch', '-m', 'diffuser_ros.runner', 'launch', str(ROOT / 'launch' / 'kuka_stack.launch.py'),
        'realtime:=false', 'video:=false', 'seed:=7', 'task:=relations', 'relations:=red on green, blue on red',
        f'checkpoint:={os.path.relpath(checkpoint, tmp_path)}', 'out:=results', FASTDDS_BUILTIN_TRANSPORTS=None)
    start = []

    def moved():
        if watcher.states and not start:
            start.append(watcher.joints)
        return start and np.abs(watcher.joints - start[0]).max() > 0.1

    session.until(lambda: watcher.commands and moved(), 'the arm to move', lambda: processes.check(launch))
    assert len(watcher.commands[-1].points) == 12
    session.until(lambda: launch.poll() is not None, 'the end of the launch')
    assert launch.returncode == 0, processes.output('launch')

    summary = json.loads((tmp_path / 'results' / 'summary.json').read_text())
    assert {'command', 'version', 'device', 'wall_s', 'late_ticks'} <= summary.keys()
    expected = {'seed_start': 7, 'episodes': 1, 'task': 'relations', 'goal': 'red on green, blue on red', 'ticks': 384,
                'realtime': False, 'score': summary['scores'][0]}
    assert {key: summary[key] for key in expected} == expected
    assert summary['replans'] >= 100 and 0.0 <= summary['legacy_score'] <= 100.0
    assert 0.0 < summary['latency_ms']['p50'] <= summary['latency_ms']['p99']
    assert 'seed:=7' in summary['command']
    (record,) = map(json.loads, (tmp_path / 'results' / 'episodes.jsonl').read_text().splitlines())
    assert record['goal'] == ['red on green', 'blue on red'] and record['seed'] == 7
    assert {name: record[name] for name in ('score', 'ticks', 'replans', 'legacy_score')} == {
        name: summary[name] for name in ('score', 'ticks', 'replans', 'legacy_score')}
    assert sorted(path.name for path in (tmp_path / 'results').iterdir()) == ['episodes.jsonl', 'plan_vs_executed.png',
                                                                              'summary.json']
    with pytest.raises(ProcessLookupError):
        os.killpg(launch.pid, 0)
    session.close()
    assert shared_memory() <= before


def test_the_planner_outlives_the_bridge_and_the_arm_stops_when_the_planner_dies(processes, session, checkpoint):
    watcher = session.add(Watcher(session.context))
    bridge = processes.node('kuka_bridge')
    planner = processes.node('planner_node', checkpoint=checkpoint)
    session.until(lambda: watcher.states and watcher.stats.tick and watcher.stats.reason == PlannerStats.NO_GOAL, 'states',
                  lambda: processes.check(bridge, planner))
    answer = session.call(watcher.set_goal, SetGoal.Request(task='relations', relations=['red on green']))
    assert answer.success, answer.message

    def is_planning():
        return watcher.stats.reason == PlannerStats.OK and watcher.status.step > 0

    session.until(is_planning, 'plans', lambda: processes.check(bridge, planner))

    processes.kill(bridge)
    session.until(lambda: watcher.stats.reason == PlannerStats.STALE_STATE, 'the planner to notice')
    assert 'ms old' in watcher.stats.reason_text
    watcher.commands.clear()
    session.until(lambda: watcher.commands, 'a command')
    points = np.array([point.positions for point in watcher.commands[-1].points])
    assert np.ptp(points, axis=0).max() == 0.0, 'a held arm is told to stay where it is'

    bridge = processes.node('kuka_bridge', seed=1)
    session.until(lambda: watcher.status.seed == 1 and is_planning(), 'planning to go on',
                  lambda: processes.check(bridge, planner))

    processes.kill(planner)

    def stands():
        recent = np.array([state[:7] for _, state in watcher.states[-60:]])
        return np.ptp(recent, axis=0).max() < 1e-4

    step = watcher.status.step
    session.until(lambda: watcher.status.step > step + 24 and stands(), 'the arm to stop',
                  lambda: processes.check(bridge))

    bridge.send_signal(signal.SIGTERM)
    session.until(lambda: bridge.poll() is not None, 'the end of the bridge')
    assert bridge.returncode == 0, processes.output('kuka_bridge')


def test_the_episode_node_says_so_when_the_planner_dies(processes, session, checkpoint, tmp_path):
    watcher = session.add(Watcher(session.context))
    bridge = processes.node('kuka_bridge', episode_steps=100_000)
    planner = processes.node('planner_node', checkpoint=checkpoint)
    episode = processes.node('episode_node', task='relations', relations='red on green', video='false', out='results')
    session.until(lambda: watcher.status.step > 5, 'the episode', lambda: processes.check(bridge, planner, episode))
    processes.kill(planner)
    session.until(lambda: episode.poll() is not None, 'the episode node to give up', lambda: processes.check(bridge))
    said = [line for line in processes.output('episode_node').splitlines() if line.startswith('episode: ')]
    assert episode.returncode == 1 and len(said) == 1 and 'diffuser_planner' in said[0]
    assert not list((tmp_path / 'results').iterdir())


def test_without_a_bridge_the_episode_node_says_so(processes, monkeypatch, capsys):
    from diffuser_ros import episode_node
    monkeypatch.setattr(signal, 'signal', lambda *_: None)
    monkeypatch.setattr(episode_node, 'START_TIMEOUT', 1.0)
    began = time.monotonic()
    assert episode_node.main(['--ros-args', '-p', f'out:={processes.folder}', '-p', 'video:=false']) == 1
    assert time.monotonic() - began > 1.0
    assert capsys.readouterr().err.count('kuka_bridge') > 0


@pytest.mark.parametrize('script', sorted(path.name for path in (ROOT / 'scripts' / 'diffuser_ros').iterdir()))
def test_an_interrupt_while_a_node_still_loads_ends_it_without_a_word(processes, script):
    """Loading PyTorch takes seconds, in which a launch may already be shutting down."""
    process = processes.node(script)
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    process.wait(DEADLINE)
    assert 'Traceback' not in processes.output(script)
