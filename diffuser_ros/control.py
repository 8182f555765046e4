"""What the planner does at a tick: look at the newest state, ask for a plan, follow the newest one, or hold and say why.

Every reason there is stands in `_obstacle`, `_followed` or `_decided`. The tick only stores, decides and sends; plans are made
where `Inference` says, and what comes late finds the robot following the plan before, with which its beginning agrees.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import PlannerStats
from std_msgs.msg import Header

from diffuser_core.latency import DelayForecast
from diffuser_core.motion import Motion
from diffuser_ros import conversions
from diffuser_ros.conversions import StateError
from diffuser_ros.diagnostics import Statistics
from diffuser_ros.inference import Change, Inference, Request, Result
from diffuser_ros.recorder import Recorder
from diffuser_ros.robots import Robot
from diffuser_ros.robots.robot import Moment
from diffuser_ros.run_setup import Setup
from diffuser_ros.safety import UnsafeCommand
from diffuser_ros.state_monitor import StateMonitor

__all__ = ['Control', 'Outcome']

MARGIN = 0.8
"""Share of the time until the next plan is due that denoising may take; the rest is for getting there and back."""


@dataclass(frozen=True)
class Outcome:
    """What a tick came to.

    reason, text  reason code of PlannerStats, and that as one sentence
    state         what it was about, or None; observation: its channels, if they are usable
    decision      what was sent, or None where the robot is held
    motion        the motion that is followed, and whether it is `new`
    now           time for the policy [s]; latency: from the state in to the command out [ms]
    """

    reason: int
    text: str
    state: Moment | None = None
    observation: dict[str, float] | None = None
    decision: Any = None
    motion: Motion | None = None
    new: bool = False
    now: float = 0.0
    latency: float = 0.0


class Control:
    """The ticks of one robot.

    inference  where plans are made; may be exchanged between two ticks
    period     seconds between two ticks
    get        value of a parameter that may change while the node runs
    lock_step  the robot waits for every command, and time is that of its states
    """

    def __init__(self, robot: Robot, inference: Inference, *, period: float, lock_step: bool, get: Callable[[str], Any]) -> None:
        self.inference = inference
        self._robot, self._period, self._lock_step, self._get = robot, period, lock_step, get
        self._states = robot.states
        self.recorder: Recorder | None = None
        self._generation = inference.generation
        self.hold_requested = False
        self.demanded = False
        self.goal: Any = None
        self.goal_id = ''
        self._goal_given: Change | None = None
        self._goals = 0
        self._epoch = 0
        self._requests = 0
        self.restart()

    def restart(self) -> None:
        """Start the counts again and forget what was commanded and planned."""
        self.statistics = Statistics()
        self.forecast = DelayForecast()
        self._ticked = time.monotonic()
        self._monitor = StateMonitor(self._robot.max_speeds(), jump_tolerance=self._robot.state_tolerance,
                                     clock_tolerance=math.inf if self._lock_step else self._get('clock_tolerance'))
        self._acted_on: Moment | None = None
        self._resume_at: float | None = None
        self._time_shift = 0.0
        self._planned_at = 0.0
        self._forget_plan()
        reason, text = self._obstacle(self._states.newest, time.monotonic())
        self.stats = PlannerStats(reason=reason, reason_text=text, guide_value=math.nan, spread=math.nan)

    def _forget_plan(self) -> None:
        self._motion: Motion | None = None
        self._result: Result | None = None
        self._began: float | None = None
        self._failed: Result | None = None
        self._adopted = 0
        self._since_offer = 0
        self._made_at = self._asked_at = 0.0
        self._followed_request = 0

    # Goals

    def set_goal(self, goal: Any, observation: dict[str, float]) -> str:
        """Pursue `goal` from now on; its name. GoalError, and the old goal stays, if it cannot be pursued."""
        change = Change('goal', goal, observation, epoch=self._epoch + 1)
        self.inference.change(change)
        self._goal_given = change
        self._epoch += 1
        self._forget_plan()
        self._goals += 1
        self.goal, self.goal_id = goal, f'goal-{self._goals}'
        return self.goal_id

    def clear_goal(self) -> None:
        """Pursue nothing, and hold nothing any more."""
        self.inference.change(Change('clear'))
        if self.recorder is not None:
            self.recorder.clear()
        self._drop()

    def reset(self, seed: int) -> None:
        """Back to the start."""
        self.inference.change(Change('reset', seed=seed))
        if self.recorder is not None:
            self.recorder.reset(seed)
        self._drop()
        self.restart()

    def _drop(self) -> None:
        self._epoch += 1
        self._forget_plan()
        self.goal, self.goal_id, self._goal_given = None, '', None
        self._robot.commander.last = self._resume_at = None

    def exchange(self, inference: Inference, setup: Setup | None = None) -> Inference:
        """Plan by `inference` from the next tick on, with the goal in force, from the motion that is followed; the one before.
        GoalError, and nothing changes, if that goal is not for it."""
        if self._goal_given is not None:
            inference.change(self._goal_given)
            if self._motion is not None:
                inference.change(Change('follow', self._motion))
        before, self.inference = self.inference, inference
        self._generation = inference.generation
        if self.recorder is not None:
            follows = self._motion is not None and self._result is not None
            self.recorder.began_anew(setup, self._followed_request if follows else 0)
        self._epoch += 1
        self._failed, self._began, self._since_offer = None, None, 0
        return before

    # Ticks

    def hold_now(self) -> None:
        """Stop the robot, if it was told anything."""
        if self._states.newest is not None:
            self._hold(self._states.newest)

    def overdue(self) -> bool:
        """Whether the last tick is so long ago that one has to take the place of a state that does not come."""
        return time.monotonic() - self._ticked > 1.5 * self._period

    def tick(self) -> Outcome | None:
        """Decide and send; None if there is nothing newer to decide from."""
        began = time.monotonic()
        late = not self._lock_step and began - self._ticked > 2 * self._period
        self._ticked = began
        state = self._states.newest
        reason, text = self._obstacle(state, began)
        outcome = Outcome(reason, text, state)
        if state is not None and reason == PlannerStats.OK:
            if state is self._acted_on:
                return None
            outcome = self._acted(state)
        held = state is not None and self.goal_id and outcome.decision is None and self._hold(state, outcome)
        self._count(outcome, began, late)
        if self.recorder is not None and self.goal_id and state is not None:
            self._record(self.recorder, outcome, state, bool(held))
        self._adopted = 0
        return outcome

    def _record(self, recorder: Recorder, outcome: Outcome, state: Moment, held: bool) -> None:
        """Write the tick into the run log; a command that the filter refused, and the hold in its place, are two entries."""
        observation, nothing = outcome.observation or {}, np.empty(0)
        follows = self._followed_request if self._motion is not None else 0
        decided = outcome.decision is not None
        if decided or outcome.reason == PlannerStats.UNSAFE_COMMAND:
            recorder.ticked(observation, outcome.now, follows, self._robot.numbers() if decided else nothing, self.stats,
                            adopted=self._adopted, stamp=state.stamp)
        if not decided:
            now = outcome.now if self._resume_at is None else self._resume_at
            recorder.ticked(observation, now, 0, self._robot.numbers() if held else nothing, self.stats, adopted=self._adopted,
                            stamp=state.stamp)

    def _obstacle(self, state: Moment | None, now: float) -> tuple[int, str]:
        """The reason not even to try, and that as one sentence; OK if there is none."""
        if state is None:
            return PlannerStats.NO_STATE, self._states.lacking()
        if not self.goal_id:
            return PlannerStats.NO_GOAL, 'no goal has been set'
        if self.hold_requested:
            return PlannerStats.HOLD_REQUESTED, 'holding because ~/hold asked for it'
        age, timeout = now - state.arrival, self._get('state_timeout')
        if not self._lock_step and age > timeout:
            return (PlannerStats.STALE_STATE,
                    f'the newest state is {1e3 * age:.0f} ms old, allowed are {1e3 * timeout:.0f} ms')
        return PlannerStats.OK, ''

    def _acted(self, state: Moment) -> Outcome:
        """Send what follows from the newest plan; without a decision, the reason says why there is none."""
        try:
            observation = self._robot.observation(state)
        except StateError as error:
            return Outcome(PlannerStats.BAD_STATE, str(error), state)
        fault = self._monitor.check(observation, 1e-9 * conversions.nanoseconds(state.stamp), state.arrival)
        if fault[0] != PlannerStats.OK:
            return Outcome(*fault, state, observation)
        now = self._policy_time(state)
        new = self._take_in(now)
        late = self._ask(observation, now)
        new = self._take_in(now) or new
        reason, text, motion = self._followed(observation, now, late)
        base = Outcome(reason, text, state, observation, None, motion, new, now)
        if motion is None:
            return base
        return self._decided(base, observation)

    def _decided(self, base: Outcome, observation: dict[str, float]) -> Outcome:
        state, motion, now = base.state, base.motion, base.now
        assert state is not None and motion is not None
        try:
            decision = motion.decide(observation, now)
            safe = self._robot.send(decision, observation, now, state.stamp)
        except UnsafeCommand as error:
            return Outcome(PlannerStats.UNSAFE_COMMAND, f'holding: {error}', state, observation, None, None, base.new, now)
        except Exception as error:  # whatever goes wrong here, the robot has to be held
            return Outcome(PlannerStats.PLAN_FAILED, f'planning failed: {error}', state, observation, None, None, base.new, now)
        self.statistics.clamped += safe.changed
        self.statistics.clamped_text = safe.text or self.statistics.clamped_text
        self._acted_on, self._planned_at, self._resume_at = state, now, None
        reason, text = base.reason, base.text
        if decision.reached:
            reason, text = PlannerStats.GOAL_REACHED, 'holding: the goal is reached'
        elif reason == PlannerStats.OK:
            reason, text = self._robot.progress(decision)
        latency = 1e3 * (self._robot.commander.last.sent - state.arrival)
        return Outcome(reason, text, state, observation, decision, motion, base.new, now, latency)

    def _take_in(self, now: float) -> bool:
        """Follow the newest plan that has come; whether there is one."""
        new = False
        came = self.inference.results(now)
        if self.inference.generation != self._generation:
            self._generation = self.inference.generation
            if self.recorder is not None:
                self.recorder.began_anew()
        for result in came:
            if self.recorder is not None:
                self.recorder.came(result)
            if result.request.epoch != self._epoch or result.lost:
                continue
            if self._resume_at is None:  # otherwise the policy's time stood still
                self.forecast.add(max(0.0, now - result.request.now))
            self._result = result
            if result.motion is None:
                self._failed = result
                self.statistics.refused += result.refused
                continue
            self._failed = None
            self._motion, self._made_at = result.motion, self._asked_at
            self._followed_request = self._adopted = result.request.number
            new = True
        if new and self._motion is not None and self._motion.waits and self._motion.plan is not None:
            self._motion, self._began = self._motion.begun(now), now
        return new

    def _ask(self, observation: dict[str, float], now: float) -> bool:
        """Begin a plan if one is due; whether the one before is late."""
        self._since_offer += 1
        if not self._due(now):
            return False
        if self.inference.busy:
            return self._motion is not None
        delay = self.forecast.seconds if self._get('prefix') else 0.0
        self._requests += 1
        request = Request(self._requests, self._epoch, observation, now, delay, self._began, self._budget())
        self._began, self._since_offer, self.demanded = None, 0, False
        self._asked_at = time.monotonic()
        if self.recorder is not None:
            self.recorder.offered(request)
        self.inference.offer(request)
        return False

    def _due(self, now: float) -> bool:
        if self._motion is None or self._failed is not None or self.demanded:
            return True
        mode = self._get('replan')
        if mode == 'every_tick':
            return True
        if mode == 'every_k':
            return bool(self._since_offer >= self._get('replan_every'))
        plan = self._motion.plan
        return plan is not None and now + self.forecast.seconds + self._period > plan.t0 + plan.step_dt * (plan.horizon - 1)

    def _budget(self) -> float | None:
        """Time for denoising [s], so that the plan comes before the next one is due."""
        if self._lock_step or not self._get('anytime'):
            return None
        ticks = self._get('replan_every') if self._get('replan') == 'every_k' else 1
        return MARGIN * max(ticks * self._period, 2e-3)

    def _followed(self, observation: dict[str, float], now: float, late: bool) -> tuple[int, str, Motion | None]:
        """What to follow, and the reason; without a motion, the reason to hold."""
        if self.inference.trouble:
            return PlannerStats.PLANNER_DIED, f'holding: {self.inference.trouble}', None
        if self._failed is not None and not self._failed.refused:
            return PlannerStats.PLAN_FAILED, self._failed.why, None
        if self._motion is None:
            if self._failed is not None:
                return PlannerStats.PLAN_REFUSED, f'holding: {self._failed.why}', None
            return PlannerStats.NO_PLAN, 'the first plan is being made', self._robot.resting(observation)
        plan, age = self._motion.plan, self._age(now)
        if plan is not None and self._get('replan') == 'on_demand':
            if now > plan.t0 + plan.step_dt * (plan.horizon - 1):
                return PlannerStats.NO_PLAN, 'holding: the last plan has been followed to its end', None
        elif plan is not None and age > self._get('plan_timeout'):
            if self._failed is not None:
                return PlannerStats.PLAN_REFUSED, f'holding: {self._failed.why}', None
            return (PlannerStats.NO_PLAN, f'holding: the last plan is {1e3 * age:.0f} ms old, allowed are '
                    f'{1e3 * self._get("plan_timeout"):.0f} ms', None)
        if late:
            return PlannerStats.PLAN_LATE, f'following the last plan, {1e3 * age:.0f} ms old: the next one is late', self._motion
        return PlannerStats.OK, '', self._motion

    def _age(self, now: float) -> float:
        """Age of the motion that is followed, since the state that it was made from [s]."""
        if self._result is None:
            return 0.0
        return now - self._result.request.now if self._lock_step else time.monotonic() - self._made_at

    def _policy_time(self, state: Moment) -> float:
        """Time of `state` for the policy [s]; it stands still while the robot holds, so that the plan is then resumed."""
        now = 1e-9 * conversions.nanoseconds(state.stamp) if self._lock_step else state.arrival
        if self._resume_at is not None:
            self._time_shift = self._resume_at - now
        return now + self._time_shift

    def _hold(self, state: Moment, outcome: Outcome | None = None) -> bool:
        """Stop the robot where it is told to be at this moment; one that was not told anything yet stays where the tick saw it,
        or is told nothing (False)."""
        commander = self._robot.commander
        last = commander.last
        if last is None:
            if outcome is None or outcome.observation is None or outcome.reason == PlannerStats.IMPLAUSIBLE_STATE:
                return False
            rest = self._robot.resting(outcome.observation).decide(outcome.observation, outcome.now)
            self._robot.send(rest, outcome.observation, outcome.now, state.stamp)
            return True
        if self._resume_at is None:
            self._resume_at = self._planned_at + self._period * commander.steps_followed(last)
        commander.hold(last, state.stamp, self._resume_at)
        return True

    # What is told of it

    def _count(self, outcome: Outcome, began: float, overdue: bool) -> None:
        """Count the tick and make its statistics."""
        counts, result, state = self.statistics, self._result, outcome.state
        counts.ticks += 1
        if outcome.decision is not None:
            if outcome.decision.plan is not None:
                counts.latencies.append(outcome.latency)
            late = overdue or outcome.latency > 1e3 * self._period or outcome.reason == PlannerStats.PLAN_LATE
            counts.late += late and not self._lock_step
        if result is not None:
            counts.replans = result.replans
        told = {} if result is None or result.motion is None or result.motion.plan is None else result.motion.plan.provenance
        levels = told.get('levels')
        self.stats = PlannerStats(
            header=Header(stamp=self.stats.header.stamp if state is None else state.stamp), goal_id=self.goal_id,
            tick=counts.ticks, replans=counts.replans, late_ticks=counts.late, reason=outcome.reason, reason_text=outcome.text,
            latency_ms=outcome.latency, planning_ms=0.0 if result is None else result.planning_ms,
            state_age_ms=0.0 if state is None else 1e3 * (began - state.arrival),
            plan_age_ms=0.0 if outcome.motion is None or outcome.motion.plan is None else 1e3 * self._age(outcome.now),
            forecast_ms=1e3 * self.forecast.seconds, denoising_steps=len(levels) if isinstance(levels, Sequence) else 0,
            committed=_number(told.get('committed'), 0), guide_value=_number(told.get('value'), math.nan),
            spread=_number(told.get('spread'), math.nan), clamped=counts.clamped, clamped_text=counts.clamped_text,
            refused=counts.refused)

    def stamp(self, clock: Callable[[], Time]) -> Time:
        """Now, for a header: the clock's time, or the newest state's stamp in lock-step."""
        if self._lock_step and self._states.newest is not None:
            return self._states.newest.stamp
        return clock()


def _number(value: object, default: Any) -> Any:
    return value if isinstance(value, (int, float)) else default
