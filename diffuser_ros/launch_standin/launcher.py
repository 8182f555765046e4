"""The launcher: starts processes, shows what they write, answers events, and leaves no process behind."""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import yaml

from diffuser_core.workers import die_with_parent

from .entities import (
    DeclareLaunchArgument,
    EventHandler,
    ExecuteProcess,
    GroupAction,
    IncludeLaunchDescription,
    LaunchDescription,
    ProcessEvent,
    ShutdownEvent,
    load_launch_file,
    visit,
)
from .substitutions import LaunchContext, LaunchError


@dataclass(eq=False)
class Process:
    """A running child, leader of a process group of its own.

    Attributes:
        output: what it writes (both streams), read without blocking.
        restart: starts the same command again.
        timeouts: seconds from SIGINT to SIGTERM, and from there to SIGKILL.
        unfinished: output since the last line end.
        signals: what is still to be sent to end it, as (time on the monotonic clock, signal), soonest first.
    """

    action: ExecuteProcess
    name: str
    command: list[str]
    popen: subprocess.Popen[bytes]
    output: IO[bytes]
    restart: Callable[[], None]
    timeouts: tuple[float, float]
    unfinished: bytes = b''
    signals: list[tuple[float, signal.Signals]] = field(default_factory=list)


class Launcher:
    """Runs one launch description to its end. Single-threaded; entities call it through `context.launcher`.

    Attributes:
        handlers: registered event handlers.
        events: events not answered yet.
    """

    def __init__(self, configurations: Mapping[str, str]) -> None:
        """
        Args:
            configurations: launch arguments given by the user, by name.
        """
        self.handlers: list[EventHandler] = []
        self.events: deque[Any] = deque()
        self._context = LaunchContext(self, dict(configurations))
        self._processes: list[Process] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._ties = itertools.count()
        self._selector = selectors.DefaultSelector()
        self._files: Path | None = None
        self._shutting_down = False
        self._failed = False
        self._signal: signal.Signals | None = None

    def run(self, description: LaunchDescription) -> int:
        """Launch, and return when every process has ended.

        Returns:
            0; 1 if a process failed before a shutdown was ordered (one that is respawned does not count), or if the
            launch file turned out to be wrong on the way. As in ROS 2, an interrupt (Ctrl-C) is an order.
        """
        with self._signals():
            try:
                self._guarded(lambda: visit(self._context, description))
                while not self._shutting_down:
                    self._work_off()
                    self.events.append(ShutdownEvent(reason='every process has ended'))
                self._work_off()
            finally:
                self._kill_all()
                if self._files is not None:
                    shutil.rmtree(self._files, ignore_errors=True)
        return int(self._failed)

    # What entities call

    def log(self, source: str, message: str) -> None:
        print(f'[{source}] {message}', flush=True)

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function in so many seconds, unless a shutdown comes first."""
        if not self._shutting_down:
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._ties), function))

    def parameter_file(self, parameters: Mapping[str, Any]) -> str:
        """Path of a new ROS parameter file for any node, removed when the launch ends."""
        if self._files is None:
            self._files = Path(tempfile.mkdtemp(prefix='diffuser_ros_launch_'))
        path = self._files / f'{len(os.listdir(self._files))}.yaml'
        path.write_text(yaml.safe_dump({'/**': {'ros__parameters': dict(parameters)}}))
        return str(path)

    def start(self, action: ExecuteProcess, command: list[str], *, name: str, cwd: str | None,
              environment: Mapping[str, str], timeouts: tuple[float, float]) -> None:
        """Start a process, unless a shutdown has been ordered.

        Raises:
            LaunchError: the program cannot be started.
        """
        if self._shutting_down:
            return

        def restart() -> None:
            self.start(action, command, name=name, cwd=cwd, environment=environment, timeouts=timeouts)

        try:
            popen = subprocess.Popen(command, cwd=cwd, env={**environment, 'PYTHONUNBUFFERED': '1'},
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                     start_new_session=True, preexec_fn=die_with_parent)
        except OSError as error:
            raise LaunchError(f'{command[0]} cannot be started: {error.strerror}') from None
        output = cast(IO[bytes], popen.stdout)
        process = Process(action, f'{name}-{next(self._numbers)}', command, popen, output, restart, timeouts)
        self._processes.append(process)
        os.set_blocking(output.fileno(), False)
        self._selector.register(output, selectors.EVENT_READ, process)
        self.log(process.name, f'process started with pid [{popen.pid}]')
        self.events.append(ProcessEvent(action, process.name, command, popen.pid))

    # The loop

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Meanwhile the signals that end a program, and the end of a child, wake the loop and do nothing else."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)

        def note(number: int, _frame: Any) -> None:
            self._signal = signal.Signals(number)

        ends = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                if s == signal.SIGINT or signal.getsignal(s) != signal.SIG_IGN]
        earlier = {s: signal.signal(s, note) for s in ends}
        earlier[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        earlier_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ)
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier_fd)
            for number, handler in earlier.items():
                signal.signal(number, handler)
            self._selector.close()
            reader.close()
            writer.close()

    def _guarded(self, function: Callable[[], None]) -> None:
        """Call what runs the launch file's entities; its error is told, and shuts the launch down."""
        try:
            function()
        except Exception as error:
            self._failed = True
            # As a launch file's author says it: with LaunchError (ours) or RuntimeError (as ROS 2's own do).
            said = isinstance(error, (LaunchError, RuntimeError))
            self.log('launch', f'ERROR: {error}' if said else f'ERROR: {type(error).__name__}: {error}')
            self.events.append(ShutdownEvent(reason='the launch file failed'))

    def _work_off(self) -> None:
        """Go on until no process runs and nothing is waiting to happen."""
        while self._processes or self._timers or self.events:
            self._step()

    def _step(self) -> None:
        """Wait for the next thing to happen and answer it."""
        now = time.monotonic()
        due = [self._timers[0][0]] if self._timers else []
        due += [process.signals[0][0] for process in self._processes if process.signals]
        timeout = 0.0 if self.events else max(0.0, min(due) - now) if due else None
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    key.fileobj.recv(4096)  # type: ignore[union-attr]
            else:
                self._show_output(key.data)
        if self._signal is not None:
            number, self._signal = self._signal, None
            self.events.append(ShutdownEvent(reason=number.name, due_to_sigint=number == signal.SIGINT))
        now = time.monotonic()
        for process in list(self._processes):
            if os.waitid(os.P_PID, process.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self._ended(process)
            elif process.signals and process.signals[0][0] <= now:
                self._send(process, process.signals.pop(0)[1])
        while self._timers and self._timers[0][0] <= now:
            self._guarded(heapq.heappop(self._timers)[2])
        while self.events:
            self._answer(self.events.popleft())

    def _show_output(self, process: Process) -> bool:
        """Print the whole lines that a process has written, each with its name; False if there is nothing to read."""
        try:
            data = os.read(process.output.fileno(), 65536)
        except BlockingIOError:
            return False
        if not data and process.output in self._selector.get_map():
            self._selector.unregister(process.output)
        *lines, process.unfinished = (process.unfinished + data).split(b'\n')
        for line in lines:
            self.log(process.name, line.decode(errors='replace').rstrip('\r'))
        return bool(data)

    def _ended(self, process: Process) -> None:
        """Clear up after a process that has ended: what it left running, its last output, its event, its respawn."""
        # The leader is not reaped yet, so the group's number cannot have passed to others.
        _signal_group(process, signal.SIGKILL)
        code = process.popen.wait()
        self._processes.remove(process)
        while self._show_output(process):
            pass
        if process.output in self._selector.get_map():
            self._selector.unregister(process.output)
        process.output.close()
        if process.unfinished:
            self.log(process.name, process.unfinished.decode(errors='replace'))
        respawn = process.action.respawn and not self._shutting_down
        if code == 0:
            self.log(process.name, f'process has finished cleanly [pid {process.popen.pid}]')
        else:
            how = f'exit code {code}' if code > 0 else signal.Signals(-code).name
            self.log(process.name, f'process has {"ended" if self._shutting_down else "died"} '
                                   f'[pid {process.popen.pid}, {how}, cmd {" ".join(process.command)!r}]')
            self._failed |= not (respawn or self._shutting_down)
        self.events.append(ProcessEvent(process.action, process.name, process.command, process.popen.pid, code))
        if respawn:
            self.after(process.action.respawn_delay, process.restart)

    def _answer(self, event: Any) -> None:
        """Let the handlers see an event; a first shutdown also stops timers and tells every process to end."""
        if isinstance(event, ShutdownEvent):
            if self._shutting_down:
                return
            self._shutting_down = True
            self._timers.clear()
            self.log('launch', f'shutting down: {event.reason}')
            now = time.monotonic()
            for process in self._processes:
                term = now + process.timeouts[0]
                process.signals = [(now, signal.SIGINT), (term, signal.SIGTERM),
                                   (term + process.timeouts[1], signal.SIGKILL)]
        for handler in list(self.handlers):
            if handler.answer(event) is not None:
                self._guarded(functools.partial(handler.handle, self._context, event))

    def _send(self, process: Process, number: signal.Signals) -> None:
        if number != signal.SIGINT:
            self.log(process.name, f'still running, sending {number.name} [pid {process.popen.pid}]')
        _signal_group(process, number)

    def _kill_all(self) -> None:
        """Whatever went wrong before, leave no process; with a moment for those that can end properly."""
        for number in (signal.SIGINT, signal.SIGKILL):
            for process in self._processes:
                _signal_group(process, number)
            deadline = time.monotonic() + (5.0 if number == signal.SIGINT else 60.0)
            while any(os.waitid(os.P_PID, p.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
                      for p in self._processes) and time.monotonic() < deadline:
                time.sleep(0.02)
        for process in self._processes:
            process.popen.wait()
        self._processes.clear()


def _signal_group(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.popen.pid, number)


def launch(path: Path, arguments: Mapping[str, str]) -> int:
    """Run a launch file to its end.

    Args:
        path: the file.
        arguments: launch arguments by name.

    Returns:
        The exit code (see `Launcher.run`).

    Raises:
        LaunchError: the file cannot be loaded or does not declare one of the arguments.
    """
    description = load_launch_file(path)
    known = [argument.name for argument in declared_arguments(LaunchContext(None, dict(arguments)), description)]
    for name in arguments:
        if name not in known:
            raise LaunchError(f'launch argument {name!r} is not known to {path.name}; '
                              f'it has: {", ".join(known) or "no arguments"}')
    return Launcher(arguments).run(description)


def describe_arguments(path: Path) -> str:
    """Which arguments a launch file declares, with defaults and choices, one paragraph each."""
    context = LaunchContext(None, {})
    paragraphs = []
    for argument in declared_arguments(context, load_launch_file(path)):
        default = context.launch_configurations.get(argument.name, '<required>')
        lines = [f'{argument.name}:={default}']
        lines += [f'    {argument.description}'] if argument.description else []
        lines += [f'    one of: {", ".join(argument.choices)}'] if argument.choices is not None else []
        paragraphs.append('\n'.join(lines))
    return '\n'.join(paragraphs) or 'no arguments'


def declared_arguments(context: LaunchContext, entity: Any) -> list[DeclareLaunchArgument]:
    """Arguments that an entity declares, with those of groups and of included files that can be found beforehand."""
    found: list[DeclareLaunchArgument] = []
    if isinstance(entity, (list, tuple, LaunchDescription)):
        for one in entity.entities if isinstance(entity, LaunchDescription) else entity:
            found += declared_arguments(context, one)
    elif isinstance(entity, DeclareLaunchArgument):
        found.append(entity)
        with contextlib.suppress(LaunchError):
            entity.execute(context)
    elif isinstance(entity, GroupAction):
        found += declared_arguments(context, list(entity.actions))
    elif isinstance(entity, IncludeLaunchDescription):
        with contextlib.suppress(LaunchError):
            found += declared_arguments(context, entity.execute(context))
    return list({argument.name: argument for argument in reversed(found)}.values())[::-1]
