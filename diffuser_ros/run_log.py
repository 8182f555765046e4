"""Recording a run of the planner: state, plan, command and reason of every tick, enough to compute every command again.

A log is an MCAP file with two topics, `run_events` (diffuser_msgs/RunEvent) and `stats` (diffuser_msgs/PlannerStats), which the
tools of ROS 2 and Foxglove read as well. A thread of its own writes it; a tick pays for a copy of its numbers. Chunks are closed
and handed to the operating system twice a second, so that a killed process loses no more than that.
"""

from __future__ import annotations

import array
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import PlannerStats, RunEvent
from mcap.well_known import MessageEncoding, SchemaEncoding
from mcap.writer import CompressionType, Writer
from numpy.typing import ArrayLike
from rclpy.serialization import serialize_message

from diffuser_core.trajectory import Plan
from diffuser_ros.message_definition import message_definition
from diffuser_ros.run_reader import EVENT_TYPE, EVENTS_TOPIC, STATS_TOPIC, STATS_TYPE, RunLogError
from diffuser_ros.run_setup import Setup

__all__ = ['RunLog', 'RunLogError']

FLUSH = 0.5
"""Seconds after which what was recorded is on its way to the disk."""
INTERVAL = 0.05
"""Seconds between two looks at what has come in: waking for each entry would have both threads in each other's way, and a long
batch would hold up the tick (a Python thread that computes gives way after up to 5 ms)."""
WAITING = 4096
"""Entries that may wait to be written: more than half a minute at 24 Hz."""
CHUNK = 1 << 20
PATIENCE = 10.0
"""Seconds that `close` waits for a disk that does not answer."""


