"""Run logs read back: what happened to a planner, in order, checked to be consistent. Needs no ROS.

A log is read as a stream, so that a long one need not fit into memory; `parse_run` reads one from bytes as a whole.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from diffuser_ros.mcap_file import McapFile, RunLogError

__all__ = ['EVENTS_TOPIC', 'EVENT_TYPE', 'KINDS', 'STATS_TOPIC', 'STATS_TYPE', 'Event', 'Run', 'RunLogError', 'RunReader',
           'Stats', 'parse_run', 'stats_of']

EVENTS_TOPIC, EVENT_TYPE = 'run_events', 'diffuser_msgs/msg/RunEvent'
STATS_TOPIC, STATS_TYPE = 'stats', 'diffuser_msgs/msg/PlannerStats'

_SETUP: Mapping[str, type] = {
    'parameters': dict, 'checkpoint': str, 'digest': str, 'version': str, 'backend': str, 'seed': int, 'robot': str,
    'command_names': list, 'environment': dict}
KINDS: Mapping[str, Mapping[str, type | UnionType]] = {
    'start': _SETUP, 'load': _SETUP, 'change': {'parameters': dict}, 'goal': {'goal': dict, 'follows': int}, 'clear': {},
    'reset': {'seed': int}, 'replan': {'error': str, 'began': float | None, 'pace': list | None, 'refused': bool},
    'tick': {'reason': int, 'reason_text': str, 'adopted': int}}
"""What happens in a run, and what the JSON of each kind of event must hold. A 'replan' that made a plan also has 'channels', 't0'
and 'step_dt'."""
_PLAN: Mapping[str, type] = {'channels': list, 't0': float, 'step_dt': float}
_LARGEST = 1 << 53
"""Whole numbers beyond this are not exact in every JSON reader."""


@dataclass(frozen=True)
class Event:
    """One thing that happened; see diffuser_msgs/RunEvent.

    number   counts the events, from 0
    stamp    time of the state that it is about, or the node's clock [ns]
    data     what its JSON says
    now      time for the policy [s]
    delay    forecast time from a plan's state until the plan is followed [s]
    motion   which plan: counts the 'replan' events, from 1; 0: none
    names    channels of the observation; values (n,) one a name
    command  of a tick, the numbers that went out, row-major (m,); of a plan, its values
    """

    number: int
    stamp: int
    kind: str
    data: Mapping[str, Any]
    now: float
    delay: float
    motion: int
    names: tuple[str, ...]
    values: NDArray[np.float64]
    command: NDArray[np.float64]

    @property
    def observation(self) -> dict[str, float]:
        """Channel name -> value."""
        return dict(zip(self.names, self.values.tolist()))

    @property
    def plan(self) -> NDArray[np.float64]:
        """The plan of a 'replan' (horizon, channels); without a plan (0, 0)."""
        columns = len(self.data.get('channels', ()))
        return self.command.reshape(-1, columns) if columns else np.empty((0, 0))


@dataclass(frozen=True)
class Stats:
    """What is used of diffuser_msgs/PlannerStats; `stamp` [ns], `node`: the topic that it was heard on."""

    node: str
    stamp: int
    goal_id: str
    tick: int
    replans: int
    late_ticks: int
    reason: int
    reason_text: str
    latency_ms: float
    planning_ms: float
    state_age_ms: float
    plan_age_ms: float
    clamped: int


@dataclass(frozen=True)
class Run:
    """A whole log; `complete` is False if it was cut off."""

    events: tuple[Event, ...]
    stats: tuple[Stats, ...]
    complete: bool


class RunReader:
    """Iterates, once, over the events and statistics of a run log in the order in which they were written.

    RunLogError, one sentence, if the log is damaged, is none, or does not fit itself; a log that was cut off just ends, and
    `complete` is then False.
    """

    def __init__(self, stream: BinaryIO, name: str = 'the log') -> None:
        self._file = McapFile(stream, name, (EVENT_TYPE, STATS_TYPE), strict=True)
        self._name = name
        self._events = self._replans = 0

    @property
    def complete(self) -> bool:
        """Known at the end: whether the log was closed."""
        return self._file.complete

    def __iter__(self) -> Iterator[Event | Stats]:
        for entry in self._file:
            try:
                yield self._event(entry.message) if entry.type == EVENT_TYPE else stats_of(entry.message, entry.topic)
            except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                raise RunLogError(f'{self._name} is no run log of this version: {error}') from error
        if self._events == 0:
            raise RunLogError(f'{self._name} is no run log: it holds no event')

    def _event(self, message: Any) -> Event:
        number, kind = message.number, message.kind
        if number != self._events:
            raise ValueError(f'event {self._events} is missing')
        if kind not in KINDS or (kind == 'start') != (number == 0):
            raise ValueError(f'event {number} is of the kind {kind!r}, which it cannot be')
        data = json.loads(message.text)
        if not isinstance(data, dict):
            raise ValueError(f'event {number} ({kind}) holds no JSON object')
        event = Event(
            number, _nanoseconds(message.stamp), kind, data, float(message.now), float(message.delay), int(message.motion),
            tuple(message.names), np.array(message.values, dtype=np.float64), np.array(message.command, dtype=np.float64))
        self._check(event)
        self._events += 1
        self._replans += kind == 'replan'
        return event

    def _check(self, event: Event) -> None:
        what = f'event {event.number} ({event.kind})'
        wanted = {**KINDS[event.kind], **(_PLAN if event.kind == 'replan' and len(event.command) else {})}
        for field, kind in wanted.items():
            value = event.data.get(field, ...)
            if not isinstance(value, kind) or (isinstance(value, int) and (kind is not type(value) or abs(value) > _LARGEST)):
                raise ValueError(f'{what} lacks {field}, or has another type')
        for field, names in {'names': list(event.names), **event.data}.items():
            if field in ('names', 'channels', 'command_names') and not (
                    isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError(f'{what} has {field} that are no names')
        if len(set(event.names)) != len(event.names) or len(event.names) != len(event.values):
            raise ValueError(f'{what} has {len(event.values)} values for the channels {", ".join(event.names)}')
        if event.kind == 'replan' and len(event.command) and len(event.command) % max(1, len(event.data['channels'])):
            raise ValueError(f'{what} has {len(event.command)} values for {len(event.data["channels"])} channels')
        if not all(isinstance(answer, bool) for answer in event.data.get('pace') or ()):
            raise ValueError(f'{what} has a pace that is not of true and false')
        for motion in (event.data.get('follows', 0), event.data.get('adopted', 0)):
            if not 0 <= motion <= self._replans:
                raise ValueError(f'{what} is about the plan {motion} when there were {self._replans}')
        if event.motion != self._replans + 1 if event.kind == 'replan' else event.motion > self._replans:
            raise ValueError(f'{what} is about the plan {event.motion} when there were {self._replans}')


def parse_run(data: bytes, name: str = 'the log') -> Run:
    """A run log from its bytes, or the complete part of one that was cut off; RunLogError, and nothing else, for other bytes."""
    reader = RunReader(io.BytesIO(data), name)
    entries = list(reader)
    return Run(tuple(e for e in entries if isinstance(e, Event)), tuple(e for e in entries if isinstance(e, Stats)),
               reader.complete)


def stats_of(message: Any, topic: str) -> Stats:
    """Statistics from a message of PlannerStats; AttributeError or ValueError if it is none of this version."""
    return Stats(topic, _nanoseconds(message.header.stamp), str(message.goal_id), int(message.tick), int(message.replans),
                 int(message.late_ticks), int(message.reason), str(message.reason_text), float(message.latency_ms),
                 float(message.planning_ms), float(message.state_age_ms), float(message.plan_age_ms), int(message.clamped))


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
