"""What a launch description holds: actions, and handlers of events.

As in ROS 2, an entity is visited once, in order, and visiting may yield further entities. Events are queued by the
launcher and answered between visits.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_prefix

from .substitutions import (
    IfCondition,
    LaunchContext,
    LaunchError,
    NotCovered,
    StandIn,
    flat_parameters,
    in_package,
    parameter_value,
    text,
)


@dataclass(eq=False)
class LaunchDescription(StandIn):
    initial_entities: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        self.entities = list(self.initial_entities or ())

    def add_action(self, action: Any) -> None:
        self.entities.append(action)

    add_entity = add_action


@dataclass(eq=False)
class Action(StandIn):
    """An entity with a condition; `execute` returns the entities to visit next, if any."""

    _: KW_ONLY
    condition: IfCondition | None = None

    def execute(self, context: LaunchContext) -> Any:
        raise NotImplementedError


def visit(context: LaunchContext, entity: Any) -> None:
    """Execute an entity, or each of a list, and all that it yields; None is nothing."""
    if isinstance(entity, (list, tuple)):
        for one in entity:
            visit(context, one)
    elif isinstance(entity, LaunchDescription):
        visit(context, entity.entities)
    elif isinstance(entity, Action):
        if entity.condition is None or entity.condition.evaluate(context):
            visit(context, entity.execute(context))
    elif entity is not None:
        raise LaunchError(f'{entity!r} is not something that can be launched')


@dataclass(eq=False)
class DeclareLaunchArgument(Action):
    name: str
    _: KW_ONLY
    default_value: Any = None
    description: str = ''
    choices: Sequence[str] | None = None

    def execute(self, context: LaunchContext) -> None:
        if self.name not in context.launch_configurations:
            if self.default_value is None:
                raise LaunchError(f'launch argument {self.name!r} must be given: {self.name}:=<value>')
            context.launch_configurations[self.name] = text(context, self.default_value)
        value = context.launch_configurations[self.name]
        if self.choices is not None and value not in self.choices:
            raise LaunchError(f'launch argument {self.name!r} must be one of {", ".join(self.choices)}, not {value!r}')


@dataclass(eq=False)
class SetEnvironmentVariable(Action):
    name: Any
    value: Any

    def execute(self, context: LaunchContext) -> None:
        context.environment[text(context, self.name)] = text(context, self.value)


@dataclass(eq=False)
class GroupAction(Action):
    actions: Iterable[Any]
    _: KW_ONLY
    scoped: bool = True

    def execute(self, context: LaunchContext) -> None:
        with context.scope() if self.scoped else contextlib.nullcontext():
            visit(context, list(self.actions))


@dataclass(eq=False)
class PythonLaunchDescriptionSource(StandIn):
    launch_file_path: Any

    def load(self, context: LaunchContext) -> LaunchDescription:
        return load_launch_file(Path(text(context, self.launch_file_path)))


@dataclass(eq=False)
class IncludeLaunchDescription(Action):
    launch_description_source: PythonLaunchDescriptionSource
    _: KW_ONLY
    launch_arguments: Iterable[tuple[Any, Any]] | None = None

    def execute(self, context: LaunchContext) -> LaunchDescription:
        if not isinstance(self.launch_description_source, PythonLaunchDescriptionSource):
            raise NotCovered(f'including {self.launch_description_source!r} (not a PythonLaunchDescriptionSource)')
        for name, value in self.launch_arguments or ():
            context.launch_configurations[text(context, name)] = text(context, value)
        return self.launch_description_source.load(context)


@dataclass(eq=False)
class OpaqueFunction(Action):
    _: KW_ONLY
    function: Callable[..., Any]
    args: Iterable[Any] = ()
    kwargs: Mapping[str, Any] | None = None

    def execute(self, context: LaunchContext) -> Any:
        return self.function(context, *self.args, **(self.kwargs or {}))


@dataclass(eq=False)
class LogInfo(Action):
    _: KW_ONLY
    msg: Any

    def execute(self, context: LaunchContext) -> None:
        context.launcher.log('launch', text(context, self.msg))


@dataclass(eq=False)
class TimerAction(Action):
    _: KW_ONLY
    period: Any
    actions: Iterable[Any]

    def execute(self, context: LaunchContext) -> None:
        seconds = self.period if isinstance(self.period, (int, float)) else text(context, self.period)
        context.launcher.after(float(seconds), lambda: visit(context, list(self.actions)))


@dataclass(eq=False)
class PushRosNamespace(Action):
    namespace: Any

    def execute(self, context: LaunchContext) -> None:
        configurations = context.launch_configurations
        configurations['ros_namespace'] = join_namespace(configurations.get('ros_namespace'),
                                                         text(context, self.namespace))


@dataclass(eq=False)
class SetParameter(Action):
    name: Any
    value: Any

    def execute(self, context: LaunchContext) -> None:
        earlier = context.launch_configurations.get('global_params', {})
        context.launch_configurations['global_params'] = {
            **earlier, text(context, self.name): parameter_value(context, self.value)}


@dataclass(eq=False)
class ExecuteProcess(Action):
    """Starts a program. `output` is accepted for ROS 2's sake: with no log files, all output goes to the screen."""

    _: KW_ONLY
    cmd: Iterable[Any]
    name: Any = None
    cwd: Any = None
    additional_env: Mapping[Any, Any] = field(default_factory=dict)
    output: str = 'log'
    respawn: bool = False
    respawn_delay: float = 0.0
    on_exit: Any = None
    sigterm_timeout: Any = '5'
    sigkill_timeout: Any = '5'

    def __post_init__(self) -> None:
        if self.output not in ('screen', 'log', 'both'):
            raise NotCovered(f'output={self.output!r} of {type(self).__name__}()')

    def command(self, context: LaunchContext) -> list[str]:
        return [text(context, part) for part in self.cmd]

    def label(self) -> Any:
        """Name of the process in the output, None for that of the program."""
        return self.name

    def execute(self, context: LaunchContext) -> None:
        command, label = self.command(context), self.label()
        added = {text(context, name): text(context, value) for name, value in self.additional_env.items()}
        if self.on_exit is not None:
            context.launcher.handlers.append(OnProcessExit(target_action=self, on_exit=self.on_exit))
        context.launcher.start(
            self, command, name=os.path.basename(command[0]) if label is None else text(context, label),
            cwd=None if self.cwd is None else text(context, self.cwd), environment={**context.environment, **added},
            timeouts=(float(text(context, self.sigterm_timeout)), float(text(context, self.sigkill_timeout))))


