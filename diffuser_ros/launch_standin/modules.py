"""The stand-in's classes under the names by which launch files import them."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

from .entities import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    GroupAction,
    IncludeLaunchDescription,
    LaunchDescription,
    LogInfo,
    Node,
    OnProcessExit,
    OnProcessStart,
    OnShutdown,
    OpaqueFunction,
    PushRosNamespace,
    PythonLaunchDescriptionSource,
    RegisterEventHandler,
    SetEnvironmentVariable,
    SetParameter,
    ShutdownAction,
    ShutdownEvent,
    TimerAction,
)
from .substitutions import (
    EnvironmentVariable,
    FindPackageShare,
    IfCondition,
    LaunchConfiguration,
    LaunchContext,
    NotCovered,
    ParameterValue,
    PathJoinSubstitution,
    Substitution,
    TextSubstitution,
    UnlessCondition,
)

MODULES: dict[str, dict[str, Any]] = {
    'launch': {c.__name__: c for c in (LaunchContext, LaunchDescription, Substitution)},
    'launch.actions': {'Shutdown': ShutdownAction, **{c.__name__: c for c in (
        DeclareLaunchArgument, EmitEvent, ExecuteProcess, GroupAction, IncludeLaunchDescription, LogInfo,
        OpaqueFunction, RegisterEventHandler, SetEnvironmentVariable, TimerAction)}},
    'launch.conditions': {c.__name__: c for c in (IfCondition, UnlessCondition)},
    'launch.event_handlers': {c.__name__: c for c in (OnProcessExit, OnProcessStart, OnShutdown)},
    'launch.events': {'Shutdown': ShutdownEvent},
    'launch.launch_description_sources': {'PythonLaunchDescriptionSource': PythonLaunchDescriptionSource},
    'launch.substitutions': {c.__name__: c for c in (
        EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution, TextSubstitution)},
    'launch_ros': {},
    'launch_ros.actions': {c.__name__: c for c in (Node, PushRosNamespace, SetParameter)},
    'launch_ros.parameter_descriptions': {'ParameterValue': ParameterValue},
    'launch_ros.substitutions': {'FindPackageShare': FindPackageShare},
}


class _Module(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        raise NotCovered(f'{self.__name__}.{name}')


class _Refuse:
    """Import hook: a module of launch or launch_ros that is not among MODULES is refused by name."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.startswith(('launch.', 'launch_ros.')):
            raise NotCovered(name)


@contextlib.contextmanager
def stand_in_modules() -> Iterator[None]:
    """While the context lasts, `import launch` and `import launch_ros` give the stand-in."""
    modules = {name: _Module(name) for name in MODULES}
    for name, module in modules.items():
        vars(module).update(MODULES[name])
        parent, _, child = name.rpartition('.')
        if parent:
            setattr(modules[parent], child, module)
    earlier = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    sys.meta_path.insert(0, _Refuse)
    try:
        yield
    finally:
        sys.meta_path.remove(_Refuse)
        for name in modules:
            del sys.modules[name]
        sys.modules.update(earlier)
