"""How a policy decides: within the tick, or with its planning in a thread beside the ticks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

__all__ = ['Beside', 'Inference', 'Inline', 'TwoSpeedPolicy']

Observation = Mapping[str, float]


class Inference(Protocol):
    """Decides at every tick; `planning_ms` is the duration of the newest planning run.

    idle    a context in which no planning runs, to change the policy in
    close   end what runs beside
    """

    planning_ms: float

    def decide(self, observation: Observation, now: float) -> Any: ...
    def idle(self) -> contextlib.AbstractContextManager[None]: ...
    def close(self) -> None: ...


class TwoSpeedPolicy(Protocol):
    """A policy whose slow part may run in a thread beside its fast part."""

    def replan(self, observation: Observation, now: float) -> Any: ...
    def command(self, observation: Observation, now: float) -> Any: ...


class Inline:
    """The policy's `act`, in the tick."""

    def __init__(self, policy: Any) -> None:
        self.planning_ms = 0.0
        self._policy = policy

    def decide(self, observation: Observation, now: float) -> Any:
        """The policy's decision."""
        began = time.monotonic()
        decision = self._policy.act(observation, now)
        self.planning_ms = 1e3 * (time.monotonic() - began)
        return decision

    def idle(self) -> contextlib.AbstractContextManager[None]:
        """Nothing runs between the ticks."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Nothing to end."""


class Beside:
    """The policy's `command` in the tick, its `replan` in a thread, always from the newest observation.

    interval  least time from the beginning of one planning run to that of the next [s]
    threads   CPU threads of the network

    The last planning run's exception is raised by `decide` until a later run succeeds.
    """

    def __init__(self, policy: Any, *, interval: float, threads: int) -> None:
        self.planning_ms = 0.0
        self._policy: TwoSpeedPolicy = policy
        self._interval = interval
        self._threads = threads
        self._planning = threading.Lock()
        self._changed = threading.Condition()
        self._offered: tuple[Observation, float] | None = None
        self._not_before = 0.0
        self._error: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name='replan', daemon=True)
        self._thread.start()

    def decide(self, observation: Observation, now: float) -> Any:
        """What follows from the newest plan."""
        with self._changed:
            self._offered = (observation, now)
            error = self._error
            self._changed.notify()
        if error is not None:
            raise error
        return self._policy.command(observation, now)

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Waits for a planning run to end; afterwards planning starts anew, at once, from the next observation."""
        with self._planning:
            with self._changed:
                self._offered = self._error = None
            yield
            self._not_before = 0.0

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        import torch

        torch.set_num_threads(self._threads)  # counts for the thread that calls it
        while self._wait():
            with self._planning:
                with self._changed:
                    offered, self._offered = self._offered, None
                if offered is not None:
                    self._replan(*offered)

    def _wait(self) -> bool:
        """Until there is something to plan from, and it is time; False when closed."""
        with self._changed:
            while not self._closed:
                left = self._not_before - time.monotonic()
                if self._offered is not None and left <= 0.0:
                    return True
                self._changed.wait(max(left, 0.0) if self._offered is not None else None)
        return False

    def _replan(self, observation: Observation, now: float) -> None:
        began = time.monotonic()
        error: Exception | None = None
        try:
            self._policy.replan(observation, now)
        except Exception as raised:  # told in the next tick, which then holds the robot
            error = raised
        self.planning_ms = 1e3 * (time.monotonic() - began)
        self._not_before = began + self._interval
        with self._changed:
            self._error = error
