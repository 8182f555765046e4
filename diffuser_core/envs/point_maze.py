"""Maze2D in MuJoCo: a ball that is pushed through a maze, with D4RL's geometry, physics and rewards.

One step is 0.01 s. Physics: two sliding joints with damping 1, a sphere of radius 0.1 m and density 1000, motors of gear 100,
velocities clipped to 5 m/s before every step (D4RL and gymnasium-robotics, PointMaze; compared with the latter in the tests).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from diffuser_core.envs.maze_layout import (
    BALL_RADIUS,
    CHANNELS,
    FORCES,
    GOAL_RADIUS,
    LOWER_EDGE,
    TICK,
    UNITS,
    MazeLayout,
    layout,
)

__all__ = ['PointMazeEnv']

MAX_SPEED = 5.0
START_NOISE = 0.1


def _model_text(maze: MazeLayout) -> str:
    """MuJoCo's description of the maze, in the coordinates of positions."""
    half = 0.5
    walls = '\n'.join(f'<geom type="box" pos="{x + half:.3f} {y + half:.3f} 0" size="{half} {half} 0.2" rgba=".6 .6 .65 1"/>'
                      for x, y in np.argwhere(maze.walls) - LOWER_EDGE)
    return f"""
<mujoco model="{maze.name}">
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="{TICK}" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
  </default>
  <worldbody>
    <light pos="{maze.walls.shape[0] / 2} {maze.walls.shape[1] / 2} 8" dir="0 0 -1"/>
    {walls}
    <body name="ball">
      <geom name="ball" type="sphere" size="{BALL_RADIUS}" contype="1" rgba=".2 .4 .8 1"/>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
    <motor joint="y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </actuator>
</mujoco>"""


class PointMazeEnv(gymnasium.Env[NDArray[np.float64], NDArray[Any]]):
    """A maze of `size` 'umaze', 'medium' or 'large'; every step within 0.5 m of the goal is rewarded with 1.

    observation  (4,) position x, y [m] and velocity [m/s]; the goal is in `goal` (2,) and in the info 'goal', as in D4RL
    action       (2,) force on the ball in shares of the largest one, clipped to [-1, 1]
    multi_task   whether the goal is drawn in every episode (Multi2D) or the maze's own (Maze2D)

    The ball starts in any free cell, up to 0.1 m from its integer position, with a velocity drawn from N(0, 0.1 m/s). The episode
    never terminates; `gymnasium.make` truncates it at the maze's limit. `reset` takes the options 'goal' and 'state'.
    """

    metadata: dict[str, Any] = {'render_modes': ['rgb_array'], 'render_fps': 100}
    channels, units = CHANNELS, UNITS
    actions = FORCES

    def __init__(self, size: str = 'umaze', *, multi_task: bool = False, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata['render_modes']):
            raise ValueError(f"render_mode is None or 'rgb_array', got {render_mode!r}")
        self.layout = layout(size)
        self.multi_task = multi_task
        self.render_mode = render_mode
        self.observation_space = Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.model = mujoco.MjModel.from_xml_string(_model_text(self.layout))
        self.data = mujoco.MjData(self.model)
        self.goal = np.array(self.layout.goal, dtype=np.float64)

    @property
    def dt(self) -> float:
        """Seconds a step."""
        return TICK

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start an episode; options 'goal' (2,) and 'state' (4,) replace what would be drawn. ValueError for places in a wall."""
        super().reset(seed=seed)
        options = options or {}
        unknown = sorted(set(options) - {'goal', 'state'})
        if unknown:
            raise ValueError(f"unknown reset option {unknown[0]!r}; there are 'goal' and 'state'")
        self.goal = self._draw_place() if self.multi_task else np.array(self.layout.goal, dtype=np.float64)
        position = self._draw_place()
        state = np.concatenate([position, START_NOISE * self.np_random.standard_normal(2)])
        if 'goal' in options:
            self.set_goal(options['goal'])
        if 'state' in options:
            state = np.asarray(options['state'], dtype=np.float64)
            if state.shape != (4,) or not np.isfinite(state).all():
                raise ValueError(f"the option 'state' needs four finite numbers, x, y, vx, vy, got {options['state']!r}")
            self._check_place(state[:2])
        self.set_state(state)
        return state.copy(), self._info()

    def _draw_place(self) -> NDArray[np.float64]:
        cells = self.layout.free_cells
        return np.array(cells[self.np_random.integers(len(cells))]) + self.np_random.uniform(-START_NOISE, START_NOISE, 2)

    def set_goal(self, goal: Any) -> None:
        """Move the goal (2,) [m]; ValueError, and the old goal stays, if the ball cannot be there."""
        self._check_place(goal)
        self.goal = np.asarray(goal, dtype=np.float64).copy()

    def _check_place(self, place: Any) -> None:
        if why := self.layout.why_not(place):
            raise ValueError(why)

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Put the ball at x, y with the velocity vx, vy; state (4,)."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = state[:2], state[2:]

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Push the ball for 0.01 s; ValueError for an action of another size or that is not finite."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f'an action needs two finite numbers, got {action!r}')
        data = self.data
        np.clip(data.qvel, -MAX_SPEED, MAX_SPEED, out=data.qvel)
        data.ctrl[:] = np.clip(action, -1.0, 1.0)
        mujoco.mj_step(self.model, data)
        state = np.concatenate([data.qpos, data.qvel])
        info = self._info()
        return state, float(info['success']), False, False, info

    def _info(self) -> dict[str, Any]:
        reached = bool(np.hypot(*(self.data.qpos - self.goal)) <= GOAL_RADIUS)
        return {'goal': self.goal.copy(), 'success': reached}

    def render(self) -> NDArray[np.uint8] | None:
        """The maze from above, x down and y to the right, (height, width, 3)."""
        if self.render_mode is None:
            return None
        from diffuser_core.envs.maze_picture import draw
        return draw(self.layout, self.data.qpos, self.goal)
