"""What the planner node asks of the library, and how its policy is made from parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from diffuser_core.checkpoint import Checkpoint
from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, inverse_kinematics
from diffuser_core.envs.maze_layout import CHANNELS as MAZE_CHANNELS
from diffuser_core.envs.maze_motion import MazeGoal
from diffuser_core.envs.maze_policy import MazePolicy
from diffuser_core.envs.stacking import BLOCKS, CHANNELS
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.planner import Planner, Sampling
from diffuser_core.shipped import checkpoint_folder
from diffuser_ros.parameters import PlannerParameters, StartError
from diffuser_ros.robots import ROBOTS, Robot, choose_robot
from diffuser_ros.robots.gym import MazeRobot

__all__ = ['TAIL', 'Policy', 'load_policy', 'robot_for']

TAIL = 12
"""Points of a command: what the arm follows, half a second at 24 Hz, if no newer command arrives."""


class Policy(Protocol):
    """What the node uses of every robot's policy."""

    @property
    def replans(self) -> int: ...
    def reset(self, seed: int) -> None: ...
    def set_goal(self, goal: Any, observation: Mapping[str, float]) -> None: ...
    def clear_goal(self) -> None: ...
    def act(self, observation: Mapping[str, float], now: float) -> Any: ...


def robot_for(parameters: PlannerParameters) -> Robot:
    """The robot that `parameters` name, or that the checkpoint's channels are about; StartError if there is none."""
    channels: tuple[str, ...] = ()
    if parameters.robot == 'auto' and parameters.checkpoint:
        try:
            channels = Checkpoint.load(Path(parameters.checkpoint).expanduser()).channels.names
        except (ValueError, OSError) as error:
            raise StartError(f'the checkpoint cannot be used: {error}') from error
    try:
        return ROBOTS[choose_robot(parameters.robot, channels)]()
    except ValueError as error:
        raise StartError(str(error)) from error


def load_policy(parameters: PlannerParameters, robot: Robot | None = None) -> Policy:
    """The policy of the robot on the checkpoint that `parameters` name, warmed up; StartError if it cannot be used.

    robot  what `robot_for` gave, if it has been asked already
    """
    torch.set_num_threads(parameters.threads)
    try:
        torch.empty(0, device=parameters.device)
    except (RuntimeError, AssertionError) as error:
        raise StartError(f'the device {parameters.device!r} cannot be used: {str(error).splitlines()[0]}') from error
    gym = isinstance(robot or robot_for(parameters), MazeRobot)
    if gym and not parameters.checkpoint:
        raise StartError('a robot in a maze needs the parameter checkpoint: a folder')
    folder = Path(parameters.checkpoint).expanduser() if parameters.checkpoint else checkpoint_folder('kuka_stack')
    try:
        policy = _maze_policy(parameters, folder) if gym else _stacking_policy(parameters, folder)
    except (ValueError, OSError, FloatingPointError) as error:
        where = '' if str(folder) in str(error) else f'{folder}: '
        raise StartError(f'the checkpoint cannot be used: {where}{error}') from error
    policy.reset(parameters.seed)
    return policy


def _stacking_policy(parameters: PlannerParameters, folder: Path) -> StackingPolicy:
    planner = Planner.from_checkpoint(folder, device=parameters.device, backend=parameters.backend)
    sampling = Sampling(parameters.steps, parameters.warm_steps, parameters.warm_level)
    policy = StackingPolicy(planner, sampling=sampling, tick_dt=1 / parameters.tick_rate, tail=TAIL, commit=parameters.commit)
    _warm_up(policy)
    return policy


def _maze_policy(parameters: PlannerParameters, folder: Path) -> MazePolicy:
    planner = Planner.from_checkpoint(folder, device=parameters.device, backend=parameters.backend)
    sampling = Sampling(parameters.steps, parameters.warm_steps, parameters.warm_level)
    policy = MazePolicy(planner, MazePolicy.maze_of(planner), sampling=sampling)
    _warm_up_maze(policy)
    return policy


def _warm_up_maze(policy: MazePolicy) -> None:
    """As `_warm_up`: the first plan of several candidates, and those from the last plan."""
    start, end = policy.maze.free_cells[0], policy.maze.free_cells[-1]
    observation = dict(zip(MAZE_CHANNELS, (*map(float, start), 0.0, 0.0)))
    policy.set_goal(MazeGoal(*map(float, end)), observation)
    for tick in range(3):
        policy.act(observation, tick / 100)


def _warm_up(policy: StackingPolicy) -> None:
    """Make plans of every kind, so that the first tick does not pay for what the network sets up on first use."""
    observation = dict.fromkeys(CHANNELS, 0.0) | dict(zip(JOINT_NAMES, inverse_kinematics(0.0, 0.5, 0.3)))
    for block, azimuth in zip(BLOCKS, (-1.5, -0.5, 0.5, 1.5)):  # a state as in training: others would use up the one warning
        observation |= {f'{block}.x': 0.6 * math.cos(azimuth), f'{block}.y': 0.6 * math.sin(azimuth), f'{block}.z': 0.03}
    for goal in (StackingGoal.parse('stack', []), StackingGoal.parse('relations', ['red on green'])):
        policy.set_goal(goal, observation)
        for tick in range(3):
            policy.act(observation, tick * policy.tick_dt)
