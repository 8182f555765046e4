"""The locomotion suite, Table 2 of the paper: seeded episodes of hopper, walker and half cheetah, resumable, with intervals."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuser_core import __version__
from diffuser_core.checkpoint import WEIGHTS, Checkpoint
from diffuser_core.envs.locomotion import robot_of
from diffuser_core.envs.locomotion_policy import LocomotionPolicy, LocomotionSettings, aim_of
from diffuser_core.evaluate.locomotion_mppi import MppiPolicy, MppiSettings
from diffuser_core.evaluate.locomotion_policies import BASELINES, FAILURES, LocomotionController, baseline, run_locomotion_episode
from diffuser_core.evaluate.log import Job, ResultsFolder
from diffuser_core.evaluate.pool import as_they_end, process_pool
from diffuser_core.evaluate.statistics import mean_interval, median_quantiles
from diffuser_core.planner import Planner
from diffuser_core.shipped import checkpoint_folder
from diffuser_core.trajectory import RETURN
from diffuser_core.workers import follow_parent

__all__ = ['PAPER', 'LocomotionSuite', 'choose_aim', 'evaluate_locomotion', 'format_locomotion_rows']

PAPER = {'halfcheetah-medium-expert': 79.8, 'halfcheetah-medium': 44.2, 'halfcheetah-medium-replay': 42.2,
         'hopper-medium-expert': 107.2, 'hopper-medium': 58.5, 'hopper-medium-replay': 96.8,
         'walker2d-medium-expert': 108.4, 'walker2d-medium': 79.7, 'walker2d-medium-replay': 61.2}
"""Table 2 of the paper, Diffuser, trained on D4RL's data."""
MPPI = 'mppi'


