"""How episodes are asked for and what is written of them: summary, records, plot, video. Nothing here talks over ROS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diffuser_msgs.msg import EpisodeStatus, PlannerStats

from diffuser_core import __version__
from diffuser_core.envs.stacking_goal import GoalError, StackingGoal
from diffuser_core.envs.stacking_tasks import TASKS, StackingTask, draw_task
from diffuser_core.evaluate.recording import EpisodeLog, write_json, write_plot, write_video
from diffuser_core.evaluate.records import EpisodeWatch
from diffuser_core.evaluate.statistics import quantiles

__all__ = ['RECORDS', 'EpisodeResult', 'Settings', 'append_record', 'line', 'write_results']

RECORDS = 'episodes.jsonl'
"""File of the records (`diffuser_core.evaluate.records`), one a line, in the order in which the episodes ended."""


@dataclass(frozen=True)
class Settings:
    """The node's parameters; GoalError for a task that does not exist or relations that cannot stand."""

    episodes: int
    seed: int
    task: str
    relations: tuple[str, ...]
    out: Path
    video: bool
    realtime: bool
    command: str

    def __post_init__(self) -> None:
        if self.task not in (*TASKS, 'relations'):
            raise GoalError(f'unknown task {self.task!r}; there are {", ".join(TASKS)} and relations')
        if self.task != 'relations' and self.relations:
            raise GoalError(f"the task {self.task!r} takes no relations; use the task 'relations' for a given arrangement")
        self.drawn(self.seed)

    @property
    def goal(self) -> str:
        """The goal for people."""
        return ', '.join(self.relations) or self.task

    def drawn(self, seed: int) -> StackingTask:
        """What is asked for in the episode with this seed."""
        if self.task == 'relations':
            return StackingTask(self.task, StackingGoal.parse(self.task, self.relations))
        return draw_task(self.task, seed)


@dataclass
class EpisodeResult:
    """How an episode went.

    log         states and plans
    watch       what the record is made of
    goal_id     the planner's name of the goal
    latencies   of the ticks that planned, from the newest state to the command [ms]
    reached_at  tick at which the planner said that the goal stands, or None
    status      the bridge's last word
    stats       the planner's last word
    """

    log: EpisodeLog
    watch: EpisodeWatch
    goal_id: str = ''
    latencies: list[float] = field(default_factory=list)
    reached_at: int | None = None
    status: EpisodeStatus | None = None
    stats: PlannerStats | None = None

    def record(self) -> dict[str, Any]:
        """The record of the episode, now over."""
        assert self.status is not None
        replans, late = (self.stats.replans, self.stats.late_ticks) if self.stats is not None else (0, 0)
        return self.watch.record(legacy_score=float(self.status.legacy_score), reached_at=self.reached_at,
                                 ticks=self.status.step, replans=replans, late_ticks=late, latencies=self.latencies,
                                 displaced=None)


def line(result: EpisodeResult, record: dict[str, Any]) -> str:
    """An episode in a line for people."""
    planner = 'the planner published no statistics' if result.stats is None else \
        f'{record["replans"]} plans, latency {_milliseconds(record["latency_ms"])}, {record["late_ticks"]} late'
    ends = f'standing: {", ".join(record["relations"]) or "nothing"}' + (f' ({record["failure"]})' if record['failure'] else '')
    return f'seed {record["seed"]}, score {record["score"]:.1f}, {ends}; {planner}'


def _milliseconds(latency: dict[str, float | None]) -> str:
    p50, p99 = latency['p50'], latency['p99']
    return 'unknown' if p50 is None or p99 is None else f'p50 {p50:.1f} ms, p99 {p99:.1f} ms'


def append_record(out: Path, record: dict[str, Any]) -> None:
    """Add a record to the file of records."""
    with open(out / RECORDS, 'a', encoding='utf-8') as records:
        records.write(json.dumps(record) + '\n')


def write_results(settings: Settings, results: Sequence[EpisodeResult], *, device: str, wall_s: float) -> None:
    """Write summary.json, plan_vs_executed.png and, if asked, episode.mp4 (of the first episode), and say so."""
    records = [result.record() for result in results]
    latencies = [ms for result in results for ms in result.latencies]
    latency = quantiles(latencies, 3)
    scores = [record['score'] for record in records]
    summary = {
        'command': settings.command, 'version': __version__, 'seed_start': settings.seed, 'episodes': len(results),
        'device': device, 'wall_s': round(wall_s, 1), 'task': settings.task, 'relations': list(settings.relations),
        'goal': settings.goal, 'realtime': settings.realtime, 'score': float(np.mean(scores)), 'scores': scores,
        'legacy_score': float(np.mean([record['legacy_score'] for record in records])),
        **{name: sum(record[name] for record in records) for name in ('ticks', 'replans', 'late_ticks')},
        'latency_ms': latency,
    }
    out, log = settings.out, results[0].log
    (out / 'episode.mp4').unlink(missing_ok=True)
    write_json(out / 'summary.json', summary)
    many = len(results) > 1
    print(f'goal      {settings.goal}\n'
          f'score     {summary["score"]:.1f} of 100{f", mean of {len(results)} episodes" if many else ""} '
          f'(by the original rule {summary["legacy_score"]:.1f})\n'
          f'ticks     {summary["ticks"]}, plans {summary["replans"]}, late {summary["late_ticks"]}\n'
          f'latency   {_milliseconds(latency)}\n'
          f'summary   {out / "summary.json"}', flush=True)
    first = f' (episode 1, seed {log.seed})' if many else ''
    write_plot(out / 'plan_vs_executed.png', log)
    print(f'plot      {out / "plan_vs_executed.png"}{first}', flush=True)
    if settings.video:
        print('video     rendering ...', flush=True)
        write_video(out / 'episode.mp4', log)
        print(f'video     {out / "episode.mp4"}{first}', flush=True)
