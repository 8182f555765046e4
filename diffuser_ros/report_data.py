"""What a report draws, from a run log or a ROS 2 bag (MCAP): statistics, and what was commanded, planned and measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from diffuser_ros.mcap_file import Entry, McapFile
from diffuser_ros.run_reader import EVENT_TYPE, STATS_TYPE, Event, RunLogError, RunReader, Stats, stats_of

__all__ = ['Drive', 'Trace', 'read_drive']

PLAN_INTERVAL = 1.0
"""Seconds between plans that are kept: more of them would only blacken the picture."""
JOINT_STATES, TRAJECTORY = 'sensor_msgs/msg/JointState', 'trajectory_msgs/msg/JointTrajectory'
VECTOR, PLAN = 'diffuser_msgs/msg/NamedVector', 'diffuser_msgs/msg/Plan'


@dataclass
class Trace:
    """Named numbers over time: of each channel its times [s] and values, equally many."""

    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, time: float, values: Mapping[str, float]) -> None:
        """Numbers of one instant; nothing for a time that is not a finite number."""
        for name, value in values.items() if np.isfinite(time) else ():
            self.times[name].append(time)
            self.values[name].append(value)

    def __getitem__(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Times and values (n,) of a channel, in the order of time; times that repeat count once."""
        times, first = np.unique(np.array(self.times[name]), return_index=True)
        return times, np.array(self.values[name])[first]

    def __contains__(self, name: str) -> bool:
        return name in self.times

    @property
    def names(self) -> list[str]:
        """Channels, in the order in which they first came."""
        return list(self.times)


@dataclass
class Drive:
    """One run.

    period     seconds between two ticks: the parameter, of a bag the median; None if neither is known
    stats      one a tick
    measured   the observations
    commanded  what was commanded: a channel that is measured too at the time when it shall be so; others when they were sent
    plans      about one a second
    seed, backend  of a run log
    complete   False if the file was cut off
    """

    name: str
    period: float | None = None
    stats: list[Stats] = field(default_factory=list)
    measured: Trace = field(default_factory=Trace)
    commanded: Trace = field(default_factory=Trace)
    plans: list[Trace] = field(default_factory=list)
    seed: int | None = None
    backend: str = 'unknown'
    complete: bool = True
    _last_plan: float = -np.inf

    def add_plan(self, t0: float, step_dt: float, channels: Sequence[str], rows: Iterable[Sequence[float]]) -> None:
        """Keep a plan, unless the last one that was kept is too near; `rows` (horizon, channels), the first at `t0` [s]."""
        if not self._last_plan <= t0 < self._last_plan + PLAN_INTERVAL - 1e-6:
            self._last_plan = t0
            plan = Trace()
            for t, row in enumerate(rows):
                plan.add(t0 + step_dt * t, dict(zip(channels, row)))
            self.plans.append(plan)


def read_drive(path: Path, node: str | None = None) -> Drive:
    """The run in a run log or a bag (a folder, or one of its files); RunLogError, one sentence, if there is none.

    node  of a bag with several planners, the full name of the one to look at
    """
    files = _files(path)
    try:
        with open(files[0], 'rb') as stream:
            first = next(iter(McapFile(stream, str(files[0]), (EVENT_TYPE, STATS_TYPE))), None)
        if first is not None and first.type == EVENT_TYPE:
            with open(files[0], 'rb') as stream:
                return _from_log(stream, path)
        return _from_bag(files, path, node)
    except OSError as error:
        raise RunLogError(f'{error.filename or path} cannot be read: {error.strerror}') from error


def _files(path: Path) -> list[Path]:
    """The MCAP files of a bag, in order, or the one file that is given."""
    if not path.is_dir():
        return [path]
    description = path / 'metadata.yaml'
    if description.is_file():
        try:
            bag = yaml.safe_load(description.read_text(encoding='utf-8'))['rosbag2_bagfile_information']
            storage, names = bag['storage_identifier'], [str(name) for name in bag['relative_file_paths']]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise RunLogError(f'{description} does not describe a bag: {type(error).__name__}') from error
        if storage != 'mcap':
            raise RunLogError(f'{path} is a bag of {storage}; only MCAP can be read: see `ros2 bag convert`')
        files = [path / name for name in names]
    else:  # a recorder that was killed leaves none
        files = sorted(path.glob('*.mcap'))
    if not files or any(file.suffix != '.mcap' for file in files):
        raise RunLogError(f'{path} holds no files *.mcap; files that were compressed as a whole cannot be read')
    return files