@dataclass(frozen=True)
class LocomotionSuite:
    """What to run, and how; ValueError for what cannot be.

    robot, quality  the task: which robot, and on data of which quality its planner was trained
    checkpoint    folder of a planner; None: the shipped one
    policy        a baseline in the planner's place, one of `BASELINES` or the file of a learned one; None: the planner; 'mppi':
                  its model alone, inside MPPI
    settings      how plans are made; None: our defaults, or with `paper` the released code's
    episodes      seeds, from `seed_start` on
    replan_every  control ticks between two plans
    delay         time [s] by which plans arrive late; less than a plan lasts
    workers       processes; None: one a core
    """

    robot: str = 'hopper'
    quality: str = 'medium-expert'
    checkpoint: Path | None = None
    policy: str | None = None
    settings: LocomotionSettings | None = None
    paper: bool = False
    episodes: int = 15
    seed_start: int = 100
    replan_every: int = 1
    delay: float = 0.0
    workers: int | None = None
    backend: str = 'traced'

    def __post_init__(self) -> None:
        robot_of(self.robot)
        if self.task not in PAPER:
            raise ValueError(f'there is no task {self.task!r}; there are {", ".join(PAPER)}')
        if min(self.episodes, self.replan_every) < 1 or self.seed_start < 0 or self.workers is not None and self.workers < 1:
            raise ValueError(f'episodes, replan_every and workers are at least 1 and the first seed 0, got {self.episodes}, '
                             f'{self.replan_every}, {self.workers} and {self.seed_start}')
        if not 0.0 <= self.delay < math.inf or self.delay and self.policy is not None:
            raise ValueError(f'delay is a time from 0 s up, of the planner alone, got {self.delay}')
        if self.policy not in (None, MPPI) and self.checkpoint is not None:
            raise ValueError('a baseline has no checkpoint; leave out either it or the policy')
        if self.paper and self.settings is not None:
            raise ValueError("the paper's settings are given; leave out your own")

    @property
    def task(self) -> str:
        """Its name in the paper's table."""
        return f'{self.robot}-{self.quality}'

    @property
    def name(self) -> str:
        """Which controller it is, for people."""
        if self.policy is None:
            return 'diffuser, paper' if self.paper else 'diffuser'
        return self.policy if self.policy in (*BASELINES, MPPI) else Path(self.policy).resolve().parent.name

    @property
    def folder(self) -> Path:
        """Where the checkpoint is."""
        return checkpoint_folder(self.task.replace('-', '_')) if self.checkpoint is None else self.checkpoint

    def planning(self, checkpoint: Checkpoint) -> LocomotionSettings:
        """How plans of `checkpoint` are made."""
        if not self.paper:
            settings = self.settings or LocomotionSettings()
            return replace(settings, aim=aim_of(checkpoint)) if settings.aim is None else settings
        if checkpoint.value is None:
            raise ValueError(f"{self.folder} has no return predictor, which the paper's settings need")
        return LocomotionSettings.paper(self.task, checkpoint.value.scale)

    def controller(self) -> LocomotionController:
        """The controller; errors as of loading a checkpoint, ValueError if it is for another robot."""
        robot = robot_of(self.robot)
        if self.policy not in (None, MPPI):
            return baseline(str(self.policy), robot)
        checkpoint = Checkpoint.load(self.folder)
        channels = checkpoint.channels
        seen = len(channels.observations) - (RETURN in channels.names)
        if (channels.actions, seen) != (robot.actions, robot.observations):
            raise ValueError(f'{self.folder} does not fit the {self.robot}, which has {robot.actions} actions and '
                             f'{robot.observations} observations; it has {channels.actions} and {seen}')
        if self.policy == MPPI:
            return MppiPolicy(Planner(checkpoint, backend=self.backend))
        return LocomotionPolicy(Planner(checkpoint, backend=self.backend), self.planning(checkpoint))

    def described(self) -> dict[str, Any]:
        """What results of different controllers are told apart by, and the data that a planner was trained on."""
        if self.policy in BASELINES:
            return {'policy': self.policy, 'data': None}
        if self.policy not in (None, MPPI):
            return {'policy_sha256': hashlib.sha256(Path(str(self.policy)).read_bytes()).hexdigest(), 'data': None}
        checkpoint = Checkpoint.load(self.folder)
        made = checkpoint.provenance
        config = made.get('config')
        data = config.get('data', {}).get('path') if isinstance(config, dict) else None
        settings = MppiSettings() if self.policy == MPPI else self.planning(checkpoint)
        weights = hashlib.sha256((self.folder / WEIGHTS).read_bytes()).hexdigest()
        return {'policy': self.policy or 'diffuser', 'weights_sha256': weights,
                'data': data, 'data_fingerprint': made.get('data_fingerprint'),
                'settings': asdict(settings), 'replan_every': self.replan_every, 'backend': self.backend,
                **({'delay': self.delay} if self.delay else {})}


def evaluate_locomotion(suite: LocomotionSuite, out: Path, command: str) -> dict[str, Any]:
    """Run the suite and return the summary; what has been run into `out` before is not run again.

    Writes to `out`: `settings.json`, `episodes.jsonl` with one record (`run_locomotion_episode`) a line as episodes end, and
    `summary.json`. ValueError if `out` holds results of other settings or a checkpoint cannot be used.
    """
    suite.controller()
    described = suite.described()
    began = time.monotonic()
    results = ResultsFolder(out, described)
    wanted: list[Job] = [(suite.task, seed) for seed in range(suite.seed_start, suite.seed_start + suite.episodes)]
    missing = results.missing(wanted)
    if missing:
        results.take(as_they_end(_pool(suite, len(missing)), _run_job, missing), wanted)
    row = _row(suite.name, suite.task, described['data'], [results.records[job] for job in wanted])
    summary = {'command': command, 'version': __version__, 'seed_start': suite.seed_start, 'episodes': suite.episodes,
               'device': 'cpu', 'wall_s': round(time.monotonic() - began, 1), 'episodes_run': len(missing), **described,
               'rows': [row]}
    results.write_summary(summary)
    return summary


