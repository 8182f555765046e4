"""What the planner node asks of the library, and how its policy is made from parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, inverse_kinematics
from diffuser_core.envs.stacking import BLOCKS, CHANNELS
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_policy import Decision, StackingPolicy
from diffuser_core.planner import Planner, Sampling
from diffuser_core.shipped import checkpoint_folder
from diffuser_ros.parameters import PlannerParameters, StartError

__all__ = ['TAIL', 'Policy', 'load_policy']

TAIL = 12
"""Points of a command: what the arm follows, half a second at 24 Hz, if no newer command arrives."""


class Policy(Protocol):
    """The part of StackingPolicy that the node uses."""

    @property
    def replans(self) -> int: ...
    def reset(self, seed: int) -> None: ...
    def set_goal(self, goal: StackingGoal, observation: Mapping[str, float]) -> None: ...
    def clear_goal(self) -> None: ...
    def act(self, observation: Mapping[str, float], now: float) -> Decision: ...


def load_policy(parameters: PlannerParameters) -> StackingPolicy:
    """The stacking policy on the checkpoint that `parameters` name, warmed up; StartError if it cannot be used."""
    torch.set_num_threads(parameters.threads)
    try:
        torch.empty(0, device=parameters.device)
    except (RuntimeError, AssertionError) as error:
        raise StartError(f'the device {parameters.device!r} cannot be used: {str(error).splitlines()[0]}') from error
    folder = Path(parameters.checkpoint).expanduser() if parameters.checkpoint else checkpoint_folder('kuka_stack')
    sampling = Sampling(parameters.steps, parameters.warm_steps, parameters.warm_level)
    try:
        planner = Planner.from_checkpoint(folder, device=parameters.device, backend=parameters.backend)
        policy = StackingPolicy(planner, sampling=sampling, tick_dt=1 / parameters.tick_rate, tail=TAIL,
                                commit=parameters.commit)
        _warm_up(policy)
    except (ValueError, OSError, FloatingPointError) as error:
        where = '' if str(folder) in str(error) else f'{folder}: '
        raise StartError(f'the checkpoint cannot be used: {where}{error}') from error
    policy.reset(parameters.seed)
    return policy


def _warm_up(policy: StackingPolicy) -> None:
    """Make plans of every kind, so that the first tick does not pay for what the network sets up on first use."""
    observation = dict.fromkeys(CHANNELS, 0.0) | dict(zip(JOINT_NAMES, inverse_kinematics(0.0, 0.5, 0.3)))
    for block, azimuth in zip(BLOCKS, (-1.5, -0.5, 0.5, 1.5)):  # a state as in training: others would use up the one warning
        observation |= {f'{block}.x': 0.6 * math.cos(azimuth), f'{block}.y': 0.6 * math.sin(azimuth), f'{block}.z': 0.03}
    for goal in (StackingGoal.parse('stack', []), StackingGoal.parse('relations', ['red on green'])):
        policy.set_goal(goal, observation)
        for tick in range(3):
            policy.act(observation, tick * policy.tick_dt)