# ---- Run logs ------------------------------------------------------------------------------------------------------------


def _from_log(stream: Any, path: Path) -> Drive:
    drive = Drive(path.stem)
    reader = RunReader(stream, str(path))
    names: list[str] = []
    for entry in reader:
        if isinstance(entry, Stats):
            drive.stats.append(entry)
        elif entry.kind in ('start', 'load'):
            names, rate = entry.data['command_names'], entry.data['parameters'].get('tick_rate')
            drive.seed, drive.backend = entry.data['seed'], entry.data['backend']
            drive.period = 1.0 / rate if isinstance(rate, float) and rate > 0.0 else None
        elif entry.kind == 'tick':
            _tick(drive, entry, names)
        elif entry.kind == 'replan' and len(entry.command):
            drive.add_plan(entry.data['t0'], entry.data['step_dt'], entry.data['channels'], entry.plan.tolist())
    drive.complete = reader.complete
    return drive


def _tick(drive: Drive, event: Event, names: Sequence[str]) -> None:
    drive.measured.add(event.now, event.observation)
    if names and len(event.command) >= len(names):
        for name, value in zip(names, event.command.tolist()):  # the first row: what shall be at the next tick
            drive.commanded.add(event.now + (drive.period or 0.0) * (name in event.names), {name: value})


# ---- Bags ----------------------------------------------------------------------------------------------------------------


def _from_bag(files: Sequence[Path], path: Path, node: str | None) -> Drive:
    heard: dict[str, list[Entry]] = defaultdict(list)
    complete = True
    for file in files:
        with open(file, 'rb') as stream:
            reader = McapFile(stream, str(file), (STATS_TYPE, JOINT_STATES, TRAJECTORY, VECTOR, PLAN))
            for entry in reader:
                heard[entry.topic].append(entry)
            complete = complete and reader.complete
    node = _planner(heard, path, node)
    space, drive = node.rpartition('/')[0], Drive(path.stem, complete=complete)
    try:
        drive.stats = [stats_of(entry.message, entry.topic) for entry in heard[f'{node}/stats']]
        stamps = np.array([stats.stamp for stats in drive.stats])
        drive.period = float(1e-9 * np.median(np.diff(stamps))) if len(stamps) > 1 else None
        for entry in heard[f'{space}/joint_states']:
            drive.measured.add(_time(entry), dict(zip(entry.message.name, entry.message.position)))
        for entry in heard[f'{space}/state']:
            drive.measured.add(_time(entry), dict(zip(entry.message.names, entry.message.values)))
        for entry in heard[f'{space}/command']:
            _command(drive, entry)
        for entry in heard[f'{node}/plan']:
            plan = entry.message
            drive.add_plan(_time(entry), plan.step_dt, plan.channels,
                           np.array(plan.values).reshape(-1, max(1, len(plan.channels))).tolist())
    except (AttributeError, ValueError, TypeError, OverflowError) as error:
        raise RunLogError(f'{path} holds messages of another version: {error}') from error
    return drive


def _planner(heard: Mapping[str, Sequence[Entry]], path: Path, node: str | None) -> str:
    nodes = sorted(topic.removesuffix('/stats') for topic, entries in heard.items() if entries[0].type == STATS_TYPE)
    if node is not None and node not in nodes:
        raise RunLogError(f'{path} holds no statistics of the node {node}; there are those of {", ".join(nodes) or "none"}')
    if node is None and len(nodes) != 1:
        raise RunLogError(f'{path} holds statistics of {", ".join(nodes)}: name one with --node' if nodes else
                          f'{path} holds no statistics of a planner (topic ~/stats, {STATS_TYPE})')
    return nodes[0] if node is None else node


def _command(drive: Drive, entry: Entry) -> None:
    if entry.type == VECTOR:
        drive.commanded.add(_time(entry), dict(zip(entry.message.names, entry.message.values)))
    elif entry.type == TRAJECTORY and entry.message.points:
        point = entry.message.points[0]
        due = _time(entry) + point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec
        drive.commanded.add(due, dict(zip(entry.message.joint_names, point.positions)))


def _time(entry: Entry) -> float:
    stamp = entry.message.header.stamp
    return float(stamp.sec + 1e-9 * stamp.nanosec)