def choose_aim(suite: LocomotionSuite, aims: Sequence[float], out: Path, command: str) -> list[dict[str, Any]]:
    """Run the suite with each of these aims and write the best into the checkpoint; returns the rows, the best one first.

    The best is the one whose interval has the highest lower end, so that an aim with which a robot falls now and then has to be
    clearly better.

    Each run has a folder in `out`, and what has been run before is not run again. The checkpoint's provenance says how its aim
    was found. ValueError if the suite names no checkpoint, a baseline, an aim itself, or a planner that is not told the return.
    """
    settings = suite.settings or LocomotionSettings()
    if suite.checkpoint is None or suite.policy is not None or suite.paper or settings.aim is not None:
        raise ValueError('an aim is chosen for the planner of a checkpoint that is named, with our settings and no aim given')
    if not aims or len(set(aims)) < len(aims):
        raise ValueError(f'aims to choose from are one or more different numbers, got {list(aims)}')
    if RETURN not in Checkpoint.load(suite.checkpoint).channels.names:
        raise ValueError(f'{suite.checkpoint} is not told the return, so it has no aim; data.returns trains one that is')
    runs = [replace(suite, settings=replace(settings, aim=aim)) for aim in aims]
    rows = [{'aim': aim, **evaluate_locomotion(run, out / f'aim_{aim:g}', command)['rows'][0]} for aim, run in zip(aims, runs)]
    rows.sort(key=lambda row: -float(row['ci95'][0]))
    best = rows[0]['aim']
    checkpoint = Checkpoint.load(suite.checkpoint)
    found = {'scores': {f'{row["aim"]:g}': [round(x, 1) for x in (row['score'], *row['ci95'])] for row in rows},
             'seeds': [suite.seed_start, suite.seed_start + suite.episodes - 1]}
    known = checkpoint.provenance.get('aim')
    if checkpoint.aim != best or not isinstance(known, Mapping) or {key: known.get(key) for key in found} != found:
        made = {**checkpoint.provenance, 'aim': {'command': command, **found}}
        replace(checkpoint, aim=float(best), provenance=made).save(suite.checkpoint)
    return rows


_worker: dict[str, Any] = {}


def _start_worker(suite: LocomotionSuite) -> None:
    follow_parent()
    torch.set_num_threads(1)
    _worker.update(suite=suite, controller=suite.controller())


def _pool(suite: LocomotionSuite, jobs: int) -> Executor:
    return process_pool(jobs, suite.workers, _start_worker, (suite,))


def _run_job(job: Job) -> dict[str, Any]:
    suite = _worker['suite']
    return run_locomotion_episode(_worker['controller'], robot_of(suite.robot), *job, replan_every=suite.replan_every,
                                  delay=suite.delay)


def _row(policy: str, task: str, data: str | None, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = np.array([record['score'] for record in records])
    failures = [record['failure'] for record in records]
    return {'policy': policy, 'task': task, 'data': data, 'score': float(scores.mean()), 'ci95': list(mean_interval(scores)),
            'episodes': len(records), 'paper': PAPER[task], 'return': float(np.mean([record['return'] for record in records])),
            'ticks': float(np.mean([record['ticks'] for record in records])),
            'failures': {name: failures.count(name) for name in FAILURES if name in failures},
            **{kind: median_quantiles([record[kind] for record in records]) for kind in ('planning_ms', 'command_ms')}}


def format_locomotion_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table for people."""
    width = max(10, *(len(row['policy']) + 2 for row in rows))
    lines = [f'{"policy":<{width}}{"task":<26}{"score":>7}{"95 % interval":>16}{"paper":>7}{"episodes":>10}{"return":>9}'
             f'{"ticks":>7}{"plan p50 / p99":>20}  failures; data']
    for row in rows:
        low, high = row['ci95']
        failures = ', '.join(f'{count} {name}' for name, count in row['failures'].items()) or 'none'
        planning = row['planning_ms']
        took = '-' if planning['p50'] is None else f'{planning["p50"]:.1f} / {planning["p99"]:.1f} ms'
        lines.append(f'{row["policy"]:<{width}}{row["task"]:<26}{row["score"]:>7.1f}{f"{low:.1f} - {high:.1f}":>16}'
                     f'{row["paper"]:>7.1f}{row["episodes"]:>10}{row["return"]:>9.0f}{row["ticks"]:>7.0f}{took:>20}  {failures}; '
                     f'{row["data"] or "no data"}')
    return '\n'.join(lines)
