"""The robots by the names that the parameter `robot` takes."""

from __future__ import annotations

from collections.abc import Callable

from diffuser_ros.robots.gym import MazeRobot
from diffuser_ros.robots.kuka import KukaRobot
from diffuser_ros.robots.robot import Robot
from diffuser_ros.robots.runner import RunningRobot

__all__ = ['ROBOT_KINDS']

ROBOT_KINDS: dict[str, Callable[[], Robot]] = {'kuka': KukaRobot, 'gym': MazeRobot, 'runner': RunningRobot}
