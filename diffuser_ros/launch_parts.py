"""What the launch files share: reading their arguments, and nodes that end together. Needs `launch`, real or stand-in."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription  # type: ignore[attr-defined]  # mypy takes the folder launch/ for it

__all__ = ['Arguments', 'description', 'end_together', 'folder', 'text']

DISCOVERY = 'ROS_AUTOMATIC_DISCOVERY_RANGE'


class Arguments:
    """The arguments of a launch file as they were given; RuntimeError, one sentence, for one that is not understood.

    declared  name -> default and description
    """

    def __init__(self, context: Any, declared: Mapping[str, tuple[str, str]]) -> None:
        self._declared = declared
        self._given = {name: LaunchConfiguration(name).perform(context).strip() for name in declared}

    def __getitem__(self, name: str) -> str:
        return self._given[name]

    def flag(self, name: str) -> bool:
        """An argument that is true or false."""
        if self[name].lower() not in ('true', 'false'):
            raise RuntimeError(f'{name}:={self[name]} is not understood: it must be true or false')
        return self[name].lower() == 'true'

    def number(self, name: str) -> int:
        """An argument that is a whole number, 0 or greater."""
        if not self[name].isdecimal():
            raise RuntimeError(f'{name}:={self[name]} is not understood: it must be a whole number, 0 or greater')
        return int(self[name])

    def command(self, file: str) -> str:
        """The command that launches `file` with what was given other than by default."""
        changed = [f'{name}:={value}' for name, value in self._given.items() if value != self._declared[name][0]]
        return shlex.join(['ros2', 'launch', 'diffuser_ros', Path(file).name, *changed])


def text(value: str) -> ParameterValue:
    """A parameter that stays a text, whatever it looks like."""
    return ParameterValue(value, value_type=str)


def folder(path: str) -> str:
    """The absolute path of a folder that is given from where the user is; nothing for nothing."""
    return os.path.abspath(os.path.expanduser(path)) if path else ''


def end_together(nodes: Mapping[str, Any]) -> list[Any]:
    """The nodes, by what ends with them ('the bridge has ended'); when one of them ends, for good or ill, so does everything."""
    handlers = [OnProcessExit(target_action=node, on_exit=[EmitEvent(event=Shutdown(reason=reason))])
                for reason, node in nodes.items()]
    return [*map(RegisterEventHandler, handlers), *nodes.values()]


def description(declared: Mapping[str, tuple[str, str]], nodes: Callable[[Any], list[Any]]) -> LaunchDescription:
    """Declare the arguments, keep discovery on this machine unless the user says otherwise, start the nodes."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=meaning)
                 for name, (default, meaning) in declared.items()]
    local = [] if DISCOVERY in os.environ else [SetEnvironmentVariable(DISCOVERY, 'LOCALHOST')]
    return LaunchDescription([*arguments, *local, OpaqueFunction(function=nodes)])
