"""How the planner node keeps time over minutes: in real time, with its simulated robot, on this machine.

    python benchmarks/soak.py kuka --minutes 10
    python benchmarks/soak.py maze2d --minutes 10

Launches the robot's launch file as a user would, samples what the system says of the node's process and of its planning process
once a second, and reads the run log that the node wrote. Prints and writes (`--out`, default runs/soak/<robot>) one JSON object:

  tick_jitter_ms   distance of the ticks' intervals from the period, p50, p99 and largest
  latency_ms       from a state in to the command out, of ticks that followed a plan
  plan_age_ms, planning_ms
  reasons          ticks by reason code
  cpu_percent      of one core, of the node without planning, and of the planning process
  memory_mb        resident, of both, after the first minute and at the end, and the growth
  unhandled        tracebacks in what the nodes printed
  scores           of the episodes
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from diffuser_ros.diagnostics import REASONS
from diffuser_ros.run_reader import RunReader, Stats

ROOT = Path(__file__).resolve().parents[1]
PERIODS = {'kuka': 1 / 24, 'maze2d': 0.01}
TICKS_PER_SECOND = os.sysconf('SC_CLK_TCK')
PAGE = os.sysconf('SC_PAGE_SIZE')


def launch(robot: str, minutes: float, out: Path) -> list[str]:
    """The command that runs so many minutes of episodes."""
    common = [f'out:={out / "episodes"}', f'record:={out / "run.mcap"}', 'video:=false', 'realtime:=true']
    runner = [sys.executable, '-m', 'diffuser_ros.runner', 'launch']
    if robot == 'kuka':
        return [*runner, str(ROOT / 'launch/kuka_stack.launch.py'), 'task:=conditional',
                f'episodes:={max(1, round(60 * minutes / 16.5))}', *common]
    return [*runner, str(ROOT / 'launch/maze2d.launch.py'), 'size:=large', 'multi_task:=true',
            f'episodes:={max(1, round(60 * minutes / 8.2))}', *common]


def processes(root: int) -> dict[str, int]:
    """The node's and its planning process's ids, of those that come from the launch."""
    parents, commands = {}, {}
    for entry in Path('/proc').iterdir():
        try:
            number = int(entry.name)
            parents[number] = int((entry / 'stat').read_text().rpartition(')')[2].split()[1])
            commands[number] = (entry / 'cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace')
        except (OSError, ValueError):
            continue
    found = {}
    for number, command in commands.items():
        above = number
        while above in parents and above != root:
            above = parents[above]
        if above == root and 'inference_process' in command:
            found['planning'] = number
        elif above == root and 'planner_node' in command:
            found['node'] = number
    return found


def sample(pid: int) -> tuple[float, float]:
    """CPU seconds used, and resident memory [MB]."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND, int(fields[21]) * PAGE / 1e6


def run(robot: str, minutes: float, out: Path) -> dict:
    """Launch, watch, and read what was recorded."""
    log = out / 'launch.log'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    samples: list[tuple[float, dict[str, tuple[float, float]]]] = []
    with open(log, 'w', encoding='utf-8') as said:
        process = subprocess.Popen(launch(robot, minutes, out), stdout=said, stderr=subprocess.STDOUT, env=environment,
                                   start_new_session=True)
        try:
            while process.poll() is None:
                time.sleep(1.0)
                try:
                    now = {name: sample(pid) for name, pid in processes(process.pid).items()}
                except OSError:
                    continue
                if len(now) == 2:
                    samples.append((time.monotonic(), now))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(60)
    text = log.read_text(encoding='utf-8')
    return {'robot': robot, 'minutes': minutes, 'exit_code': process.returncode, 'unhandled': text.count('Traceback'),
            **watched(samples), **recorded(out / 'run.mcap', PERIODS[robot]), **episodes(out)}


def watched(samples: list) -> dict:
    """CPU and memory from the samples; the first minute, in which things are set up, does not count."""
    if len(samples) < 10:
        return {}
    settled = [s for s in samples if s[0] - samples[0][0] >= min(60.0, 0.25 * (samples[-1][0] - samples[0][0]))]
    (began, first), (ended, last) = settled[0], settled[-1]
    return {'cpu_percent': {n: round(100 * (last[n][0] - first[n][0]) / (ended - began), 1) for n in first},
            'memory_mb': {n: {'settled': round(first[n][1], 1), 'end': round(last[n][1], 1),
                              'growth': round(last[n][1] - first[n][1], 1)} for n in first}}


def recorded(path: Path, period: float) -> dict:
    """Timing from the run log; intervals across episodes, in which nothing ticks, are left out."""
    with open(path, 'rb') as stream:
        stats = [entry for entry in RunReader(stream) if isinstance(entry, Stats)]
    stamps = np.array([s.stamp for s in stats]) * 1e-9
    pairs = np.array([a.goal_id == b.goal_id and b.tick == a.tick + 1 for a, b in zip(stats, stats[1:])])
    jitter = 1e3 * np.abs(np.diff(stamps) - period)[pairs]
    followed = [s for s in stats if s.plan_age_ms > 0.0 or s.planning_ms > 0.0]
    reasons = [REASONS[s.reason] for s in stats]

    def spread(values: np.ndarray | list[float]) -> dict[str, float]:
        return {'p50': round(float(np.percentile(values, 50)), 2), 'p99': round(float(np.percentile(values, 99)), 2),
                'max': round(float(np.max(values)), 2)}

    return {'ticks': len(stats), 'tick_jitter_ms': spread(jitter), 'latency_ms': spread([s.latency_ms for s in followed]),
            'plan_age_ms': spread([s.plan_age_ms for s in followed]), 'planning_ms': spread([s.planning_ms for s in followed]),
            'late_ticks': int(sum(max(0, b.late_ticks - a.late_ticks) for a, b in zip(stats, stats[1:]))),
            'reasons': {name: reasons.count(name) for name in dict.fromkeys(reasons)}}


def episodes(out: Path) -> dict:
    """The episodes' scores."""
    lines = (out / 'episodes' / 'episodes.jsonl').read_text(encoding='utf-8').splitlines()
    scores = [json.loads(line)['score'] for line in lines]
    return {'episodes': len(scores), 'score': round(float(np.mean(scores)), 1), 'scores': [round(s, 1) for s in scores]}


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('robot', choices=sorted(PERIODS))
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--out', type=Path, default=None)
    options = parser.parse_args()
    out = options.out or Path('runs/soak') / options.robot
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    summary = {'command': f'python benchmarks/soak.py {options.robot} --minutes {options.minutes:g}',
               **run(options.robot, options.minutes, out)}
    (out / 'summary.json').write_text(json.dumps(summary, indent=2), encoding='utf-8')
    print(json.dumps(summary, indent=2))


if __name__ == '__main__':
    main()
