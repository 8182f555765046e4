"""The best, the median and the worst episode of every task, run again to be filmed or drawn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from diffuser_core.evaluate.log import Job

__all__ = ['Shown', 'choose', 'run_again']


class Shown(NamedTuple):
    """An episode to be shown: task and seed, where to, a line about it, and what it scored."""

    job: Job
    path: Path
    note: str
    score: float


def choose(by_task: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path, suffix: str) -> list[Shown]:
    """The best, the median and the worst episode of every task, of fewer than three episodes each once.

    The files are called <task>_<best, median or worst><suffix>.
    """
    chosen = []
    for task, records in by_task.items():
        ranked = sorted(records, key=_rank)
        last = len(ranked) - 1
        names = {last: 'worst', **({len(ranked) // 2: 'median'} if last > 1 else {}), 0: 'best'}
        for place, name in names.items():
            record = ranked[place]
            chosen.append(Shown((task, record['seed']), folder / f'{task}_{name}{suffix}',
                                f'{task}, {name} of {len(ranked)}: score {record["score"]:.1f}', record['score']))
    return chosen


def run_again(pool: Executor, show: Callable[[Job, Path, str], float], chosen: Sequence[Shown], unit: str) -> None:
    """Call `show` in the pool with job, path and note of each episode; one warning if any scores differently from before."""
    try:
        futures = [pool.submit(show, *episode[:3]) for episode in chosen]
        scores = [future.result() for future in tqdm(futures, unit=unit)]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    differing = [f'{shown.job[0]} seed {shown.job[1]}' for shown, score in zip(chosen, scores) if shown.score != score]
    if differing:
        warnings.warn(f'run again, these episodes scored differently: {", ".join(differing)}; a result repeats exactly only '
                      'on the same machine with the same libraries', stacklevel=2)


def _rank(record: Mapping[str, Any]) -> tuple[float, int, int]:
    """Sorts the best record first: the higher score, then the earlier end, then the smaller seed."""
    reached_at = record['reached_at']
    return -record['score'], record['ticks'] if reached_at is None else reached_at, record['seed']
