"""Controllers to compare the maze planner with, with the interface of `MazePolicy`, and the record of an episode."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from diffuser_core.envs.maze_layout import CHANNELS, FORCES, TICK, MazeLayout
from diffuser_core.envs.maze_motion import MazeDecision, MazeGoal
from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_core.evaluate.baselines.mazes import OBSERVATION_SIZE
from diffuser_core.evaluate.statistics import quantiles
from diffuser_core.experts.waypoint import REACH_RANGE, WaypointController
from diffuser_core.trajectory import Plan

__all__ = ['BASELINES', 'FAILURES', 'LearnedMazePolicy', 'MazeController', 'RandomPolicy', 'WaypointPolicy', 'run_maze_episode']

FAILURES = ('never reached', 'left again')
"""Why an episode failed: the ball never came to the goal, or was not there at the end."""


class MazeController(Protocol):
    """What an episode asks of a controller."""

    @property
    def replans(self) -> int:
        """Plans made since the last reset."""

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed."""

    def set_goal(self, goal: MazeGoal, observation: Mapping[str, float]) -> None:
        """Drive to `goal` from the state (channel name -> value)."""

    def replan(self, observation: Mapping[str, float], now: float) -> Any:
        """Make the plan anew, if there are plans."""

    def command(self, observation: Mapping[str, float], now: float) -> MazeDecision:
        """Forces from the state at time `now` [s]."""


class _WithoutPlans:
    @property
    def replans(self) -> int:
        """There are no plans."""
        return 0

    def replan(self, observation: Mapping[str, float], now: float) -> None:
        """There are no plans."""


class WaypointPolicy(_WithoutPlans):
    """The waypoint controller that made the data; `reach` is drawn anew for every episode; None: D4RL's."""

    def __init__(self, maze: MazeLayout, reach: tuple[float, float] | None) -> None:
        self._maze, self._range = maze, reach
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Draw the reach from the seed."""
        reach = None if self._range is None else float(np.random.default_rng(seed).uniform(*self._range))
        self._controller = WaypointController(self._maze, reach)

    def set_goal(self, goal: MazeGoal, observation: Mapping[str, float]) -> None:
        """Plan the way."""
        self._controller.start([observation['x'], observation['y']], [goal.x, goal.y])

    def command(self, observation: Mapping[str, float], now: float) -> MazeDecision:
        """The controller's force."""
        return MazeDecision(self._controller.act(np.array([observation[name] for name in CHANNELS]))[None], None, False)


class RandomPolicy(_WithoutPlans):
    """Forces drawn uniformly from [-1, 1] at every tick: D4RL's score of 0."""

    def __init__(self) -> None:
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Start the sequence of draws again."""
        self._rng = np.random.default_rng(seed)

    def set_goal(self, goal: MazeGoal, observation: Mapping[str, float]) -> None:
        """It does not care."""

    def command(self, observation: Mapping[str, float], now: float) -> MazeDecision:
        """A random force."""
        return MazeDecision(self._rng.uniform(-1.0, 1.0, (1, 2)), None, False)


class LearnedMazePolicy(_WithoutPlans):
    """A network from an observation (1, 6) to forces (1, 2) at every tick."""

    def __init__(self, network: torch.nn.Module) -> None:
        with torch.no_grad():
            shape = tuple(network(torch.zeros(1, OBSERVATION_SIZE)).shape)
        if shape != (1, len(FORCES)):
            raise ValueError(f'the network must turn (1, {OBSERVATION_SIZE}) into (1, {len(FORCES)}), it gives {shape}')
        self._network = network
        self._goal = (0.0, 0.0)

    @classmethod
    def load(cls, path: str | Path) -> LearnedMazePolicy:
        """From a TorchScript file, as `benchmarks/baselines/train.py` writes; FileNotFoundError, or ValueError if it is none."""
        if not Path(path).is_file():
            raise FileNotFoundError(f'no trained baseline at {path}')
        try:
            return cls(torch.jit.load(str(path), map_location='cpu'))
        except RuntimeError as error:
            raise ValueError(f'{path} is not a trained baseline of a maze (TorchScript): {str(error).splitlines()[0]}') from error

    def reset(self, seed: int = 0) -> None:
        """A network may draw random numbers."""
        torch.manual_seed(seed)

    def set_goal(self, goal: MazeGoal, observation: Mapping[str, float]) -> None:
        """Drive to `goal`."""
        self._goal = goal.x, goal.y

    def command(self, observation: Mapping[str, float], now: float) -> MazeDecision:
        """The network's force."""
        seen = torch.tensor([[*(observation[name] for name in CHANNELS), *self._goal]], dtype=torch.float32)
        with torch.no_grad():
            force = self._network(seen).double().numpy()
        return MazeDecision(np.clip(force, -1.0, 1.0), None, False)


BASELINES: dict[str, Callable[[MazeLayout], MazeController]] = {
    'waypoint': lambda maze: WaypointPolicy(maze, None),
    'waypoint-data': lambda maze: WaypointPolicy(maze, REACH_RANGE),
    'random': lambda maze: RandomPolicy(),
}
"""Name -> controller for a maze: D4RL's waypoint controller, the demonstrator of our data, random forces."""


def run_maze_episode(policy: MazeController, env: PointMazeEnv, task: str, seed: int, *, replan_every: int = 1,
                     trail: list[NDArray[np.float64]] | None = None, plans: list[Plan] | None = None) -> dict[str, Any]:
    """Run one seeded episode of `env` and return its record, one JSON object:

    task, seed, goal  what was asked for; start: where the ball started [m]
    return            steps within 0.5 m of the goal; score: D4RL's normalised score of it
    reached_at        tick at which the ball first was in the goal, or None
    failure           one of `FAILURES`, or None
    ticks, replans    control ticks of the episode; plans made
    planning_ms       {'p50', 'p99'} of the calls that planned, None if none did; command_ms: of the others, every tick

    replan_every  ticks between plans; trail, plans: receive the states (4,) and every new plan
    """
    state, info = env.reset(seed=seed)
    observation = dict(zip(CHANNELS, state.tolist()))
    policy.reset(seed)
    policy.set_goal(MazeGoal(*info['goal'].tolist()), observation)
    start, returned, reached_at, inside = state[:2].tolist(), 0.0, None, False
    planning: list[float] = []
    commanding: list[float] = []
    plan: Plan | None = None
    for tick in range(env.layout.limit):
        observation = dict(zip(CHANNELS, state.tolist()))
        began = time.perf_counter()
        if tick % replan_every == 0 or plan is None:
            before = policy.replans
            policy.replan(observation, tick * TICK)
            if policy.replans > before:
                planning.append(1e3 * (time.perf_counter() - began))
        began = time.perf_counter()
        decision = policy.command(observation, tick * TICK)
        commanding.append(1e3 * (time.perf_counter() - began))
        if plans is not None and decision.plan is not None and decision.plan is not plan:
            plans.append(decision.plan)
        plan = decision.plan
        if trail is not None:
            trail.append(state)
        state, reward, _, _, info = env.step(decision.actions[0])
        returned += reward
        inside = bool(info['success'])
        if inside and reached_at is None:
            reached_at = tick + 1
    failure = None if inside else FAILURES[0] if reached_at is None else FAILURES[1]
    return {'task': task, 'seed': seed, 'goal': info['goal'].tolist(), 'start': start, 'return': returned,
            'score': float(env.layout.score(returned)), 'reached_at': reached_at, 'failure': failure, 'ticks': env.layout.limit,
            'replans': policy.replans, 'planning_ms': quantiles(planning), 'command_ms': quantiles(commanding)}
