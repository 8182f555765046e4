"""What becomes text when it is needed: substitutions, conditions, parameter values; and the context they read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory


class LaunchError(Exception):
    """A launch file or its arguments are wrong; the message is one sentence for the user."""


class NotCovered(LaunchError):
    """A launch file uses something that this stand-in does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not covered by diffuser-ros's stand-in for launch: ROS 2's own launch is needed")


class StandInType(type):
    """Refuses unknown keyword arguments by name."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in cls.__dataclass_fields__:  # type: ignore[attr-defined]
                raise NotCovered(f'argument {name!r} of {cls.__name__}()')
        return super().__call__(*args, **kwargs)


@dataclass(eq=False)
class StandIn(metaclass=StandInType):
    """Base of everything that a launch file can hold; refuses unknown attributes by name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):
            raise AttributeError(name)
        raise NotCovered(f'attribute {name!r} of {type(self).__name__}')


@dataclass(eq=False)
class LaunchContext(StandIn):
    """What entities share while they are visited.

    Attributes:
        launcher: starts processes, keeps timers and events (`runner.Launcher`).
        launch_configurations: text by name; as in launch_ros, 'ros_namespace' and 'global_params' are kept here too.
        environment: variables for the processes to start.
    """

    launcher: Any
    launch_configurations: dict[str, Any]
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def perform_substitution(self, substitution: Any) -> str:
        return text(self, substitution)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Undo at the end what happens to configurations and environment meanwhile."""
        before = dict(self.launch_configurations), dict(self.environment)
        try:
            yield
        finally:
            self.launch_configurations, self.environment = before


# Substitutions


@dataclass(eq=False)
class Substitution(StandIn):
    def perform(self, context: LaunchContext) -> str:
        raise NotImplementedError


def text(context: LaunchContext, value: Any) -> str:
    """Text of a string, a path, a substitution or a list of them (joined without a separator)."""
    if isinstance(value, Substitution):
        return value.perform(context)
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return ''.join(text(context, part) for part in value)
    raise LaunchError(f'expected text or a substitution, got {value!r}')


@dataclass(eq=False)
class TextSubstitution(Substitution):
    _: KW_ONLY
    text: str

    def perform(self, context: LaunchContext) -> str:
        return self.text


@dataclass(eq=False)
class LaunchConfiguration(Substitution):
    variable_name: Any
    _: KW_ONLY
    default: Any = None

    def perform(self, context: LaunchContext) -> str:
        name = text(context, self.variable_name)
        if name in context.launch_configurations:
            return context.launch_configurations[name]
        if self.default is None:
            raise LaunchError(f'launch configuration {name!r} is used but neither declared before nor given')
        return text(context, self.default)


@dataclass(eq=False)
class EnvironmentVariable(Substitution):
    name: Any
    _: KW_ONLY
    default_value: Any = None

    def perform(self, context: LaunchContext) -> str:
        name = text(context, self.name)
        if name in context.environment:
            return context.environment[name]
        if self.default_value is None:
            raise LaunchError(f'environment variable {name!r} is not set')
        return text(context, self.default_value)


@dataclass(eq=False)
class PathJoinSubstitution(Substitution):
    substitutions: Iterable[Any]

    def perform(self, context: LaunchContext) -> str:
        return os.path.join(*(text(context, part) for part in self.substitutions))


@dataclass(eq=False)
class FindPackageShare(Substitution):
    package: Any

    def perform(self, context: LaunchContext) -> str:
        return in_package(get_package_share_directory, text(context, self.package))


def in_package(find: Callable[[str], str], package: str) -> str:
    """`find(package)` of ament_index, with its error told in one sentence."""
    try:
        return find(package)
    except (PackageNotFoundError, ValueError):
        raise LaunchError(f'package {package!r} is not installed under any prefix of AMENT_PREFIX_PATH '
                          f'({os.environ.get("AMENT_PREFIX_PATH", "not set")})') from None


# Parameters


@dataclass(eq=False)
class ParameterValue(StandIn):
    """A parameter whose type is said: str keeps the text, any other is read as YAML and checked."""

    value: Any
    _: KW_ONLY
    value_type: type | None = None

    def __post_init__(self) -> None:
        if self.value_type not in (None, bool, int, float, str):
            raise NotCovered(f'value_type {self.value_type!r} of ParameterValue()')

    def evaluate(self, context: LaunchContext) -> Any:
        written = text(context, self.value)
        if self.value_type is str:
            return written
        value = _from_yaml(written)
        if self.value_type is float and type(value) is int:
            return float(value)
        if self.value_type is not None and type(value) is not self.value_type:
            raise LaunchError(f'expected a parameter of type {self.value_type.__name__}, got {written!r}')
        return value


def _from_yaml(written: str) -> Any:
    """A parameter value from text, typed as YAML types it; empty text stays text."""
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError:
        raise LaunchError(f'parameter value {written!r} is not YAML; for plain text use '
                          'ParameterValue(..., value_type=str)') from None
    return '' if value is None else value


def parameter_value(context: LaunchContext, value: Any) -> Any:
    """Value of an entry of `parameters`: as in launch_ros, substitutions are read as YAML, a plain string is text."""
    if isinstance(value, ParameterValue):
        return value.evaluate(context)
    if isinstance(value, Substitution):
        return _from_yaml(text(context, value))
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Sequence):
        if any(isinstance(part, Substitution) for part in value):
            return _from_yaml(text(context, value))
        parts = [_from_yaml(text(context, part)) if isinstance(part, (list, tuple)) else part for part in value]
        return [float(part) for part in parts] if {type(part) for part in parts} == {int, float} else parts
    raise LaunchError(f'a parameter cannot have the value {value!r}')


def flat_parameters(context: LaunchContext, values: Mapping[Any, Any], prefix: str = '') -> dict[str, Any]:
    """Parameters of a dictionary, nested names joined with dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + text(context, key)
        nested = isinstance(value, Mapping)
        flat.update(flat_parameters(context, value, name + '.') if nested else {name: parameter_value(context, value)})
    return flat


# Conditions


@dataclass(eq=False)
class IfCondition(StandIn):
    predicate_expression: Any

    def evaluate(self, context: LaunchContext) -> bool:
        word = text(context, self.predicate_expression).strip()
        if word.lower() not in ('true', 'false', '1', '0'):
            raise LaunchError(f'a condition must be true, false, 1 or 0, not {word!r}')
        return word.lower() in ('true', '1')


@dataclass(eq=False)
class UnlessCondition(IfCondition):
    def evaluate(self, context: LaunchContext) -> bool:
        return not super().evaluate(context)
