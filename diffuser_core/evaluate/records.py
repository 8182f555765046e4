"""The record of an episode, the same whether it ran with or without ROS, and why an episode failed. Loads no torch.

A record is one JSON object:

task, seed, goal      what was asked for; goal: the relations of the goal as words, empty for 'unconditional'
score                 0 to 100, of the final state, by the task's rule
best_score            the highest score of any tick
legacy_score          0 to 100, by the original code's rule (`LegacyScore`)
reached_at            tick at which the policy was done, or None
failure               why the score is below 100 (`failure_class`), or None
ticks, replans        control ticks of the episode; plans made
late_ticks            ticks that missed their deadline, through ROS; else 0
latency_ms            {'p50', 'p99'} of the ticks [ms], from state to command; None if nothing was planned
relations             what stands at the end, as words; start_relations: at the start
held                  name of the block that the gripper holds at the end, or None
empty_grip_ticks      ticks in which the gripper was told to close and held nothing, since it last held something
displaced             {'block', 'tick'} of the block that was displaced, or None
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from diffuser_core.envs.stacking import Relation, format_relation
from diffuser_core.envs.stacking_tasks import StackingTask
from diffuser_core.evaluate.statistics import quantiles

__all__ = ['FAILURES', 'EpisodeWatch', 'failure_class']

FAILURES = ('collapsed tower', 'still holding', 'wrong order', 'missed grasp', 'time out', 'nothing built')
"""Why an episode failed; the first that applies counts."""
MISSED_TICKS = 10
"""A grasp is missed if the gripper is closed on nothing for this many ticks."""


class EpisodeWatch:
    """Follows an episode from tick to tick and makes its record.

    task, seed  of the episode
    start       the relations that stand when it begins
    """

    def __init__(self, task: StackingTask, seed: int, start: Collection[Relation]) -> None:
        self.task = task
        self.seed = seed
        self._start = frozenset(start)
        self._standing = self._start
        self._best = 0.0
        self._held: str | None = None
        self._empty = 0

    def see(self, standing: Collection[Relation], held: str | None) -> None:
        """Take in the state after a tick: the relations that stand and the name of the block in the gripper."""
        self._standing = frozenset(standing)
        self._best = max(self._best, self.task.score(standing))
        self._held = held
        if held is not None:
            self._empty = 0

    def command(self, closed: bool) -> None:
        """Take in the gripper command of a tick, before the state that it leads to."""
        if closed and self._held is None:
            self._empty += 1

    def record(self, *, legacy_score: float, reached_at: int | None, ticks: int, replans: int, late_ticks: int,
               latencies: Sequence[float], displaced: Mapping[str, Any] | None) -> dict[str, Any]:
        """The record of the episode, now over; latencies (ticks that planned,) [ms]."""
        record: dict[str, Any] = {
            'task': self.task.name, 'seed': self.seed, 'goal': [format_relation(pair) for pair in self.task.goal.relations],
            'score': self.task.score(self._standing), 'best_score': self._best, 'legacy_score': legacy_score,
            'reached_at': reached_at, 'ticks': ticks, 'replans': replans, 'late_ticks': late_ticks,
            'latency_ms': quantiles(latencies),
            'relations': sorted(map(format_relation, self._standing)),
            'start_relations': sorted(map(format_relation, self._start)), 'held': self._held,
            'empty_grip_ticks': self._empty, 'displaced': None if displaced is None else dict(displaced)}
        return {**record, 'failure': failure_class(record)}


def failure_class(record: Mapping[str, Any]) -> str | None:
    """One of `FAILURES`, None for a score of 100. Looks at nothing but the record.

    collapsed tower  the score was higher before
    still holding    the gripper holds a block
    wrong order      a stack of two or more has come about that is not wanted
    missed grasp     the gripper was closed on nothing for `MISSED_TICKS` or more, and has held nothing since
    time out         a part of the goal stands
    nothing built    none of the above
    """
    if record['score'] >= 100.0:
        return None
    if record['best_score'] > record['score']:
        return 'collapsed tower'
    if record['held'] is not None:
        return 'still holding'
    if record['goal'] and set(record['relations']) - set(record['goal']) - set(record['start_relations']):
        return 'wrong order'
    if record['empty_grip_ticks'] >= MISSED_TICKS:
        return 'missed grasp'
    return 'time out' if record['score'] > 0.0 else 'nothing built'