class RunLog:
    """Records to `path`, a new file; RunLogError if that exists or cannot be made.

    Nothing here blocks on the disk but `close`. If the file cannot be written any further, or the disk does not keep up,
    recording ends: `on_end` gets one sentence, once, possibly from another thread; the file so far can be read, and all later
    calls do nothing. Call it in the order in which the policy sees what happens. Methods may be called from several threads.

    path   where to; or a binary stream to write to, which is closed at the end
    """

    def __init__(self, path: Path | BinaryIO, *, on_end: Callable[[str], None]) -> None:
        self.name = str(path) if isinstance(path, os.PathLike) else 'the log'
        self._on_end = on_end
        self._schemas = {kind: message_definition(kind).encode() for kind in (EVENT_TYPE, STATS_TYPE)}
        self._stream = _Stream(_new_file(path) if isinstance(path, os.PathLike) else path)
        self._changed = threading.Condition()
        self._waiting: list[tuple[str, int, Any]] = []
        self._events = self._motions = 0
        self._closing = self._ended = False
        self._thread = threading.Thread(target=self._run, name='run log', daemon=True)
        self._thread.start()

    # What happens

    def start(self, setup: Setup, *, stamp: Time | None = None) -> None:
        """The node begins; OSError if the checkpoint cannot be read, of which a digest is logged."""
        self._event('start', setup.described(), stamp)

    def load(self, setup: Setup, *, stamp: Time | None = None) -> None:
        """Another policy takes over, freshly made and without a goal; as `start`."""
        self._event('load', setup.described(), stamp)

    def change(self, parameters: Mapping[str, Any], *, stamp: Time | None = None) -> None:
        """Parameters that may change while it runs did: their new values."""
        self._event('change', {'parameters': dict(parameters)}, stamp)

    def goal(self, goal: Mapping[str, Any], observation: Mapping[str, float], *, follows: int = 0,
             stamp: Time | None = None) -> None:
        """A goal was accepted: the fields of the request, and the state that it was set in. `follows`: the number of the motion
        that the robot follows meanwhile, if a policy that took over is told."""
        self._event('goal', {'goal': dict(goal), 'follows': int(follows)}, stamp, observation=observation)

    def clear(self, *, stamp: Time | None = None) -> None:
        """The goal was cleared."""
        self._event('clear', {}, stamp)

    def reset(self, seed: int, *, stamp: Time | None = None) -> None:
        """The policy was reset with `seed`."""
        self._event('reset', {'seed': int(seed)}, stamp)

    def replan(self, observation: Mapping[str, float], now: float, plan: Plan | None, *, delay: float = 0.0, error: str = '',
               began: float | None = None, pace: Sequence[bool] | None = None, refused: bool = False,
               stamp: Time | None = None) -> int:
        """The policy planned, with this result, or failed with the `error`. The number of the motion, for `tick`.

        began, pace, refused  as in `inference.Request` and `Result`
        """
        data: dict[str, Any] = {'error': error, 'began': None if began is None else float(began),
                                'pace': None if pace is None else [bool(answer) for answer in pace], 'refused': bool(refused)}
        if plan is not None:
            data |= {'channels': list(plan.channels.names), 't0': float(plan.t0), 'step_dt': float(plan.step_dt)}
        return self._event('replan', data, stamp, observation=observation, now=now, delay=delay, motion=None,
                           command=() if plan is None else plan.values)

    def tick(self, observation: Mapping[str, float], now: float, motion: int, command: ArrayLike, reason: int, text: str = '', *,
             adopted: int = 0, stamp: Time | None = None) -> None:
        """A command went out.

        motion   number of the motion that it follows; 0: none, the robot is held
        command  the numbers as sent, any shape; empty if none were, or if the safety filter refused the motion's
        reason   code of PlannerStats, with its sentence
        adopted  number of the motion that arrived in this tick; 0: none
        """
        self._event('tick', {'reason': int(reason), 'reason_text': text, 'adopted': int(adopted)}, stamp,
                    observation=observation, now=now, motion=motion, command=command)

    def stats(self, message: PlannerStats) -> None:
        """The statistics of a tick; the message must not be changed afterwards."""
        with self._changed:
            kept_up = self._add(STATS_TOPIC, message)
        self._check(kept_up)

    def close(self) -> None:
        """Write what is waiting and end; the log is complete. Waits for the disk, but not for ever."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._end('the disk does not answer')

    def _event(self, kind: str, data: Mapping[str, Any], stamp: Time | None, *, observation: Mapping[str, float] | None = None,
               now: float = 0.0, delay: float = 0.0, motion: int | None = 0, command: ArrayLike = ()) -> int:
        observation = observation or {}
        event = RunEvent(
            stamp=_now() if stamp is None else stamp, kind=kind, text=json.dumps(data), now=float(now), delay=float(delay),
            names=list(observation), values=_doubles(list(observation.values())), command=_doubles(command))
        with self._changed:
            self._motions += kind == 'replan'
            event.motion = self._motions if motion is None else int(motion)
            event.number = self._events
            self._events += 1
            kept_up = self._add(EVENTS_TOPIC, event)
        self._check(kept_up)
        return event.motion

    def _add(self, topic: str, message: Any) -> bool:
        """Queue a message, unless recording is over; False if there is no more room."""
        if self._ended or self._closing:
            return True
        if len(self._waiting) >= WAITING:
            return False
        self._waiting.append((topic, time.time_ns(), message))
        return True

    def _check(self, kept_up: bool) -> None:
        if not kept_up:
            self._end(f'the disk does not keep up, {WAITING} entries are waiting')

    def _end(self, why: str) -> None:
        with self._changed:
            if self._ended:
                return
            self._ended = True
            self._changed.notify()
        self._on_end(f'recording to {self.name} has ended: {why}')

    # The thread that writes

    def _run(self) -> None:
        try:
            self._write()
        except OSError as error:
            self._end(error.strerror or str(error))
        except Exception as error:  # a message that cannot be encoded must not take the node along either
            self._end(f'{type(error).__name__}: {error}')
        finally:
            self._stream.close()

    def _write(self) -> None:
        writer = Writer(cast(BinaryIO, self._stream), chunk_size=CHUNK, compression=CompressionType.ZSTD, enable_data_crcs=True)
        writer.start(profile='ros2')
        channels = {}
        for topic, kind in ((EVENTS_TOPIC, EVENT_TYPE), (STATS_TOPIC, STATS_TYPE)):
            schema = writer.register_schema(kind, SchemaEncoding.ROS2, self._schemas[kind])
            channels[topic] = writer.register_channel(topic, MessageEncoding.CDR, schema)
        flushed, dirty = time.monotonic(), False
        while (entries := self._take()) is not None:
            for topic, logged, message in entries:
                writer.add_message(channels[topic], logged, serialize_message(message), logged)
                dirty = True
            if dirty and time.monotonic() - flushed >= FLUSH:
                writer.flush()
                flushed, dirty = time.monotonic(), False
        writer.finish()

    def _take(self) -> list[tuple[str, int, Any]] | None:
        """What has come in the meantime; None if nothing more will."""
        with self._changed:
            if not (self._closing or self._ended):
                self._changed.wait(INTERVAL)
            entries, self._waiting = self._waiting, []
            return entries if entries or not (self._closing or self._ended) else None


class _Stream:
    """What mcap's writer needs of a file: every write is done at once and as a whole, or raises OSError."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._at = raw, 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while len(view):
            view = view[self._raw.write(view):]
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        self._raw.flush()

    def close(self) -> None:
        self._raw.close()


def _new_file(path: os.PathLike) -> BinaryIO:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return open(path, 'xb', buffering=0)
    except OSError as error:
        if isinstance(error, FileExistsError) and os.path.lexists(path):
            raise RunLogError(f'{path} exists; a run is recorded to a new file') from None
        raise RunLogError(f'{path} cannot be written: {error.strerror}') from error


def _doubles(values: ArrayLike) -> array.array:
    """A copy of numbers of any shape, bit for bit, as a message takes them."""
    return array.array('d', np.ascontiguousarray(values, dtype=np.float64).tobytes())


def _now() -> Time:
    sec, nanosec = divmod(time.time_ns(), 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)