@dataclass(eq=False)
class Node(ExecuteProcess):
    _: KW_ONLY
    executable: Any
    cmd: Iterable[Any] = field(default=(), init=False)
    package: Any = None
    namespace: Any = None
    exec_name: Any = None
    parameters: Sequence[Any] = ()
    remappings: Iterable[tuple[Any, Any]] = ()
    arguments: Iterable[Any] = ()
    ros_arguments: Iterable[Any] = ()

    def label(self) -> Any:
        return self.exec_name

    def command(self, context: LaunchContext) -> list[str]:
        program = text(context, self.executable)
        if self.package is not None:
            program = executable_path(text(context, self.package), program)
        command = [program, *(text(context, part) for part in self.arguments),
                   '--ros-args', *(text(context, part) for part in self.ros_arguments)]
        if self.name is not None:
            command += ['-r', f'__node:={text(context, self.name)}']
        namespace = join_namespace(context.launch_configurations.get('ros_namespace'),
                                   None if self.namespace is None else text(context, self.namespace))
        if namespace is not None:
            command += ['-r', f'__ns:={namespace}']
        for source in (context.launch_configurations.get('global_params', {}), *self.parameters):
            if isinstance(source, Mapping):
                parameters = flat_parameters(context, source)
                command += ['--params-file', context.launcher.parameter_file(parameters)] if parameters else []
            else:
                path = text(context, source)
                if not os.path.isfile(path):
                    raise LaunchError(f'parameter file {path} does not exist')
                command += ['--params-file', path]
        for before, after in self.remappings:
            command += ['-r', f'{text(context, before)}:={text(context, after)}']
        return command


