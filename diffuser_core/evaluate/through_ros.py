"""Evaluation episodes through ROS: `launch/kuka_stack.launch.py` in a process of its own, whose records are gathered."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffuser_core.evaluate.log import Job
from diffuser_core.shipped import config_folder
from diffuser_core.workers import die_with_parent

__all__ = ['run', 'settings']

ROOT = Path(__file__).resolve().parents[2]
"""Where the packages are that run here; the launched nodes shall be of the same code."""
LAUNCH_FILE = 'kuka_stack.launch.py'
END_TIMEOUT = 30.0
"""Seconds that a launch may take to end after it was asked to."""


def settings() -> dict[str, Any]:
    """What the launched planner's settings are told apart by."""
    return {'planner_config_sha256': hashlib.sha256((config_folder() / 'kuka_planner.yaml').read_bytes()).hexdigest()}


def run(jobs: Sequence[Job], checkpoint: Path, folder: Path, *, realtime: bool) -> Iterator[dict[str, Any]]:
    """Run the jobs through ROS and yield their records as they end.

    folder    takes the launches' own results and what they print (`launch.log`)
    realtime  false: bridge and planner wait for each other (lock-step)

    ValueError if ROS is not installed or a launch fails; the message names the log. However this ends, the launch has ended.
    """
    if importlib.util.find_spec('rclpy') is None:
        raise ValueError('ROS 2 is not installed here: Python finds no rclpy')
    folder.mkdir(parents=True, exist_ok=True)
    for task, first, count in _launches(jobs):
        yield from _launch(task, first, count, checkpoint, folder, realtime)


def _launches(jobs: Sequence[Job]) -> list[tuple[str, int, int]]:
    """Task, first seed and number of seeds of every launch: consecutive jobs of consecutive seeds go together."""
    launches: list[tuple[str, int, int]] = []
    for task, seed in jobs:
        if launches and launches[-1][0] == task and sum(launches[-1][1:]) == seed:
            launches[-1] = (task, launches[-1][1], launches[-1][2] + 1)
        else:
            launches.append((task, seed, 1))
    return launches


def _launch(task: str, first: int, count: int, checkpoint: Path, folder: Path, realtime: bool) -> Iterator[dict[str, Any]]:
    out = folder / f'{task}_{first}'
    lines = out / 'episodes.jsonl'
    lines.unlink(missing_ok=True)
    source = ROOT / 'launch' / LAUNCH_FILE
    command = [sys.executable, '-m', 'diffuser_ros.runner', 'launch', str(source) if source.is_file() else LAUNCH_FILE,
               f'task:={task}', f'seed:={first}', f'episodes:={count}', f'realtime:={str(realtime).lower()}', 'video:=false',
               f'checkpoint:={checkpoint.resolve()}', f'out:={out.resolve()}']
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    log = folder / 'launch.log'
    with open(log, 'a', encoding='utf-8') as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                   env={**os.environ, 'PYTHONPATH': path}, start_new_session=True,
                                   preexec_fn=die_with_parent)
    taken = 0
    try:
        while True:
            ended = process.poll() is not None
            text = lines.read_text(encoding='utf-8') if lines.exists() else ''
            whole = text[:text.rfind('\n') + 1].splitlines()
            for line in whole[taken:]:
                yield json.loads(line)
            taken = len(whole)
            if ended:
                break
            time.sleep(0.2)
    finally:
        _end(process)
    if process.returncode != 0 or taken < count:
        raise ValueError(f'the launch of {task} from seed {first} on ended with code {process.returncode} after {taken} of '
                         f'{count} episodes; {log} says why')


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a launch to end in order, as Ctrl-C does, and make sure that it and its nodes have ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
