"""Planning beside the ticks: what is asked of it, what comes back, and the places where it can run.

Nothing here needs ROS: a planning process loads neither rclpy nor messages.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from diffuser_core.budget import Budget, Pace
from diffuser_core.envs.policy_settings import PolicySettings
from diffuser_core.latency import Injected, SlowChannel
from diffuser_core.motion import Motion, Policy
from diffuser_core.trajectory import Channels
from diffuser_ros.validator import Validated

__all__ = ['Beside', 'Change', 'Inference', 'Inline', 'Late', 'PlanningError', 'Ready', 'Request', 'Result', 'Session',
           'SessionSettings', 'UNKNOWN', 'planned']

Observation = Mapping[str, float]


class PlanningError(RuntimeError):
    """Planning that has ended and cannot go on; the message is one sentence."""


@dataclass(frozen=True)
class Request:
    """A plan that is asked for.

    number   counts requests
    epoch    counts changes of goal, so that a plan for an earlier one can be told
    now      time of the observation for the policy [s]
    delay    forecast of the time until the plan is followed [s]
    began    when the plan before, which had been waiting, was first followed [s], or None
    budget   time for denoising [s], who is asked instead, or None
    """

    number: int
    epoch: int
    observation: Observation
    now: float
    delay: float = 0.0
    began: float | None = None
    budget: float | Pace | None = None


@dataclass(frozen=True)
class Result:
    """What became of a request: a motion, or a sentence why there is none.

    refused      the sentence is the validator's: the plan before stays in force
    pace         what the budget answered after every denoising step, if there was one (`budget.SamePace`)
    planning_ms  how long it took; replans: plans made since the last reset
    lost         it was made, but never arrives: only simulations know of it
    """

    request: Request
    motion: Motion | None
    why: str = ''
    refused: bool = False
    pace: Sequence[bool] | None = None
    planning_ms: float = 0.0
    replans: int = 0
    lost: bool = False


@dataclass(frozen=True)
class Change:
    """A change of what is pursued: `kind` 'goal' with the goal and the observation, 'clear', 'reset' with the seed, or 'follow'
    with the motion that the robot follows although this policy has not made it. `epoch` counts changes."""

    kind: str
    goal: Any = None
    observation: Observation = field(default_factory=dict)
    seed: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class SessionSettings:
    """What `sessions.make_session` needs: the policy's settings, the validator ('package.module:function', empty for none) and
    how many plans are drawn before its refusal is final."""

    policy: PolicySettings
    validator: str = ''
    attempts: int = 3


def any_goal(goal: Any) -> None:
    """Every goal will do."""


@dataclass(frozen=True)
class Ready:
    """What is to be known of a session that can plan.

    check     raises GoalError for goals that its policy refuses, without asking the policy
    backend   what the network runs on, one line (`run_setup.backend_here`); empty for a policy that was given
    channels  of its plans; empty for a policy that was given
    """

    check: Callable[[Any], None] = any_goal
    backend: str = ''
    channels: Channels = Channels((), ())


UNKNOWN = Ready()
"""Of a policy that was given."""


class Session:
    """A policy and who judges its plans: makes changes and answers requests, in the order in which they come.

    A plan that is refused was never followed: the next one goes on from the last that was accepted.
    """

    def __init__(self, policy: Policy, validated: Validated | None = None) -> None:
        self.policy = policy
        self._validated = validated
        self._goal: Any = None
        self._accepted: Motion | None = None

    def change(self, change: Change) -> None:
        """Make a change; GoalError, and the old goal stays, if the policy does not take the new one."""
        if change.kind == 'goal':
            self.policy.set_goal(change.goal, change.observation)
            self._goal, self._accepted = change.goal, None
        elif change.kind == 'follow':
            self.policy.adopt(change.goal)
            self._accepted = change.goal
        elif change.kind == 'clear':
            self.policy.clear_goal()
            self._goal = self._accepted = None
        else:
            self.policy.reset(change.seed)
            self._goal = self._accepted = None

    def answer(self, request: Request) -> Result:
        """Plan; what goes wrong is told in the result."""
        began = time.perf_counter()
        budget = Budget(request.budget) if isinstance(request.budget, (int, float)) else request.budget
        try:
            motion, why = self._reviewed(request, budget)
        except Exception as error:  # told in the next tick, which then holds the robot
            motion, why = None, f'planning failed: {error}'
            refused = False
        else:
            refused = bool(why)
        return Result(request, motion, why, refused, tuple(budget.answers) if isinstance(budget, Budget) else None,
                      1e3 * (time.perf_counter() - began), self.policy.replans)

    def _reviewed(self, request: Request, budget: Pace | None) -> tuple[Motion | None, str]:
        if request.began is not None:
            self.policy.begin(request.began)
            if self._accepted is not None:
                self._accepted = self._accepted.begun(request.began)

        def draw() -> Motion:
            return self.policy.replan(request.observation, request.now, request.delay, budget)

        if self._validated is None:
            return draw(), ''
        accepted, first = self._accepted, True

        def draw_again() -> Motion:
            nonlocal first
            if not first:
                self.policy.adopt(accepted)
            first = False
            return draw()

        choice = self._validated.choose(draw_again, request.observation, self._goal, lambda motion: motion.shown)
        if choice.accepted:
            self._accepted = choice.drawn
            return choice.drawn, ''
        self.policy.adopt(accepted)
        return None, choice.text


class Inference(Protocol):
    """Where plans are made.

    ready       what is to be known of who plans
    generation  counts policies: a new number says that a fresh one has taken the place of one that died
    busy      whether a request is being answered
    trouble   why no plans come at the moment, one sentence, or empty
    change    make a change before any later request; GoalError where the policy can be asked at once
    offer     ask for a plan; only while it is not busy
    results   what has come by `now` (time for the policy)
    close     end what runs beside
    """

    @property
    def ready(self) -> Ready: ...
    @property
    def generation(self) -> int: ...
    @property
    def busy(self) -> bool: ...
    @property
    def trouble(self) -> str: ...
    def change(self, change: Change) -> None: ...
    def offer(self, request: Request) -> None: ...
    def results(self, now: float) -> list[Result]: ...
    def close(self) -> None: ...


class Inline:
    """In the tick: for simulations that wait."""

    generation = 0
    busy = False
    trouble = ''

    def __init__(self, session: Session, ready: Ready = UNKNOWN) -> None:
        self.ready = ready
        self._session = session
        self._done: list[Result] = []

    def change(self, change: Change) -> None:
        """Make a change."""
        self._session.change(change)
        self._done.clear()

    def offer(self, request: Request) -> None:
        """Plan."""
        self._done.append(self._session.answer(request))

    def results(self, now: float) -> list[Result]:
        """The result of the request just made."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Nothing to end."""


