"""The maze suite, Table 1 of the paper: seeded episodes of Maze2D and Multi2D, in parallel, resumable, with intervals."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffuser_core import __version__
from diffuser_core.checkpoint import WEIGHTS
from diffuser_core.envs.maze_layout import CHANNELS, LAYOUTS, layout
from diffuser_core.envs.maze_picture import draw
from diffuser_core.envs.maze_policy import EXECUTIONS, MAZE_SAMPLING, MazePolicy
from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_core.evaluate.log import Job, ResultsFolder
from diffuser_core.evaluate.maze_policies import BASELINES, FAILURES, LearnedMazePolicy, MazeController, run_maze_episode
from diffuser_core.evaluate.pool import as_they_end, process_pool
from diffuser_core.evaluate.recording import replacing
from diffuser_core.evaluate.showcase import choose, run_again
from diffuser_core.evaluate.statistics import mean_interval, median_quantiles
from diffuser_core.planner import Planner, Sampling
from diffuser_core.shipped import checkpoint_folder
from diffuser_core.trajectory import Plan
from diffuser_core.workers import follow_parent

__all__ = ['MAZE_TASKS', 'PAPER', 'MazeSuite', 'evaluate_mazes', 'format_maze_rows']

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
    candidates    plans drawn at the start of an episode; the one that crosses no wall and arrives first is taken. None: 8, and
                  with the execution 'paper', which takes the plan that it gets, 1
    workers       processes; None: one a core
    """

    tasks: Sequence[str] = tuple(MAZE_TASKS)
    checkpoint: Path | None = None
    policy: str | None = None
    episodes: int = 100
    seed_start: int = 0
    execution: str = 'states'
    replan_every: int = 5
    candidates: int | None = None
    workers: int | None = None
    sampling: Sampling = MAZE_SAMPLING
    backend: str = 'traced'

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in MAZE_TASKS]
        if unknown or not self.tasks:
            raise ValueError(f'unknown task {unknown[0] if unknown else ""!r}; the maze tasks are {", ".join(MAZE_TASKS)}')
        if min(self.episodes, self.replan_every, self.drawn) < 1 or self.seed_start < 0:
            raise ValueError(f'episodes, replan_every and candidates are at least 1 and the first seed 0, got {self.episodes}, '
                             f'{self.replan_every}, {self.drawn} and {self.seed_start}')
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

    @property
    def drawn(self) -> int:
        """Plans drawn at the start of an episode."""
        return self.candidates if self.candidates is not None else 1 if self.execution == 'paper' else 8

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
        return MazePolicy(planner, layout(size), sampling=self.sampling, execution=self.execution, candidates=self.drawn)

    def settings(self) -> dict[str, Any]:
        """What results of different controllers are told apart by."""
        if self.policy in BASELINES:
            return {'policy': self.policy}
        if self.policy is not None:
            return {'policy_sha256': hashlib.sha256(Path(self.policy).read_bytes()).hexdigest()}
        sizes = LAYOUTS if self.checkpoint is None else dict.fromkeys(MAZE_TASKS[task][0] for task in self.tasks)
        weights = {size: hashlib.sha256((self.folder(size) / WEIGHTS).read_bytes()).hexdigest() for size in sizes}
        return {'policy': 'diffuser', 'weights_sha256': weights, 'sampling': asdict(self.sampling), 'execution': self.execution,
                'replan_every': self.replan_every, 'candidates': self.drawn, 'backend': self.backend}


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
    missing = results.missing(wanted)
    if missing:
        results.take(as_they_end(_pool(suite, len(missing)), _run_job, missing), wanted)
    by_task = {task: [results.records[job] for job in wanted if job[0] == task] for task in suite.tasks}
    summary = {'command': command, 'version': __version__, 'seed_start': suite.seed_start, 'episodes': suite.episodes,
               'device': 'cpu', 'wall_s': round(time.monotonic() - began, 1), 'episodes_run': len(missing), **suite.settings(),
               'rows': [_row(suite.name, task, records) for task, records in by_task.items()]}
    if pictures:
        drawn = choose(by_task, out / 'pictures', '.png')
        run_again(_pool(suite, len(drawn)), _draw_job, drawn, 'picture')
        summary['pictures'] = [str(shown.path.relative_to(out)) for shown in drawn]
    results.write_summary(summary)
    return summary


