"""The maze suite, Table 1 of the paper: seeded episodes of Maze2D and Multi2D, in parallel, resumable, with intervals."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from diffuser_core import __version__
from diffuser_core.checkpoint import WEIGHTS
from diffuser_core.envs.maze_layout import LAYOUTS, layout
from diffuser_core.envs.maze_picture import draw
from diffuser_core.envs.maze_policy import EXECUTIONS, MazePolicy
from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_core.evaluate.log import Job, ResultsFolder
from diffuser_core.evaluate.maze_policies import BASELINES, FAILURES, LearnedMazePolicy, MazeController, run_maze_episode
from diffuser_core.evaluate.pool import as_they_end, process_pool
from diffuser_core.evaluate.recording import replacing
from diffuser_core.evaluate.statistics import mean_interval
from diffuser_core.planner import DEFAULT_SAMPLING, Planner, Sampling
from diffuser_core.shipped import checkpoint_folder
from diffuser_core.trajectory import Plan
from diffuser_core.workers import follow_parent

__all__ = ['MAZE_TASKS', 'PAPER', 'MazeSuite', 'evaluate_mazes', 'format_maze_rows', 'write_pictures']

MAZE_TASKS: dict[str, tuple[str, bool]] = {f'{kind}-{size}': (size, multi_task)
                                           for multi_task, kind in ((False, 'maze2d'), (True, 'multi2d')) for size in LAYOUTS}
"""Task -> size of the maze, and whether the goal is drawn in every episode."""
PAPER = {'maze2d-umaze': 113.9, 'maze2d-medium': 121.5, 'maze2d-large': 123.0,
         'multi2d-umaze': 128.9, 'multi2d-medium': 127.2, 'multi2d-large': 132.1}
"""Table 1 of the paper, Diffuser, trained on D4RL's data."""


@dataclass(frozen=True)
class MazeSuite:
    """What to run, and how; ValueError for what cannot be.

    tasks         some of `MAZE_TASKS`
    checkpoint    folder of a planner, for tasks of one size; None: the shipped ones
    policy        a baseline in the planner's place, one of `BASELINES` or the file of a learned one; None: the planner
    episodes      seeds of every task, from `seed_start` on
    execution     how plans are carried out: see MazePolicy
    replan_every  control ticks between two plans
    candidates    plans drawn at the start of an episode; the one that arrives first is taken
    workers       processes; None: one a core
    """

    tasks: Sequence[str] = tuple(MAZE_TASKS)
    checkpoint: Path | None = None
    policy: str | None = None
    episodes: int = 100
    seed_start: int = 0
    execution: str = 'states'
    replan_every: int = 5
    candidates: int = 8
    workers: int | None = None
    sampling: Sampling = field(default_factory=lambda: DEFAULT_SAMPLING)
    backend: str = 'traced'

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in MAZE_TASKS]
        if unknown or not self.tasks:
            raise ValueError(f'unknown task {unknown[0] if unknown else ""!r}; the maze tasks are {", ".join(MAZE_TASKS)}')
        if min(self.episodes, self.replan_every, self.candidates) < 1 or self.seed_start < 0:
            raise ValueError(f'episodes, replan_every and candidates are at least 1 and the first seed 0, got {self.episodes}, '
                             f'{self.replan_every}, {self.candidates} and {self.seed_start}')
        if self.workers is not None and self.workers < 1:
            raise ValueError(f'at least one worker is needed, got {self.workers}')
        if self.execution not in EXECUTIONS:
            raise ValueError(f'execution is one of {", ".join(EXECUTIONS)}, got {self.execution!r}')
        if self.policy is not None and self.checkpoint is not None:
            raise ValueError('a baseline has no checkpoint; leave out either it or the policy')
        learned = self.policy is not None and self.policy not in BASELINES
        if (self.checkpoint is not None or learned) and len({MAZE_TASKS[task][0] for task in self.tasks}) > 1:
            raise ValueError('a checkpoint or a learned baseline is for one maze; name its size')

    @property
    def name(self) -> str:
        """Which controller it is, for people."""
        if self.policy is None or self.policy in BASELINES:
            return self.policy or 'diffuser'
        return Path(self.policy).resolve().parent.name

    def folder(self, size: str) -> Path:
        """Where the checkpoint for this maze is."""
        return checkpoint_folder(f'maze2d_{size}') if self.checkpoint is None else self.checkpoint

    def controller(self, size: str) -> MazeController:
        """The controller for this maze; errors as of loading a checkpoint, ValueError if it is for another maze."""
        if self.policy is not None:
            return BASELINES[self.policy](layout(size)) if self.policy in BASELINES else LearnedMazePolicy.load(self.policy)
        planner = Planner.from_checkpoint(self.folder(size), backend=self.backend)
        if MazePolicy.maze_of(planner).name != size:
            raise ValueError(f'{self.folder(size)} is a planner for the maze {MazePolicy.maze_of(planner).name}, not {size}')
        return MazePolicy(planner, layout(size), sampling=self.sampling, execution=self.execution, candidates=self.candidates)

    def settings(self) -> dict[str, Any]:
        """What results of different controllers are told apart by."""
        if self.policy in BASELINES:
            return {'policy': self.policy}
        if self.policy is not None:
            return {'policy_sha256': hashlib.sha256(Path(self.policy).read_bytes()).hexdigest()}
        sizes = dict.fromkeys(MAZE_TASKS[task][0] for task in self.tasks)
        weights = {size: hashlib.sha256((self.folder(size) / WEIGHTS).read_bytes()).hexdigest() for size in sizes}
        return {'policy': 'diffuser', 'weights_sha256': weights, 'sampling': asdict(self.sampling), 'execution': self.execution,
                'replan_every': self.replan_every, 'candidates': self.candidates, 'backend': self.backend}


