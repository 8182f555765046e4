"""What a policy is made of, in words: `policies` makes it, and needs PyTorch for that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffuser_core.envs.maze_layout import CHANNELS, FORCES
from diffuser_core.envs.stacking_motion import COMMIT
from diffuser_core.sampling import DEFAULT_SAMPLING, Sampling
from diffuser_core.trajectory import RETURN

__all__ = ['ROBOTS', 'PolicyError', 'PolicySettings', 'robot_of']

ROBOTS = ('kuka', 'gym', 'runner')
"""The robots that there are policies for: the arm that stacks blocks, a ball in a maze, a MuJoCo robot that runs."""

class PolicyError(ValueError):
    """A policy that cannot be made; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class PolicySettings:
    """What a policy is made of.

    robot       one of `ROBOTS`, or 'auto': the one that the checkpoint's channels are about
    checkpoint  folder; empty: the one that is shipped for the robot 'kuka'
    device, backend, threads, seed, sampling  of the planner
    candidates  robots 'gym' and 'runner': plans drawn at once, of which the best is followed
    guide_scale  robot 'runner': see `LocomotionSettings`
    aim_offset  robot 'runner': how far above or below the checkpoint's own aim, in deviations of the returns in the data
    tick_rate, tail, commit  robot 'kuka': control ticks a second, ticks of a command, plan steps kept of the last plan
    """

    robot: str = 'auto'
    checkpoint: str = ''
    device: str = 'cpu'
    backend: str = 'traced'
    threads: int = 1
    seed: int = 0
    sampling: Sampling = DEFAULT_SAMPLING
    tick_rate: float = 24.0
    tail: int = 12
    commit: int = COMMIT
    candidates: int = 8
    guide_scale: float = 0.0
    aim_offset: float = 0.0


def robot_of(settings: PolicySettings) -> str:
    """The robot that the settings name, or that the checkpoint's channels are about; PolicyError if there is none."""
    if settings.robot in ROBOTS:
        return settings.robot
    if settings.robot != 'auto':
        raise PolicyError(f"unknown robot {settings.robot!r}; there are auto, {', '.join(ROBOTS)}")
    if not settings.checkpoint:
        return 'kuka'
    from diffuser_core.checkpoint import Checkpoint  # loads torch

    try:
        channels = Checkpoint.load(Path(settings.checkpoint).expanduser()).channels.names
    except (ValueError, OSError) as error:
        raise PolicyError(f'the checkpoint cannot be used: {error}') from error
    if {*CHANNELS, *FORCES} <= set(channels):
        return 'gym'
    return 'runner' if all(name == RETURN or name.startswith(('action.', 'obs.')) for name in channels) else 'kuka'
