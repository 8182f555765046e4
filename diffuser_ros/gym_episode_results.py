"""How episodes of a Gymnasium robot are asked for and what is written of them. Nothing here talks over ROS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diffuser_msgs.msg import GymEpisodeStatus, PlannerStats

from diffuser_core import __version__
from diffuser_core.evaluate.recording import write_json
from diffuser_core.evaluate.statistics import quantiles

__all__ = ['DRIVERS', 'GymEpisode', 'GymSettings', 'describe', 'parse_goal', 'write_summary']

DRIVERS = {'planner': 'the planner node', 'random': 'actions drawn evenly from the action space',
           'external': 'whoever publishes on command'}
"""Who drives, for people."""


@dataclass(frozen=True)
class GymSettings:
    """The node's parameters; ValueError for those that cannot be used."""

    env: str
    kwargs: Mapping[str, Any]
    episodes: int
    seed: int
    driver: str
    goal: tuple[float, ...]
    out: Path
    video: bool
    realtime: bool
    command: str

    def __post_init__(self) -> None:
        if not self.env:
            raise ValueError("the parameter env is missing: the id of an environment, for example 'Hopper-v5'")
        if self.episodes < 1 or self.seed < 0:
            raise ValueError(f'at least 1 episode and a seed of 0 or greater are needed, got {self.episodes} and {self.seed}')
        if self.driver not in DRIVERS:
            raise ValueError(f"unknown driver {self.driver!r}; there are {', '.join(DRIVERS)}")


def parse_goal(text: str) -> tuple[float, ...]:
    """A goal as a user writes it: numbers between commas, or nothing; ValueError if it is something else."""
    try:
        return tuple(float(part) for part in text.split(',')) if text.strip() else ()
    except ValueError:
        raise ValueError(f"a goal is written as numbers between commas, for example '3.0, 1.5', not {text!r}") from None


@dataclass
class GymEpisode:
    """How an episode went: the bridge's and the planner's last words, and the latencies of the planner's ticks [ms]."""

    seed: int
    goal_id: str = ''
    reached_at: int | None = None
    status: GymEpisodeStatus | None = None
    stats: PlannerStats | None = None
    latencies: list[float] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """One JSON object."""
        status, stats = self.status, self.stats
        assert status is not None
        return {'seed': self.seed, 'episode_return': status.episode_return, 'score': _known(status.score), 'ticks': status.step,
                'terminated': status.terminated, 'goal': dict(zip(status.goal_names, map(float, status.goal_values))),
                'reached_at': self.reached_at, 'replans': stats.replans if stats else 0,
                'late_ticks': stats.late_ticks if stats else 0, 'clamped': stats.clamped if stats else 0,
                'latency_ms': quantiles(self.latencies, 3), 'clipped': status.clipped, 'refused': status.refused,
                'timeouts': status.timeouts}


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def describe(record: Mapping[str, Any]) -> str:
    """An episode in a line for people."""
    score = '' if record['score'] is None else f', score {record["score"]:.1f}'
    latency = record['latency_ms']
    planner = '' if latency['p50'] is None else \
        (f'; {record["replans"]} plans, latency p50 {latency["p50"]:.1f} ms, p99 {latency["p99"]:.1f} ms, '
         f'{record["late_ticks"]} late')
    counted = (('timeouts', 'steps without a command'), ('refused', 'commands refused'), ('clipped', 'values clipped'))
    odd = ''.join(f', {record[name]} {what}' for name, what in counted if record[name])
    return f'seed {record["seed"]}, return {record["episode_return"]:.2f}{score}, {record["ticks"]} steps{odd}{planner}'


def write_summary(settings: GymSettings, episodes: Sequence[GymEpisode], *, device: str | None, wall_s: float) -> None:
    """Write summary.json and say what it says. `score` is the mean normalised score, null where the environment knows none."""
    records = [episode.record() for episode in episodes]
    returns, scores = [r['episode_return'] for r in records], [r['score'] for r in records]
    score = None if None in scores else float(np.mean(scores))
    summary = {
        'command': settings.command, 'version': __version__, 'seed_start': settings.seed, 'episodes': len(records),
        'device': device, 'wall_s': round(wall_s, 1), 'task': settings.env, 'kwargs': dict(settings.kwargs),
        'driver': settings.driver, 'goal': list(settings.goal), 'realtime': settings.realtime, 'score': score, 'scores': scores,
        'legacy_score': None, 'episode_return': float(np.mean(returns)), 'returns': returns,
        **{name: sum(r[name] for r in records) for name in ('ticks', 'replans', 'late_ticks', 'clamped', 'clipped', 'refused',
                                                           'timeouts')},
        'latency_ms': quantiles([ms for episode in episodes for ms in episode.latencies], 3)}
    write_json(settings.out / 'summary.json', summary)
    mean = f', mean of {len(records)} episodes' if len(records) > 1 else ''
    print(f'driven by {DRIVERS[settings.driver]}\n'
          f'return    {summary["episode_return"]:.2f}{mean}' + ('' if score is None else f', score {score:.1f}') +
          f'\nsummary   {settings.out / "summary.json"}', flush=True)