class Late:
    """In the tick, but handed on later, in the time of the policy: a slower computer, simulated to the digit."""

    generation = 0
    trouble = ''

    def __init__(self, session: Session, injected: Injected, ready: Ready = UNKNOWN) -> None:
        self.ready = ready
        self._session = session
        self._channel: SlowChannel[Result] = SlowChannel(injected)
        self._lost: list[Result] = []

    @property
    def busy(self) -> bool:
        """Whether a result is on its way."""
        return self._channel.busy

    def change(self, change: Change) -> None:
        """Make a change; what is on its way is lost."""
        self._session.change(change)
        self._lost += [replace(result, lost=True) for result in self._channel.restart()]

    def offer(self, request: Request) -> None:
        """Plan."""
        self._channel.send(self._session.answer(request), request.now)

    def results(self, now: float) -> list[Result]:
        """What has arrived by `now` [s]."""
        lost, self._lost = self._lost, []
        return lost + [replace(result, lost=lost_) for result, lost_ in self._channel.received(now)]

    def close(self) -> None:
        """Nothing to end."""


class Beside:
    """In a thread: for GPUs, where the thread mostly waits.

    threads  CPU threads of the network
    """

    generation = 0
    trouble = ''

    def __init__(self, session: Session, ready: Ready = UNKNOWN, *, threads: int) -> None:
        self.ready = ready
        self._session, self._threads = session, threads
        self._inbox: queue.SimpleQueue[Request | Change | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self.busy = False
        self._thread = threading.Thread(target=self._run, name='replan', daemon=True)
        self._thread.start()

    def change(self, change: Change) -> None:
        """Make a change when the present planning run has ended."""
        if change.kind == 'goal':
            self.ready.check(change.goal)
        self._inbox.put(change)

    def offer(self, request: Request) -> None:
        """Begin to plan."""
        self.busy = True
        self._inbox.put(request)

    def results(self, now: float) -> list[Result]:
        """What has come."""
        done = []
        while not self._outbox.empty():
            done.append(self._outbox.get())
            self.busy = False
        return done

    def close(self) -> None:
        """End the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        import torch

        torch.set_num_threads(self._threads)  # counts for the thread that calls it
        while (item := self._inbox.get()) is not None:
            result = planned(self._session, item)
            if result is not None:
                self._outbox.put(result)


def planned(session: Session, item: Request | Change) -> Result | None:
    """Take in one thing beside the ticks; the result, if it is a request.

    A change that fails shows in the next request: the goal was checked before.
    """
    if isinstance(item, Request):
        return session.answer(item)
    try:
        session.change(item)
    except (ValueError, KeyError) as error:
        session.policy.clear_goal()
        return Result(Request(0, item.epoch, {}, 0.0), None, f'the goal cannot be pursued: {error}')
    return None
