"""From a goal in a maze to forces on the ball: a receding-horizon planner, and the law that follows its plans.

Planning and following are apart: `replan` makes a plan from where the ball is and may take as long as it takes, in another thread
if need be; `command` reads the newest plan at every tick. `act` does both in turn, for simulations that wait.

Plans end at rest in the goal, which is inpainted on their last step. They may arrive earlier, since training windows hold a
journey's end; so a plan from closer by arrives sooner, and replanning at every tick comes to the goal. With windows cut anywhere,
as in the paper, a plan arrives exactly at its end, and the goal recedes with every new plan (docs/mazes.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffuser_core.conditions import Conditions
from diffuser_core.envs.maze_layout import CHANNELS, FORCES, GOAL_RADIUS, LAYOUTS, MazeLayout
from diffuser_core.envs.maze_motion import MazeDecision, MazeGoal, MazeMotion, check_goal
from diffuser_core.planner import Planner, Sampling
from diffuser_core.receding_horizon import RecedingHorizon
from diffuser_core.trajectory import Plan

__all__ = ['EXECUTIONS', 'MAZE_SAMPLING', 'MazePolicy', 'Smoothing', 'arrival']

MAZE_SAMPLING = Sampling(warm_steps=1, warm_level=0.3)
"""One call renews a plan: better plans alone replace the present one, and the next is made 50 ms later (docs/results.md)."""

EXECUTIONS = ('states', 'actions', 'paper')


class Smoothing:
    """Places of a plan that agree with its velocities.

    The network gives places to about 0.1 m, but velocities to about 0.1 m/s: the way from one step to the next is far better
    known from them. The places x that minimise sum |x - planned|^2 + `trust` sum |x' - x - dt (v + v') / 2|^2, with both ends as
    they are, are linear in what was planned, so that two matrices, made once, do it.
    """

    def __init__(self, horizon: int, dt: float, trust: float = 300.0) -> None:
        rows = np.arange(horizon - 1)
        change, mean = np.zeros((horizon - 1, horizon)), np.zeros((horizon - 1, horizon))
        change[rows, rows], change[rows, rows + 1] = -1.0, 1.0
        mean[rows, rows] = mean[rows, rows + 1] = dt / 2
        weights = np.ones(horizon)
        weights[[0, -1]] = 1e9
        inverse = np.linalg.inv(np.diag(weights) + trust * change.T @ change)
        self._of_places = inverse * weights
        self._of_speeds = trust * inverse @ change.T @ mean

    def __call__(self, places: NDArray[np.float64], speeds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places (horizon, 2) [m] from planned places and speeds [m/s], both (horizon, 2)."""
        smooth = self._of_places @ places + self._of_speeds @ speeds
        smooth[[0, -1]] = places[[0, -1]]
        return smooth


def arrival(plan: Plan, goal: NDArray[np.float64], radius: float = GOAL_RADIUS) -> float:
    """Time from a plan's start [s] until it stays within `radius` of `goal` (2,); infinite if it never does."""
    distance = np.hypot(*(plan.values[:, plan.channels.indices(CHANNELS[:2])] - goal).T)
    away = np.flatnonzero(distance > radius)
    if len(away) == 0:
        return 0.0
    last = int(away[-1])
    if last == plan.horizon - 1:
        return np.inf
    return float(last + (distance[last] - radius) / (distance[last] - distance[last + 1])) * plan.step_dt


