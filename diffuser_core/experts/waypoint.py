"""Ways through a maze by waypoints: the controller that made D4RL's maze data, replanned for every goal, and journeys with it.

The controller steers to the cells of a shortest way, one after another, by a = clip(10 (waypoint - position) - velocity), and
takes the next one within `reach` of the last: 0.1 m in D4RL. The larger the reach, the more it cuts corners and the faster it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffuser_core.envs.maze_layout import BALL_RADIUS, MazeLayout
from diffuser_core.envs.point_maze import PointMazeEnv

__all__ = ['D4RL_REACH', 'REACH_RANGE', 'RECIPE', 'WaypointController', 'journeys']

RECIPE = 1
"""Raise it when journeys of the same seed change."""
D4RL_REACH = 0.1
REACH_RANGE = (0.1, 0.5)
GAIN, DAMPING = 10.0, 1.0
ARRIVED, REST_SPEED, REST_TICKS = 0.05, 0.05, 5
"""A journey has ended after this many ticks, closer to its goal than 0.05 m and slower than 0.05 m/s."""
LOST = 1000
"""Ticks after which a journey is given up; the longest of 17,775 in the large maze took 567."""
INTERRUPTED_SHARE = 0.15
"""Share of the journeys that end on the way, because another goal is drawn: the next one then starts at speed."""


class WaypointController:
    """Drives to a goal; `start` first, then `act` at every tick.

    reach  distance within which a waypoint counts as reached [m]; None: D4RL's controller, which reaches 0.1 m and, as its code
           has it, turns to the next waypoint one tick later
    """

    def __init__(self, maze: MazeLayout, reach: float | None = None) -> None:
        self._maze = maze
        self._reach = D4RL_REACH if reach is None else reach
        self._late = reach is None
        self._waypoints: list[NDArray[np.float64]] = []

    def start(self, position: ArrayLike, goal: ArrayLike) -> None:
        """Plan the way from `position` (2,) to `goal` (2,) [m]; ValueError if there is none."""
        way = self._maze.way(self._maze.cell(position), self._maze.cell(goal))
        self._waypoints = [np.array(cell, dtype=np.float64) for cell in way]
        if self._waypoints:
            self._waypoints.pop()
        self._waypoints.append(np.asarray(goal, dtype=np.float64))

    def act(self, observation: NDArray[np.float64]) -> NDArray[np.float64]:
        """Force (2,) in [-1, 1] from the observation (4,)."""
        position, velocity = observation[:2], observation[2:]
        waypoint = self._waypoints[0]
        while len(self._waypoints) > 1 and np.hypot(*(self._waypoints[0] - position)) < self._reach:
            self._waypoints.pop(0)
        if not self._late:
            waypoint = self._waypoints[0]
        return np.clip(GAIN * (waypoint - position) - DAMPING * velocity, -1.0, 1.0)


def journeys(size: str, reach: tuple[float, float] | None, ticks: int, seeds: range,
             stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """One long, undirected drive of `ticks` for every seed: journey after journey to random goals, back to back.

    Every journey has its own reach, drawn from `reach`; None: all are driven by D4RL's controller. Columns as `shards.Recipe`
    wants them, with the info 'journey': its number, or -1 for journeys that did not arrive. None if it was stopped.
    """
    parts = []
    env = PointMazeEnv(size, multi_task=True)
    for seed in seeds:
        if stopped():
            return None
        parts.append(_drive(env, seed, reach, ticks))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _drive(env: PointMazeEnv, seed: int, reach: tuple[float, float] | None, ticks: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    observations: list[NDArray[np.float64]] = []
    actions: list[NDArray[np.float64]] = []
    journey: list[int] = []
    number = 0
    while len(actions) < ticks:
        goal = _draw_goal(env.layout, rng)
        env.set_goal(goal)
        controller = WaypointController(env.layout, None if reach is None else float(rng.uniform(*reach)))
        controller.start(observation[:2], goal)
        limit = int(rng.integers(5, 100)) if rng.random() < INTERRUPTED_SHARE else LOST
        first, resting = len(actions), 0
        while resting < REST_TICKS and len(actions) - first < limit:
            action = controller.act(observation)
            observations.append(observation)
            actions.append(action)
            observation, *_ = env.step(action)
            near = np.hypot(*(observation[:2] - goal)) < ARRIVED and np.hypot(*observation[2:]) < REST_SPEED
            resting = resting + 1 if near else 0
        arrived = resting == REST_TICKS
        journey += [number if arrived else -1] * (len(actions) - first)
        number += arrived
    rows = np.array(observations)[:ticks]
    numbers = np.array(journey, dtype=np.int64)
    if number and numbers[ticks - 1] == numbers[-1]:  # cut in the middle of a journey
        numbers[numbers == numbers[-1]] = -1
    return {'observations': rows, 'actions': np.array(actions, dtype=np.float32)[:ticks], 'rewards': np.zeros(ticks),
            'truncations': np.arange(ticks) == ticks - 1, 'journey': numbers[:ticks]}


def _draw_goal(maze: MazeLayout, rng: np.random.Generator) -> NDArray[np.float64]:
    """A place in a random free cell, uniformly where the ball has room."""
    cell = np.array(maze.free_cells[rng.integers(len(maze.free_cells))])
    while True:
        goal = cell + rng.uniform(-0.6, 0.2, 2)
        if maze.clearance(goal) > BALL_RADIUS + 0.02:
            return goal

