"""The block-stacking suite: seeded episodes of the evaluation tasks, in parallel, resumable, with intervals and failures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuser_core import __version__
from diffuser_core.checkpoint import WEIGHTS
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking_classifier import load_classifier
from diffuser_core.envs.stacking_motion import COMMIT
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.envs.stacking_tasks import TASKS, draw_task
from diffuser_core.evaluate import through_ros
from diffuser_core.evaluate.baselines.policies import DEMONSTRATOR, EpisodePolicy, load_policy
from diffuser_core.evaluate.episode import run_episode
from diffuser_core.evaluate.log import Job, ResultsFolder
from diffuser_core.evaluate.pool import as_they_end, process_pool
from diffuser_core.evaluate.recording import EpisodeLog, check_video_writer, write_video
from diffuser_core.evaluate.records import FAILURES
from diffuser_core.evaluate.showcase import choose, run_again
from diffuser_core.evaluate.statistics import mean_interval, median_quantiles
from diffuser_core.latency import DelayedPolicy, Injected
from diffuser_core.planner import DEFAULT_SAMPLING, Planner, Sampling
from diffuser_core.shipped import checkpoint_folder
from diffuser_core.workers import follow_parent

__all__ = ['PAPER', 'Suite', 'evaluate', 'format_rows']

PAPER = {'unconditional': 58.7, 'conditional': 45.6, 'rearrangement': 58.9}
"""Table 3 of the paper, Diffuser, by the original code's rules and without displacements."""


@dataclass(frozen=True)
class Suite:
    """What to run, and how; ValueError for what cannot be.

    checkpoint  folder of the planner; None: the shipped one
    policy      a baseline in the planner's place: 'demonstrator', or the file of a learned policy; None: the planner itself
    classifier  file of a classifier that guides the planner's plans in place of the goal at their end; None: the goal is given
    keep_goal   whether the goal is given as well
    tasks       some of `TASKS`
    episodes    seeds of every task, from `seed_start` on
    workers     processes; None: one a core
    displace    distance by which a block is displaced in every episode [m]; 0: none is
    videos      whether the best, the median and the worst episode of every task are filmed
    ros         None: without ROS; 'lock-step' or 'realtime': through bridge, planner node and episode node. Then `sampling` and
                `commit` are those of config/kuka_planner.yaml, and one episode runs at a time
    injected    how late plans arrive while the arm goes on
    blind       whether plans are made as if they arrived at once
    """

    checkpoint: Path | None = None
    tasks: Sequence[str] = TASKS
    episodes: int = 100
    seed_start: int = 0
    workers: int | None = None
    sampling: Sampling = DEFAULT_SAMPLING
    commit: int = COMMIT
    displace: float = 0.0
    videos: bool = False
    ros: str | None = None
    policy: str | None = None
    classifier: Path | None = None
    keep_goal: bool = False
    injected: Injected = Injected()
    blind: bool = False

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise ValueError(f'unknown task {unknown[0]!r}; the evaluation tasks are {", ".join(TASKS)}')
        if self.episodes < 1 or self.seed_start < 0:
            raise ValueError(f'at least one episode and a first seed of 0 or greater are needed, got {self.episodes} and '
                             f'{self.seed_start}')
        if self.workers is not None and self.workers < 1:
            raise ValueError(f'at least one worker is needed, got {self.workers}')
        if not 0.0 <= self.displace <= 0.3:
            raise ValueError(f'a block can be displaced by 0 to 0.3 m, got {self.displace:g}')
        if self.ros not in (None, 'lock-step', 'realtime'):
            raise ValueError(f"through ROS it is 'lock-step' or 'realtime', got {self.ros!r}")
        if self.ros is not None and (self.videos or self.displace):
            raise ValueError('videos and displacements are made without ROS; leave out either them or ROS')
        if self.policy is not None and (self.checkpoint is not None or self.ros is not None):
            raise ValueError('a baseline has no checkpoint and runs without ROS; leave out either it or them')

        if self.classifier is not None and (self.policy is not None or self.ros is not None):
            raise ValueError('a classifier guides the planner without ROS; leave out either it or the baseline or ROS')
        if self.injected.any and (self.policy is not None or self.ros is not None):
            raise ValueError('plans of the planner are delayed, without ROS; leave out either the delay or the baseline or ROS')
        if self.blind and not self.injected.any:
            raise ValueError('plans that arrive at once cannot be blind to their delay; give a delay')

    @property
    def name(self) -> str:
        """Which controller it is, for people: 'diffuser', 'demonstrator', or the folder that a learned policy lies in."""
        if self.policy is None or self.policy == DEMONSTRATOR:
            return self.policy or 'diffuser'
        return Path(self.policy).resolve().parent.name

    @property
    def folder(self) -> Path:
        """Where the planner's checkpoint is."""
        return checkpoint_folder('kuka_stack') if self.checkpoint is None else self.checkpoint

    @property
    def jobs(self) -> list[Job]:
        """Every (task, seed)."""
        return [(task, seed) for task in self.tasks for seed in range(self.seed_start, self.seed_start + self.episodes)]