class MazePolicy:
    """Drives one ball; `set_goal`, then `act`, or `replan` and `command`, at every tick.

    A new plan replaces the one before if it crosses fewer walls or arrives earlier, or if the ball no longer follows that one.
    As long as the present one crosses a wall, plans are drawn from noise, several at once. A plan made while there was none to
    follow begins when it is first followed: the ball was being stopped meanwhile, however long planning took. Not thread-safe.

    maze        which maze it is; goals are checked against it
    execution   'states': the planned states are followed by a PD law with the planned forces fed forward; 'actions': the planned
                forces are applied as they are; 'paper': one plan, made at the start, is followed by a PD law of unit gains
    candidates  plans drawn when there is none to start from, or only one that crosses a wall; the one that crosses none and
                arrives first is taken
    tail        ticks of actions a decision holds
    """

    OFF_PLAN = 0.2
    """A ball that is farther than this from where its plan has it [m] no longer follows it."""
    TOUCH = 0.03
    """A step of a plan lies in a wall if it has less clearance [m]; the ball itself needs 0.1 m."""
    STILL, PATIENCE = 0.05, 0.5
    """A ball that moves less than this [m] in so many seconds, away from its goal, is stuck: a new plan is made from noise."""

    def __init__(self, planner: Planner, maze: MazeLayout, *, sampling: Sampling = MAZE_SAMPLING, execution: str = 'states',
                 candidates: int = 8, tail: int = 5) -> None:
        missing = [name for name in (*FORCES, *CHANNELS) if name not in planner.channels.names]
        extra = [name for name in planner.channels.names if name not in (*FORCES, *CHANNELS)]
        if missing or extra or planner.channels.actions != len(FORCES):
            raise ValueError(f'the checkpoint does not fit this robot: it needs the channels {", ".join((*FORCES, *CHANNELS))}, '
                             f'got {", ".join(planner.channels.names)}')
        if execution not in EXECUTIONS:
            raise ValueError(f'execution is one of {", ".join(EXECUTIONS)}, got {execution!r}')
        if candidates < 1 or tail < 1:
            raise ValueError(f'candidates and tail are at least 1, got {candidates} and {tail}')
        self.planner, self.maze, self.execution = planner, maze, execution
        self._horizon = RecedingHorizon(planner, sampling, committed=planner.channels.names, moving=planner.channels.names)
        self._candidates = candidates
        self._tail = tail
        self._smoothing = Smoothing(planner.checkpoint.horizon, planner.step_dt)
        self._places = planner.channels.indices(CHANNELS[:2])
        self._speeds = planner.channels.indices(CHANNELS[2:])
        self._goal: NDArray[np.float64] | None = None
        self._motion = self._stopped
        self._stuck = False
        self._still_since: tuple[float, NDArray[np.float64]] | None = None

    @property
    def _stopped(self) -> MazeMotion:
        """No plan."""
        goal = None if self._goal is None else (float(self._goal[0]), float(self._goal[1]))
        return MazeMotion(None, goal, self.execution, self._tail)

    @classmethod
    def maze_of(cls, planner: Planner) -> MazeLayout:
        """The maze that a checkpoint was trained for, by the name of its run; ValueError if it names none."""
        config = planner.checkpoint.provenance.get('config')
        name = str(config.get('name', '')) if isinstance(config, dict) else ''
        for size, maze in LAYOUTS.items():
            if name.startswith(f'maze2d_{size}'):
                return maze
        raise ValueError(f'the checkpoint of the run {name!r} does not say which maze it is for: the name of a run must begin '
                         f'with one of {", ".join(f"maze2d_{size}" for size in LAYOUTS)}')

    @property
    def replans(self) -> int:
        """Plans made so far."""
        return self._horizon.replans

    @property
    def goal(self) -> MazeGoal | None:
        """The goal in force."""
        return None if self._goal is None else MazeGoal(*self._goal.tolist())

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed; not while a plan is being made."""
        self._change(None)
        self._horizon.restart()
        self._horizon.replans = 0
        self.planner.reseed(seed)

    def clear_goal(self) -> None:
        """Drop the goal; the ball is stopped."""
        self._change(None)

    def set_goal(self, goal: MazeGoal, observation: Mapping[str, float]) -> None:
        """Drive to `goal`; GoalError, and the old goal stays, if the ball cannot be there.

        KeyError if the observation lacks a channel.
        """
        self.planner.channels.vector(observation)
        check_goal(self.maze, goal)
        place = np.array([goal.x, goal.y])
        if self._goal is None or not np.array_equal(place, self._goal):
            self._change(place)

    def _change(self, place: NDArray[np.float64] | None) -> None:
        self._goal = place
        self._motion = self._stopped
        self._stuck = False
        self._still_since = None

    def resting(self, observation: Mapping[str, float]) -> MazeMotion:
        """The ball is stopped."""
        return self._stopped

    def begin(self, now: float) -> None:
        """The motion that `replan` gave last is followed since `now` [s]; a plan that waited for it begins there."""
        self._motion = self._motion.begun(now)

    def adopt(self, motion: MazeMotion | None) -> None:
        """The ball follows `motion` instead, whose plan is kept until a better one is made, or is stopped; one of other channels
        is not known here."""
        known = motion is not None and motion.plan is not None and motion.plan.channels == self.planner.channels
        self._motion = motion if known and motion is not None else self._stopped

    def replan(self, observation: Mapping[str, float], now: float, delay: float = 0.0, budget: Any = None) -> MazeMotion:
        """What to follow from the state (channel name -> value) at time `now` [s] on, if it is followed `delay` [s] later."""
        goal, kept = self._goal, None if self._stuck else self._motion.plan
        if goal is None or self.execution == 'paper' and kept is not None:
            return self._motion
        state = self.planner.channels.vector(observation)
        candidates = None
        self._horizon.follow(kept)
        conditions = self._conditions(goal)
        if (kept is None or self._crossings(kept, now)) and self._candidates > 1:
            conditions, committed = self._horizon.prefixed(conditions, now, delay)
            drawn = self.planner.candidates(state, conditions, count=self._candidates, sampling=self._horizon.sampling,
                                            t0=now, budget=budget)
            plan = min(map(self._smoothed, drawn), key=lambda p: (self._crossings(p, now), arrival(p, goal)))
            plan = replace(plan, provenance={**plan.provenance, 'committed': committed, 'spread': self._spread(drawn)})
            candidates = np.stack([p.values[:, self._places] for p in drawn])
            self._horizon.replans += 1
        else:
            plan = self._smoothed(self._horizon.update(state, conditions, now, budget=budget, ahead=delay))
        if kept is None or not self._better(kept, plan, state, goal, now):
            self._motion = replace(self._stopped, plan=plan, waits=kept is None, candidates=candidates)
        self._stuck = self._stands_still(state, goal, now)
        return self._motion

    def _spread(self, plans: Sequence[Plan]) -> float:
        """How far the places of several plans lie apart [m]: their standard deviation, averaged over the steps."""
        places = np.stack([plan.values[:, self._places] for plan in plans])
        return float(np.sqrt(places.var(axis=0).sum(axis=-1)).mean())

    def _better(self, kept: Plan, new: Plan, state: NDArray[np.float64], goal: NDArray[np.float64], now: float) -> bool:
        """Whether an earlier plan that the ball still follows arrives no later than a new one."""
        off = np.hypot(*(kept.at(np.array([now]))[0, self._places] - state[:2]))
        if off > self.OFF_PLAN or self._crossings(kept, now) > self._crossings(new, now):
            return False
        return kept.t0 + arrival(kept, goal) <= now + arrival(new, goal)

    def _smoothed(self, plan: Plan) -> Plan:
        values = plan.values.copy()
        values[:, self._places] = self._smoothing(values[:, self._places], values[:, self._speeds])
        return replace(plan, values=values)

    def _crossings(self, plan: Plan, now: float) -> int:
        """Steps of a plan from `now` on that lie in a wall."""
        ahead = plan.values[max(0, int((now - plan.t0) / plan.step_dt)):, self._places]
        return int((self.maze.clearance(ahead) <= self.TOUCH).sum())

    def _conditions(self, goal: NDArray[np.float64]) -> Conditions:
        return self.planner.conditions().known(-1, self.planner.channels, dict(zip(CHANNELS, (*goal, 0.0, 0.0))))

    def _stands_still(self, state: NDArray[np.float64], goal: NDArray[np.float64], now: float) -> bool:
        """Whether the ball is stuck: its present plan is then not kept for the next one."""
        reached = np.hypot(*(state[:2] - goal)) <= GOAL_RADIUS
        if self._still_since is None or reached or np.hypot(*(state[:2] - self._still_since[1])) > self.STILL:
            self._still_since = now, state[:2]
        elif now - self._still_since[0] > self.PATIENCE and self.execution != 'paper':
            self._still_since = None
            return True
        return False

    def command(self, observation: Mapping[str, float], now: float) -> MazeDecision:
        """Forces for the following ticks from the state at time `now` [s] and the newest plan; without one the ball stops."""
        self.begin(now)
        return self._motion.decide(observation, now)

    def act(self, observation: Mapping[str, float], now: float) -> MazeDecision:
        """Plan, then decide."""
        self.replan(observation, now)
        return self.command(observation, now)
