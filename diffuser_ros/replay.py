"""Replaying a run log: every plan and every command computed again from the logged inputs, and compared bit for bit.

What happened is done again in the logged order to a policy made from the logged parameters: goals are set, plans made, decisions
taken and passed through the safety filter. Nothing else may matter, and where something does, a comparison differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffuser_core.budget import SamePace
from diffuser_ros.inference import Change, Request, Session
from diffuser_ros.run_reader import Event, RunLogError, RunReader, Stats
from diffuser_ros.run_setup import backend_here, checkpoint_digest

__all__ = ['Comparison', 'Prepare', 'Replay', 'main', 'replay_file']

Observation = Mapping[str, float]
SAME, DIFFERENT, UNREADABLE = 0, 1, 2


class Prepare(Protocol):
    """The safety filter as it stands between decisions and wire.

    called  gives the numbers as sent from (decision, observation, now); ValueError if they are refused
    change  the parameters are others from now on; ValueError if they cannot be used
    held    the robot was told to hold by these numbers at `now`
    forget  nothing has been commanded any more
    """

    def __call__(self, decision: Any, observation: Observation, now: float) -> ArrayLike: ...
    def change(self, parameters: Mapping[str, Any]) -> None: ...
    def held(self, command: NDArray[np.float64], now: float) -> None: ...
    def forget(self) -> None: ...


@dataclass
class Comparison:
    """How a replay went: what was computed again, how much of it differed, and the first difference as one sentence."""

    plans: int = 0
    commands: int = 0
    different_plans: int = 0
    different_commands: int = 0
    held: int = 0
    first: str = ''
    complete: bool = True

    @property
    def same(self) -> bool:
        """Whether nothing differed."""
        return not self.first

    def summary(self) -> str:
        """One line for people."""
        ended = '' if self.complete else '; the log was cut off, this is its complete part'
        found = 'the same to the last bit' if self.same else (
            f'different: {self.different_commands} commands and {self.different_plans} plans')
        return (f'{self.commands} commands and {self.plans} plans computed again, {self.held} ticks held: {found}{ended}')


class Replay:
    """Does to a policy what a log says, event by event.

    make_session  a policy, with who reviews its plans, from the node's parameters, `checkpoint` naming a folder that is there;
                  ValueError if it cannot
    make_goal     a goal from the fields of the request and the parameters
    make_prepare  the safety filter by the parameters; see `Prepare`
    checkpoints   folders to look for the logged checkpoints in, beside the logged ones
    backend       what a policy with these parameters runs on here
    anyway        replay also if the backend differs
    """

    def __init__(self, *, make_session: Callable[[Mapping[str, Any]], Session],
                 make_goal: Callable[[Mapping[str, Any], Mapping[str, Any]], Any],
                 make_prepare: Callable[[Mapping[str, Any]], Prepare], checkpoints: Sequence[Path] = (),
                 backend: Callable[[Mapping[str, Any]], str] = backend_here, anyway: bool = False) -> None:
        self._make_session, self._make_goal, self._make_prepare = make_session, make_goal, make_prepare
        self._checkpoints, self._backend, self._anyway = tuple(checkpoints), backend, anyway
        self._parameters: dict[str, Any] = {}
        self._command_names: list[str] = []
        self._motions: dict[int, Any] = {}
        self._ticks = 0
        self._session: Session
        self._prepare: Prepare
        self.comparison = Comparison()

    def run(self, events: Iterable[Event | Stats]) -> Comparison:
        """Play all events; RunLogError if this machine is not one to replay the log on."""
        for event in events:
            if isinstance(event, Event):
                getattr(self, f'_{event.kind}')(event)
        return self.comparison

    def _start(self, event: Event) -> None:
        data = event.data
        parameters = {**data['parameters'], 'checkpoint': str(self._folder(data['checkpoint'], data['digest']))}
        with _made('the policy of the log cannot be made'):
            here = self._backend(parameters)
        if here != data['backend'] and not self._anyway:
            raise RunLogError(f'the log was made with the backend {data["backend"]}, here it is {here}: the bits may differ')
        with _made('the policy of the log cannot be made'):
            self._session = self._make_session(parameters)
            if event.kind == 'start':
                self._prepare = self._make_prepare(parameters)
            else:  # what the robot was told last stays
                self._prepare.change(parameters)
        self._parameters, self._command_names = parameters, data['command_names']

    _load = _start

    def _folder(self, logged: str, digest: str) -> Path:
        """The folder with the checkpoint of this digest."""
        found = [folder for folder in (Path(logged), *self._checkpoints) if folder.is_dir()]
        for folder in found:
            if checkpoint_digest(folder) == digest:
                return folder
        if not found:
            raise RunLogError(f'the checkpoint {logged} of the log is not here: name its folder with --checkpoint')
        raise RunLogError(f'the log was made with another checkpoint than {", ".join(map(str, found))}: the digest differs')

    def _change(self, event: Event) -> None:
        self._parameters = {**self._parameters, **event.data['parameters']}
        with _made(f'the parameters of event {event.number} cannot be used'):
            self._prepare.change(self._parameters)

    def _goal(self, event: Event) -> None:
        try:
            self._session.change(Change('goal', self._make_goal(event.data['goal'], self._parameters), event.observation))
        except (ValueError, TypeError, KeyError) as error:
            self._differs(f'event {event.number}: the goal was accepted, here it is refused: {error}')
        if follows := event.data.get('follows'):
            self._session.change(Change('follow', self._motions.get(follows)))

    def _clear(self, event: Event) -> None:
        self._session.change(Change('clear'))
        self._prepare.forget()

    def _reset(self, event: Event) -> None:
        self._session.change(Change('reset', seed=event.data['seed']))
        self._prepare.forget()

    def _replan(self, event: Event) -> None:
        comparison = self.comparison
        comparison.plans += 1
        pace = event.data.get('pace')
        result = self._session.answer(Request(event.number, 0, event.observation, event.now, event.delay, event.data.get('began'),
                                              None if pace is None else SamePace(pace)))
        motion = self._motions[event.motion] = result.motion
        plan = None if motion is None else motion.plan
        what = f'plan {event.motion} (event {event.number}, at {event.now:.3f} s)'
        values = np.empty((0, 0)) if plan is None else plan.values
        names = event.data.get('channels') or ([] if plan is None else plan.channels.names)
        why = _failure(event.data['error'], result.why) or difference(event.command, values, names) or (
            '' if plan is None or plan.t0 == event.data['t0'] else f'begins at {event.data["t0"]!r} s, here at {plan.t0!r} s')
        if why:
            comparison.different_plans += 1
            self._differs(f'{what} {why}')

    def _tick(self, event: Event) -> None:
        self._ticks += 1
        adopted = self._motions.get(event.data.get('adopted', 0))
        if adopted is not None:
            self._motions[event.data['adopted']] = adopted.begun(event.now)
        if event.motion == 0:
            self.comparison.held += 1
            if len(event.command):
                self._prepare.held(event.command, event.now)
            return
        self.comparison.commands += 1
        what = f'tick {self._ticks} (event {event.number}, at {event.now:.3f} s)'
        if event.motion not in self._motions:
            raise RunLogError(f'{what} follows the plan {event.motion}, which later ones had replaced')
        for earlier in [n for n in self._motions if n < event.motion]:
            del self._motions[earlier]
        motion, error = self._motions[event.motion], ''
        command: ArrayLike = ()
        try:
            command = self._prepare(motion.decide(event.observation, event.now), event.observation, event.now)
        except Exception as raised:  # as in the node; the command is then empty, as logged where it was refused there
            error = f': {raised}'
        why = difference(event.command, command, self._command_names)
        if why:
            self.comparison.different_commands += 1
            self._differs(f'{what} {why}{error}')

    def _differs(self, sentence: str) -> None:
        self.comparison.first = self.comparison.first or sentence


@contextmanager
def _made(otherwise: str) -> Iterator[None]:
    """RunLogError, beginning with `otherwise`, for what parameters of another machine or version may lead to."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, ImportError) as error:
        raise RunLogError(f'{otherwise}: {error}') from error


