"""Policies made ready to drive a robot: a checkpoint, the way to plan, and every kind of plan made once before the first tick."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, inverse_kinematics
from diffuser_core.envs.locomotion_policy import LocomotionPolicy, LocomotionSettings, aim_of
from diffuser_core.envs.maze_layout import CHANNELS as MAZE_CHANNELS
from diffuser_core.envs.maze_motion import MazeGoal
from diffuser_core.envs.maze_policy import MazePolicy
from diffuser_core.envs.policy_settings import PolicyError, PolicySettings, robot_of
from diffuser_core.envs.stacking import BLOCKS, CHANNELS
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.planner import Planner
from diffuser_core.shipped import checkpoint_folder

__all__ = ['make_policy']


def make_policy(settings: PolicySettings) -> StackingPolicy | MazePolicy | LocomotionPolicy:
    """The policy, warmed up; PolicyError if it cannot be made. Sets the number of PyTorch's threads."""
    torch.set_num_threads(settings.threads)
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        raise PolicyError(f'the device {settings.device!r} cannot be used: {str(error).splitlines()[0]}') from error
    robot = robot_of(settings)
    if robot != 'kuka' and not settings.checkpoint:
        raise PolicyError(f'the robot {robot!r} needs the parameter checkpoint: a folder')
    folder = Path(settings.checkpoint).expanduser() if settings.checkpoint else checkpoint_folder('kuka_stack')
    try:
        planner = Planner.from_checkpoint(folder, device=settings.device, backend=settings.backend)
        policy = MAKERS[robot](planner, settings)
    except (ValueError, OSError, FloatingPointError) as error:
        where = '' if str(folder) in str(error) else f'{folder}: '
        raise PolicyError(f'the checkpoint cannot be used: {where}{error}') from error
    policy.reset(settings.seed)
    return policy


def _stacking_policy(planner: Planner, settings: PolicySettings) -> StackingPolicy:
    policy = StackingPolicy(planner, sampling=settings.sampling, tick_dt=1 / settings.tick_rate, tail=settings.tail,
                            commit=settings.commit)
    observation = dict.fromkeys(CHANNELS, 0.0) | dict(zip(JOINT_NAMES, inverse_kinematics(0.0, 0.5, 0.3)))
    for block, azimuth in zip(BLOCKS, (-1.5, -0.5, 0.5, 1.5)):  # a state as in training: others would use up the one warning
        observation |= {f'{block}.x': 0.6 * math.cos(azimuth), f'{block}.y': 0.6 * math.sin(azimuth), f'{block}.z': 0.03}
    for goal in (StackingGoal.parse('stack', []), StackingGoal.parse('relations', ['red on green'])):
        policy.set_goal(goal, observation)
        for tick in range(3):
            policy.act(observation, tick * policy.tick_dt)
    return policy


def _maze_policy(planner: Planner, settings: PolicySettings) -> MazePolicy:
    """The first plan, of several candidates, and those made from the last plan."""
    policy = MazePolicy(planner, MazePolicy.maze_of(planner), sampling=settings.sampling, candidates=settings.candidates)
    start, end = policy.maze.free_cells[0], policy.maze.free_cells[-1]
    observation = dict(zip(MAZE_CHANNELS, (*map(float, start), 0.0, 0.0)))
    policy.set_goal(MazeGoal(*map(float, end)), observation)
    for tick in range(3):
        policy.act(observation, tick / 100)
    return policy


def _locomotion_policy(planner: Planner, settings: PolicySettings) -> LocomotionPolicy:
    aim = aim_of(planner.checkpoint) + settings.aim_offset
    policy = LocomotionPolicy(planner, LocomotionSettings(settings.guide_scale, settings.candidates, aim=aim,
                                                          sampling=replace(settings.sampling, rule='score')))
    middle = planner.checkpoint.normalizer.offset.tolist()
    observation = dict(zip(planner.channels.names, middle))
    for tick in range(3):
        policy.act(observation, tick * planner.step_dt)
    return policy


MAKERS: dict[str, Callable[[Planner, PolicySettings], StackingPolicy | MazePolicy | LocomotionPolicy]] = {
    'kuka': _stacking_policy, 'gym': _maze_policy, 'runner': _locomotion_policy}