def evaluate(suite: Suite, out: Path, command: str) -> dict[str, Any]:
    """Run the suite and return the summary; what has been run into `out` before is not run again.

    Writes to `out`: `settings.json`, `episodes.jsonl` with one record (`evaluate.records`) a line as episodes end,
    `summary.json`, and with `videos` a folder of them. ValueError if `out` holds results of other settings or the checkpoint or
    the baseline cannot be used, FileNotFoundError if there is no such baseline.
    """
    _load(suite)
    if suite.videos:
        check_video_writer()
    began = time.monotonic()
    settings = {**_controller_settings(suite), 'displace': suite.displace, 'ros': suite.ros}
    results = ResultsFolder(out, settings)
    wanted = suite.jobs
    missing = results.missing(wanted)
    if missing:
        new = _run(suite, missing) if suite.ros is None \
            else through_ros.run(missing, suite.folder, out / 'ros', realtime=suite.ros == 'realtime')
        results.take(new, wanted)
    by_task = {task: [results.records[job] for job in wanted if job[0] == task] for task in suite.tasks}
    summary = {'command': command, 'version': __version__, 'seed_start': suite.seed_start, 'episodes': suite.episodes,
               'device': 'cpu', 'wall_s': round(time.monotonic() - began, 1), 'episodes_run': len(missing),
               'checkpoint': str(suite.folder) if suite.policy is None else None, **settings, 'policy': suite.policy,
               'rows': [_row(suite.name, task, records) for task, records in by_task.items()]}
    if suite.videos:
        films = choose(by_task, out / 'videos', '.mp4')
        run_again(_pool(suite, len(films)), _film_job, films, 'video')
        summary['videos'] = [str(film.path.relative_to(out)) for film in films]
    results.write_summary(summary)
    return summary


def _load(suite: Suite) -> EpisodePolicy:
    """The controller that runs the episodes."""
    if suite.policy is not None:
        return load_policy(suite.policy)
    policy = _planning_policy(suite)
    return (DelayedPolicy(policy, suite.injected, tick_dt=policy.tick_dt, committed=not suite.blind)
            if suite.injected.any else policy)


def _planning_policy(suite: Suite) -> StackingPolicy:
    planner = Planner.from_checkpoint(suite.folder)
    if suite.classifier is None:
        return StackingPolicy(planner, sampling=suite.sampling, commit=suite.commit)
    return StackingPolicy(planner, sampling=replace(suite.sampling, rule='score'), commit=suite.commit,
                          classifier=load_classifier(suite.classifier), keep_goal=suite.keep_goal)


def _controller_settings(suite: Suite) -> dict[str, Any]:
    """What results of different controllers are told apart by."""
    if suite.policy == DEMONSTRATOR:
        return {'policy': DEMONSTRATOR}
    if suite.policy is not None:
        return {'policy_sha256': hashlib.sha256(Path(suite.policy).read_bytes()).hexdigest()}
    weights = {'weights_sha256': hashlib.sha256((suite.folder / WEIGHTS).read_bytes()).hexdigest()}
    if suite.ros is not None:
        return {**weights, **through_ros.settings()}
    guided = {} if suite.classifier is None else {
        'classifier_sha256': hashlib.sha256(suite.classifier.read_bytes()).hexdigest(), 'keep_goal': suite.keep_goal}
    delayed = {'injected': asdict(suite.injected), 'blind': suite.blind} if suite.injected.any else {}
    return {**weights, 'sampling': asdict(suite.sampling), 'commit': suite.commit, **guided, **delayed}


# ---- Worker processes ------------------------------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _start_worker(suite: Suite) -> None:
    follow_parent()
    torch.set_num_threads(1)
    _worker.update(env=KukaStackEnv(), displace=suite.displace, policy=_load(suite))


def _run_job(job: Job, log: EpisodeLog | None = None) -> dict[str, Any]:
    return run_episode(_worker['policy'], _worker['env'], *job, displace=_worker['displace'], log=log)


def _film_job(job: Job, path: Path, note: str) -> float:
    """Run an episode again and make a video of it; returns its score."""
    log = EpisodeLog(job[1], draw_task(*job).describe(), note=note)
    record = _run_job(job, log)
    write_video(path, log)
    return float(record['score'])


def _pool(suite: Suite, jobs: int) -> Executor:
    return process_pool(jobs, suite.workers, _start_worker, (suite,))


def _run(suite: Suite, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """The records of the jobs, as they end."""
    return as_they_end(_pool(suite, len(jobs)), _run_job, jobs)


# ---- Results ---------------------------------------------------------------------------------------------------------


def _row(policy: str, task: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = np.array([r['score'] for r in records])
    failures = [r['failure'] for r in records]
    displaced = [r['score'] for r in records if r['displaced'] is not None]
    reached = [r['reached_at'] for r in records if r['reached_at'] is not None]
    return {'policy': policy, 'task': task, 'score': float(scores.mean()), 'ci95': list(mean_interval(scores)),
            'episodes': len(records), 'paper': PAPER[task],
            'legacy_score': float(np.mean([r['legacy_score'] for r in records])),
            'failures': {name: failures.count(name) for name in FAILURES if name in failures},
            'reached_at_median': float(np.median(reached)) if reached else None,
            'displaced': len(displaced), 'displaced_score': float(np.mean(displaced)) if displaced else None,
            'ticks': sum(r['ticks'] for r in records), 'late_ticks': sum(r['late_ticks'] for r in records),
            'latency_ms': median_quantiles([r['latency_ms'] for r in records])}


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table for people."""
    width = max(14, *(len(row['policy']) + 2 for row in rows))
    lines = [f'{"policy":<{width}}{"task":<15}{"score":>7}{"95 % interval":>16}{"paper":>7}{"legacy":>8}{"episodes":>10}'
             f'{"displaced (score)":>19}  failures']
    for row in rows:
        low, high = row['ci95']
        failures = ', '.join(f'{count} {name}' for name, count in row['failures'].items()) or 'none'
        displaced = f'{row["displaced"]} ({row["displaced_score"]:.1f})' if row['displaced'] else '0'
        lines.append(f'{row["policy"]:<{width}}{row["task"]:<15}{row["score"]:>7.1f}{f"{low:.1f} - {high:.1f}":>16}'
                     f'{row["paper"]:>7.1f}{row["legacy_score"]:>8.1f}{row["episodes"]:>10}{displaced:>19}  {failures}')
    return '\n'.join(lines)