def _failure(logged: str, here: str) -> str:
    if logged == here:
        return ''
    return f'{f"failed: {logged}" if logged else "was made"}, here it {f"fails: {here}" if here else "is made"}'


def difference(logged: ArrayLike, here: ArrayLike, names: Sequence[str]) -> str:
    """Where two arrays of numbers, row-major with columns called `names`, first differ in a bit, as the end of a sentence; empty
    if nowhere. Equal are only equal bits: 0.0 and -0.0 differ, a NaN equals itself."""
    ours, theirs = _bits(here), _bits(logged)
    if ours.shape != theirs.shape:
        return f'has {theirs.size} numbers, here {ours.size}'
    unequal = np.flatnonzero(ours != theirs)
    if len(unequal) == 0:
        return ''
    at = int(unequal[0])
    columns = len(names) or ours.size
    channel = names[at % columns] if names else f'number {at}'
    row = f'row {at // columns}, ' if ours.size > columns else ''
    return (f'differs in {len(unequal)} of {ours.size} numbers, first in {row}{channel}: '
            f'{float(theirs.view(np.float64)[at])!r} logged, {float(ours.view(np.float64)[at])!r} here')


def _bits(values: ArrayLike) -> NDArray[np.uint64]:
    return np.ascontiguousarray(values, dtype=np.float64).ravel().view(np.uint64)


def replay_file(path: Path, replay: Replay) -> Comparison:
    """Replay the log at `path`; RunLogError, one sentence, if it cannot be read or replayed here."""
    try:
        with open(path, 'rb') as stream:
            reader = RunReader(stream, str(path))
            comparison = replay.run(reader)
    except OSError as error:
        raise RunLogError(f'{path} cannot be read: {error.strerror}') from error
    comparison.complete = reader.complete
    return comparison


def main(args: Sequence[str] | None = None) -> int:
    """Replay a log with the node's own policies; the exit code is 0 if all is the same, 1 if not, 2 if it cannot be told."""
    from diffuser_ros.replay_parts import make_goal, make_prepare, make_session

    arguments = list(sys.argv[1:] if args is None else args)
    if '--ros-args' in arguments:
        arguments = arguments[:arguments.index('--ros-args')]
    parser = argparse.ArgumentParser(prog='replay', description=(main.__doc__ or '').partition(';')[0])
    parser.add_argument('log', type=Path, help='a run log (.mcap)')
    parser.add_argument('--checkpoint', type=Path, action='append', default=[], metavar='FOLDER',
                        help='where a checkpoint of the log is now, if it was moved')
    parser.add_argument('--anyway', action='store_true', help='compare although the backend, or what it runs on, differs')
    options = parser.parse_args(arguments)
    try:
        comparison = replay_file(options.log, Replay(
            make_session=make_session, make_goal=make_goal, make_prepare=make_prepare, checkpoints=options.checkpoint,
            anyway=options.anyway))
    except RunLogError as error:
        print(f'replay: {error}', file=sys.stderr)
        return UNREADABLE
    print(comparison.summary())
    if comparison.first:
        print(comparison.first)
    return SAME if comparison.same else DIFFERENT