def evaluate_mazes(suite: MazeSuite, out: Path, command: str, *, pictures: bool = False) -> dict[str, Any]:
    """Run the suite and return the summary; what has been run into `out` before is not run again.

    Writes to `out`: `settings.json`, `episodes.jsonl` with one record (`run_maze_episode`) a line as episodes end, a
    `summary.json`, and with `pictures` a folder of the best, median and worst episode of every task. ValueError if `out` holds
    results of other settings or a checkpoint cannot be used.
    """
    for size in dict.fromkeys(MAZE_TASKS[task][0] for task in suite.tasks):
        suite.controller(size)
    began = time.monotonic()
    results = ResultsFolder(out, suite.settings())
    seeds = range(suite.seed_start, suite.seed_start + suite.episodes)
    wanted: list[Job] = [(task, seed) for task in suite.tasks for seed in seeds]
    missing = [job for job in wanted if job not in results.records]
    if missing:
        pool = process_pool(len(missing), suite.workers, _start_worker, (suite,))
        with tqdm(total=len(wanted), initial=len(wanted) - len(missing), unit='episode') as bar:
            for record in as_they_end(pool, _run_job, missing):
                results.add(record)
                bar.update()
    by_task = {task: [results.records[job] for job in wanted if job[0] == task] for task in suite.tasks}
    summary = {'command': command, 'version': __version__, 'seed_start': suite.seed_start, 'episodes': suite.episodes,
               'device': 'cpu', 'wall_s': round(time.monotonic() - began, 1), 'episodes_run': len(missing), **suite.settings(),
               'rows': [_row(suite.name, task, records) for task, records in by_task.items()]}
    if pictures:
        summary['pictures'] = [str(path.relative_to(out)) for path in write_pictures(suite, by_task, out / 'pictures')]
    results.write_summary(summary)
    return summary


_worker: dict[str, Any] = {}


def _start_worker(suite: MazeSuite) -> None:
    follow_parent()
    torch.set_num_threads(1)
    _worker.update(suite=suite, controllers={})


def _run_job(job: Job) -> dict[str, Any]:
    suite, controllers = _worker['suite'], _worker['controllers']
    size, multi_task = MAZE_TASKS[job[0]]
    if size not in controllers:
        controllers[size] = suite.controller(size)
    return run_maze_episode(controllers[size], PointMazeEnv(size, multi_task=multi_task), *job, replan_every=suite.replan_every)


def _row(policy: str, task: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = np.array([record['score'] for record in records])
    reached = [record['reached_at'] for record in records if record['reached_at'] is not None]
    failures = [record['failure'] for record in records]

    def times(kind: str) -> dict[str, float | None]:
        known = [record[kind] for record in records if record[kind]['p50'] is not None]
        return {q: float(np.median([ms[q] for ms in known])) if known else None for q in ('p50', 'p99')}

    return {'policy': policy, 'task': task, 'score': float(scores.mean()), 'ci95': list(mean_interval(scores)),
            'episodes': len(records), 'paper': PAPER[task], 'return': float(np.mean([record['return'] for record in records])),
            'reached_at_median': float(np.median(reached)) if reached else None,
            'failures': {name: failures.count(name) for name in FAILURES if name in failures},
            'planning_ms': times('planning_ms'), 'command_ms': times('command_ms')}


def format_maze_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table for people."""
    lines = [f'{"policy":<14}{"task":<15}{"score":>7}{"95 % interval":>16}{"paper":>7}{"episodes":>10}{"reached at":>12}'
             f'{"plan p50 / p99":>18}  failures']
    for row in rows:
        low, high = row['ci95']
        failures = ', '.join(f'{count} {name}' for name, count in row['failures'].items()) or 'none'
        reached = '-' if row['reached_at_median'] is None else f'{row["reached_at_median"]:.0f}'
        planning = row['planning_ms']
        took = '-' if planning['p50'] is None else f'{planning["p50"]:.1f} / {planning["p99"]:.1f} ms'
        lines.append(f'{row["policy"]:<14}{row["task"]:<15}{row["score"]:>7.1f}{f"{low:.1f} - {high:.1f}":>16}'
                     f'{row["paper"]:>7.1f}{row["episodes"]:>10}{reached:>12}{took:>18}  {failures}')
    return '\n'.join(lines)


def write_pictures(suite: MazeSuite, by_task: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> list[Path]:
    """Run the best, median and worst episode of every task again and draw them: first plan, trail, goal; returns the files."""
    paths = []
    for task, records in by_task.items():
        size, multi_task = MAZE_TASKS[task]
        controller, env = suite.controller(size), PointMazeEnv(size, multi_task=multi_task)
        ranked = sorted(records, key=lambda record: (-record['score'], record['seed']))
        last = len(ranked) - 1
        places = {last: 'worst', **({len(ranked) // 2: 'median'} if last > 1 else {}), 0: 'best'}
        for place, name in places.items():
            trail: list[NDArray[np.float64]] = []
            plans: list[Plan] = []
            record = run_maze_episode(controller, env, task, ranked[place]['seed'], replan_every=suite.replan_every, trail=trail,
                                      plans=plans)
            picture = draw(env.layout, trail[0][:2], record['goal'], trail=np.array(trail)[:, :2],
                           plans=[plan.values[:, plan.channels.indices(('x', 'y'))] for plan in plans[:1]])
            path = folder / f'{task}_{name}.png'
            with replacing(path) as fresh:
                _save(fresh, picture)
            paths.append(path)
    return paths


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    from PIL import Image
    Image.fromarray(picture).save(path, format='PNG')
