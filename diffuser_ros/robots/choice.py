"""Which robot a planner node drives."""

from __future__ import annotations

from collections.abc import Callable, Collection

from diffuser_ros.robots.gym import ACTIONS, CHANNELS, MazeRobot
from diffuser_ros.robots.kuka import KukaRobot
from diffuser_ros.robots.robot import Robot

__all__ = ['ROBOTS', 'choose_robot']

ROBOTS: dict[str, Callable[[], Robot]] = {'kuka': KukaRobot, 'gym': MazeRobot}
"""The robots by the names that the parameter `robot` takes."""


def choose_robot(name: str, channels: Collection[str]) -> str:
    """The robot that the parameter names; for 'auto' the one that a checkpoint with these channels drives. ValueError for an
    unknown name."""
    if name in ROBOTS:
        return name
    if name != 'auto':
        raise ValueError(f"unknown robot {name!r}; there are auto, {', '.join(ROBOTS)}")
    return 'gym' if {*CHANNELS, *ACTIONS} <= set(channels) else 'kuka'
