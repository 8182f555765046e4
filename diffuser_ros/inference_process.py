"""Planning in a process of its own, so that no tick waits for Python's lock or for the network.

The two talk over a socket pair; what they send is our own frozen dataclasses. Nothing is left behind however either of them ends:
the socket has no name, and a planning process whose node has gone reads its end and goes too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from diffuser_core.envs.goals import GoalError
from diffuser_ros.inference import Change, PlanningError, Ready, Request, Result, Session, planned

__all__ = ['PlanningProcess', 'main']

START_TIMEOUT = 120.0
"""A planning process that is not ready after so many seconds has failed."""


class PlanningProcess:
    """See `Inference`. PlanningError, one sentence, if it cannot start.

    settings  what `make_session` makes the policy of (`policies.PolicySettings`, validator)
    restart   whether a process that dies is started again; the goal in force is then given to it
    wait      whether to wait until it is ready
    """

    def __init__(self, settings: Any, *, restart: bool = True, wait: bool = True) -> None:
        self.settings = settings
        self._restart = restart
        self._goal: Change | None = None
        self._busy = False
        self.ready = Ready()
        self.generation = 0
        self._start()
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen([sys.executable, '-m', 'diffuser_ros.inference_process', str(theirs.fileno())],
                                             pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        self._connection = Connection(ours.detach())
        self._can_plan, self._failure = False, ''
        self._busy = False
        self._started = time.monotonic()
        self._send(self.settings)
        if self._goal is not None:
            self._send(self._goal)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def can_plan(self) -> bool:
        """Whether plans can be asked for; PlanningError if it failed to start."""
        self._read()
        if self._failure:
            raise PlanningError(self._failure)
        return self._can_plan

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Until plans can be asked for."""
        end = self._started + timeout
        while not self.can_plan():
            if time.monotonic() > end:
                raise PlanningError(f'the planning process was not ready after {timeout:g} s')
            self._connection.poll(0.1)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, or the process is starting."""
        return self._busy or not self._can_plan

    @property
    def trouble(self) -> str:
        """Why no plans come."""
        if self._can_plan:
            return ''
        return self._failure or 'the planning process has ended and is being started again'

    def change(self, change: Change) -> None:
        """Make a change before any later request; GoalError for a goal that the policy would refuse."""
        if change.kind == 'goal':
            if not self._can_plan:
                raise GoalError(self.trouble)
            self.ready.check(change.goal)
        self._goal = change if change.kind == 'goal' else None
        self._send(change)

    def offer(self, request: Request) -> None:
        """Begin to plan."""
        self._busy = True
        self._send(request)

    def results(self, now: float) -> list[Result]:
        """What has come; a process that has died is noticed and started again."""
        return self._read()

    def close(self) -> None:
        """End the process: it goes when it reads that its node has gone, or is made to."""
        self._restart = False
        self._connection.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, item: Any) -> None:
        try:
            self._connection.send(item)
        except OSError:  # it has died: the next `_read` sees it
            pass

    def _read(self) -> list[Result]:
        results = []
        try:
            while self._connection.poll():
                item = self._connection.recv()
                if isinstance(item, Result):
                    self._busy = False
                    results.append(item)
                elif isinstance(item, str):
                    self._failure = item
                else:
                    self._can_plan, self.ready = True, item
        except (EOFError, OSError):
            self._died()
        return results

    def _died(self) -> None:
        if self._failure:
            return
        self.generation += 1
        was_ready, self._can_plan = self._can_plan, False
        self._process.kill()
        code = self._process.wait()
        self._connection.close()
        if not self._restart or not was_ready:
            self._failure = f'the planning process has ended with the code {code}'
            self._restart = False
            return
        self._start()


def main(args: list[str] | None = None) -> int:
    """The process: settings in, then 'ready', then results for requests, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the keyboard goes to the node, which ends this
    connection = Connection(int((sys.argv[1:] if args is None else args)[0]))
    try:
        session, ready = _session(connection.recv())
        connection.send(ready)
        while True:
            result = planned(session, connection.recv())
            if result is not None:
                connection.send(result)
    except (EOFError, OSError):
        return 0
    except PlanningError as error:
        connection.send(str(error))
        return 1


def _session(settings: Any) -> tuple[Session, Any]:
    from diffuser_core.envs.policies import PolicyError
    from diffuser_ros.sessions import make_session  # loads torch
    from diffuser_ros.validator import ValidatorError

    try:
        return make_session(settings)
    except (PolicyError, ValidatorError) as error:
        raise PlanningError(str(error)) from error


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.exit(main())