_worker: dict[str, Any] = {}


def _start_worker(suite: MazeSuite) -> None:
    follow_parent()
    torch.set_num_threads(1)
    _worker.update(suite=suite, controllers={})


def _pool(suite: MazeSuite, jobs: int) -> Executor:
    return process_pool(jobs, suite.workers, _start_worker, (suite,))


def _run_job(job: Job, trail: list[NDArray[np.float64]] | None = None, plans: list[Plan] | None = None) -> dict[str, Any]:
    suite, controllers = _worker['suite'], _worker['controllers']
    size, multi_task = MAZE_TASKS[job[0]]
    if size not in controllers:
        controllers[size] = suite.controller(size)
    return run_maze_episode(controllers[size], PointMazeEnv(size, multi_task=multi_task), *job, replan_every=suite.replan_every,
                            trail=trail, plans=plans)


def _draw_job(job: Job, path: Path, note: str) -> float:
    """Run an episode again and draw it: start, first plan, trail, goal, with `note` in the file; returns its score."""
    trail: list[NDArray[np.float64]] = []
    plans: list[Plan] = []
    record = _run_job(job, trail, plans)
    picture = draw(layout(MAZE_TASKS[job[0]][0]), trail[0][:2], record['goal'], trail=np.array(trail)[:, :2],
                   plans=[plan.values[:, plan.channels.indices(CHANNELS[:2])] for plan in plans[:1]])
    text = PngInfo()
    text.add_text('Description', note)
    with replacing(path) as fresh:
        Image.fromarray(picture).save(fresh, format='PNG', pnginfo=text)
    return float(record['score'])


def _row(policy: str, task: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = np.array([record['score'] for record in records])
    reached = [record['reached_at'] for record in records if record['reached_at'] is not None]
    failures = [record['failure'] for record in records]
    return {'policy': policy, 'task': task, 'score': float(scores.mean()), 'ci95': list(mean_interval(scores)),
            'episodes': len(records), 'paper': PAPER[task], 'return': float(np.mean([record['return'] for record in records])),
            'share_in_goal': float(np.mean([record['return'] / record['ticks'] for record in records])),
            'reached_at_median': float(np.median(reached)) if reached else None,
            'failures': {name: failures.count(name) for name in FAILURES if name in failures},
            **{kind: median_quantiles([record[kind] for record in records]) for kind in ('planning_ms', 'command_ms')}}


def format_maze_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table for people."""
    width = max(14, *(len(row['policy']) + 2 for row in rows))
    lines = [f'{"policy":<{width}}{"task":<15}{"score":>7}{"95 % interval":>16}{"paper":>7}{"episodes":>10}{"reached at":>12}'
             f'{"plan p50 / p99":>18}  failures']
    for row in rows:
        low, high = row['ci95']
        failures = ', '.join(f'{count} {name}' for name, count in row['failures'].items()) or 'none'
        reached = '-' if row['reached_at_median'] is None else f'{row["reached_at_median"]:.0f}'
        planning = row['planning_ms']
        took = '-' if planning['p50'] is None else f'{planning["p50"]:.1f} / {planning["p99"]:.1f} ms'
        lines.append(f'{row["policy"]:<{width}}{row["task"]:<15}{row["score"]:>7.1f}{f"{low:.1f} - {high:.1f}":>16}'
                     f'{row["paper"]:>7.1f}{row["episodes"]:>10}{reached:>12}{took:>18}  {failures}')
    return '\n'.join(lines)
