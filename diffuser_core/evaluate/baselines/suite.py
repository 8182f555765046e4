"""Score a baseline on the episodes that the planner is scored on: in parallel, resumable, with intervals and failures."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from diffuser_core import __version__
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking_tasks import TASKS
from diffuser_core.evaluate.baselines.policies import DemonstratorPolicy, EpisodePolicy, LearnedPolicy
from diffuser_core.evaluate.episode import run_episode
from diffuser_core.evaluate.log import Job, ResultsFolder
from diffuser_core.evaluate.records import FAILURES
from diffuser_core.evaluate.statistics import mean_interval
from diffuser_core.workers import available_cores, follow_parent

__all__ = ['DEMONSTRATOR', 'evaluate', 'format_rows', 'load_policy']

DEMONSTRATOR = 'demonstrator'
"""Names the scripted demonstrator where else the file of a learned policy stands."""

_worker: dict[str, Any] = {}


def load_policy(name: str) -> EpisodePolicy:
    """The demonstrator by its name, or a learned policy by its file; FileNotFoundError, or ValueError if it cannot be used."""
    return DemonstratorPolicy() if name == DEMONSTRATOR else LearnedPolicy.load(name)


def evaluate(policy: str, *, tasks: Sequence[str], episodes: int, seed_start: int, workers: int | None, displace: float,
             out: Path, command: str) -> dict[str, Any]:
    """Run seeds `seed_start` to `seed_start + episodes - 1` of every task; return the summary, as written to `summary.json`.

    policy: see `load_policy`; workers: processes, None for one a core; displace: distance by which a block is displaced in every
    episode [m]. Episodes that `out` holds are not run again. ValueError for an unknown task, no episodes, or an `out` of another
    policy.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ValueError(f'unknown task {unknown[0]!r}; the evaluation tasks are {", ".join(TASKS)}')
    if episodes < 1 or seed_start < 0 or (workers is not None and workers < 1):
        raise ValueError('at least one episode, one worker and a first seed of 0 or greater are needed, got '
                         f'{episodes}, {workers} and {seed_start}')
    if not 0.0 <= displace <= 0.3:
        raise ValueError(f'a block can be displaced by 0 to 0.3 m, got {displace:g}')
    load_policy(policy)
    began = time.monotonic()
    what = policy if policy == DEMONSTRATOR else hashlib.sha256(Path(policy).read_bytes()).hexdigest()
    results = ResultsFolder(out, {'policy': what, 'displace': displace})
    wanted: list[Job] = [(task, seed) for task in tasks for seed in range(seed_start, seed_start + episodes)]
    missing = [job for job in wanted if job not in results.records]
    if missing:
        pool = ProcessPoolExecutor(min(len(missing), workers or available_cores()), multiprocessing.get_context('spawn'),
                                   _start_worker, (policy, displace))
        try:
            running = [pool.submit(_run_job, job) for job in missing]
            for future in tqdm(as_completed(running), total=len(missing), unit='episode'):
                results.add(future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    summary = {'command': command, 'version': __version__, 'policy': policy, 'seed_start': seed_start, 'episodes': episodes,
               'displace': displace, 'wall_s': round(time.monotonic() - began, 1), 'episodes_run': len(missing),
               'rows': [_row(task, [results.records[job] for job in wanted if job[0] == task]) for task in tasks]}
    results.write_summary(summary)
    return summary


def _start_worker(policy: str, displace: float) -> None:
    follow_parent()
    torch.set_num_threads(1)
    _worker.update(policy=load_policy(policy), env=KukaStackEnv(), displace=displace)


def _run_job(job: Job) -> dict[str, Any]:
    return run_episode(_worker['policy'], _worker['env'], *job, displace=_worker['displace'])


def _row(task: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = np.array([record['score'] for record in records])
    failures = [record['failure'] for record in records]
    reached = [record['reached_at'] for record in records if record['reached_at'] is not None]
    return {'task': task, 'score': float(scores.mean()), 'ci95': list(mean_interval(scores)), 'episodes': len(records),
            'legacy_score': float(np.mean([record['legacy_score'] for record in records])),
            'failures': {name: failures.count(name) for name in FAILURES if name in failures},
            'reached_at_median': float(np.median(reached)) if reached else None}


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table for people."""
    lines = [f'{"task":<15}{"score":>7}{"95 % interval":>16}{"legacy":>8}{"episodes":>10}  failures']
    for row in rows:
        low, high = row['ci95']
        failures = ', '.join(f'{count} {name}' for name, count in row['failures'].items()) or 'none'
        lines.append(f'{row["task"]:<15}{row["score"]:>7.1f}{f"{low:.1f} - {high:.1f}":>16}{row["legacy_score"]:>8.1f}'
                     f'{row["episodes"]:>10}  {failures}')
    return '\n'.join(lines)