def executable_path(package: str, executable: str) -> str:
    """Path of `lib/<package>/<executable>` under the package's prefix."""
    path = Path(in_package(get_package_prefix, package), 'lib', package, executable)
    if not os.access(path, os.X_OK):
        raise LaunchError(f'package {package!r} has no executable {executable!r}: {path} is missing')
    return str(path)


def join_namespace(base: str | None, added: str | None) -> str | None:
    """Absolute namespace of `added` below `base`; an absolute `added` stands alone, None adds nothing."""
    if added is None or added.startswith('/'):
        return base if added is None else added
    return f'{(base or "").rstrip("/")}/{added}'.rstrip('/') or '/'


@dataclass(eq=False)
class ShutdownEvent(StandIn):
    _: KW_ONLY
    reason: str = 'reason not given'
    due_to_sigint: bool = False


@dataclass(eq=False)
class ProcessEvent(StandIn):
    """A process has started (`returncode` None) or ended."""

    action: ExecuteProcess
    process_name: str
    cmd: list[str]
    pid: int
    returncode: int | None = None


@dataclass(eq=False)
class EventHandler(StandIn):
    """What to do, entities or a function of event and context, on which events."""

    def answer(self, event: Any) -> Any:
        """The entities or the function, None if the event is another one."""
        raise NotImplementedError

    def handle(self, context: LaunchContext, event: Any) -> None:
        entities = self.answer(event)
        visit(context, entities(event, context) if callable(entities) else entities)


@dataclass(eq=False)
class OnProcessExit(EventHandler):
    _: KW_ONLY
    on_exit: Any
    target_action: ExecuteProcess | None = None

    def answer(self, event: Any) -> Any:
        ended = isinstance(event, ProcessEvent) and event.returncode is not None
        return self.on_exit if ended and self.target_action in (None, event.action) else None


@dataclass(eq=False)
class OnProcessStart(EventHandler):
    _: KW_ONLY
    on_start: Any
    target_action: ExecuteProcess | None = None

    def answer(self, event: Any) -> Any:
        started = isinstance(event, ProcessEvent) and event.returncode is None
        return self.on_start if started and self.target_action in (None, event.action) else None


@dataclass(eq=False)
class OnShutdown(EventHandler):
    _: KW_ONLY
    on_shutdown: Any

    def answer(self, event: Any) -> Any:
        return self.on_shutdown if isinstance(event, ShutdownEvent) else None


@dataclass(eq=False)
class RegisterEventHandler(Action):
    event_handler: EventHandler

    def execute(self, context: LaunchContext) -> None:
        context.launcher.handlers.append(self.event_handler)


@dataclass(eq=False)
class EmitEvent(Action):
    _: KW_ONLY
    event: ShutdownEvent

    def execute(self, context: LaunchContext) -> None:
        if not isinstance(self.event, ShutdownEvent):
            raise NotCovered(f'EmitEvent of {self.event!r} (not a Shutdown)')
        context.launcher.events.append(self.event)


@dataclass(eq=False)
class ShutdownAction(Action):
    _: KW_ONLY
    reason: str = 'reason not given'

    def execute(self, context: LaunchContext) -> None:
        context.launcher.events.append(ShutdownEvent(reason=self.reason))


def load_launch_file(path: Path) -> LaunchDescription:
    """What the `generate_launch_description()` of a Python launch file returns.

    Raises:
        LaunchError: the file is missing, is not Python, has no such function, or raises.
    """
    if path.suffix != '.py':
        raise NotCovered(f'launch file {path} (not Python)')
    try:
        names: dict[str, Any] = {'__file__': str(path), '__name__': path.name.partition('.')[0]}
        exec(compile(path.read_bytes(), str(path), 'exec'), names)
        if 'generate_launch_description' not in names:
            raise LaunchError(f'launch file {path} has no function generate_launch_description()')
        description = names['generate_launch_description']()
    except LaunchError:
        raise
    except OSError as error:
        raise LaunchError(f'launch file {path} cannot be read: {error.strerror or error}') from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f'{path}, line {lines[-1]}' if lines else str(path)
        raise LaunchError(f'launch file {where}: {type(error).__name__}: {error}') from error
    if not isinstance(description, LaunchDescription):
        raise LaunchError(f'launch file {path}: generate_launch_description() returned no LaunchDescription')
    return description
