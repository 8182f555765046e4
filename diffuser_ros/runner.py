"""The command `diffuser-ros`: what `ros2 launch`, `run`, `service call` and `topic list` do, where pip is all there is.

    diffuser-ros launch kuka_stack.launch.py gui:=true
    diffuser-ros run planner_node
    diffuser-ros call /diffuser_planner/set_goal diffuser_msgs/srv/SetGoal "{task: stack}"
    diffuser-ros topics

PyPI has no `ros2` command. Where ROS 2's own is importable, each of these hands over to it.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ament_index_python.packages import get_packages_with_prefixes

from . import launch_standin
from .launch_standin import LaunchError

OWN_PACKAGES = ('diffuser_ros', 'diffuser_core')


class UsageError(Exception):
    """A wrong command line; the message is one sentence for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments, `sys.argv[1:]` if None.

    Returns:
        The exit code; 2 for a wrong command line or launch file, 130 if interrupted outside a launch.
    """
    options = _parser().parse_args(argv)
    # As our launch files do: whoever wants other machines to see the nodes sets it.
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    try:
        return options.command(options)
    except (UsageError, LaunchError) as error:
        print(f'diffuser-ros: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='diffuser-ros', description="ROS 2's launch, run, service call and topic list, for an environment made "
        "with pip alone. Where ROS 2's own commands are installed, they do the work.")
    verbs = parser.add_subparsers(required=True, metavar='launch | run | call | topics')

    launch = verbs.add_parser('launch', help='run a launch file')
    launch.add_argument('file', help='a path, or the name of a launch file of an installed package')
    launch.add_argument('arguments', nargs='*', metavar='name:=value', help='launch arguments')
    launch.add_argument('-s', '--show-args', action='store_true', help='show the arguments and end')
    launch.set_defaults(command=_launch)

    run = verbs.add_parser('run', help='run one executable of ours')
    run.add_argument('executable', help=f'its name in lib/{OWN_PACKAGES[0]} or lib/{OWN_PACKAGES[1]}')
    run.add_argument('arguments', nargs=argparse.REMAINDER, help='its arguments')
    run.set_defaults(command=_run)

    call = verbs.add_parser('call', help='call a service; ends with 1 if it answers success: false')
    call.add_argument('service', help='for example /diffuser_planner/set_goal')
    call.add_argument('type', help='for example diffuser_msgs/srv/SetGoal')
    call.add_argument('request', nargs='?', default='{}', help='YAML, for example "{task: stack}"')
    call.set_defaults(command=_call)

    topics = verbs.add_parser('topics', help='list the topics with their types')
    topics.set_defaults(command=_topics)
    return parser


def _importable(module: str) -> bool:
    """Whether a module can be imported; a folder that only bears its name (our own launch/, say) does not count."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def _hand_over(extension: str, *arguments: str) -> None:
    """Become ROS 2's own command, if the package with that verb can be imported; otherwise return."""
    if not _importable(extension):
        return
    sys.stdout.flush()
    program = 'import sys; from ros2cli.cli import main; sys.argv[0] = "ros2"; sys.exit(main())'
    os.execv(sys.executable, [sys.executable, '-c', program, *arguments])


def _launch(options: argparse.Namespace) -> int:
    path, given = _launch_file(options.file), {}
    for argument in options.arguments:
        name, separator, value = argument.partition(':=')
        if not separator or not name:
            raise UsageError(f'launch arguments are written name:=value, not {argument!r}')
        given[name] = value
    _hand_over('ros2launch', 'launch', str(path), *options.arguments, *(['--show-args'] if options.show_args else []))
    if _importable('launch'):
        raise UsageError("ROS 2's launch is installed, but not the package ros2launch, which is needed then")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a process writes must never end the launch because this terminal cannot show it.
        sys.stdout.reconfigure(errors='replace')
    print(f"diffuser-ros: standing in for ROS 2's launch, which is not installed here: {path}", flush=True)
    with launch_standin.stand_in_modules():
        if options.show_args:
            print(launch_standin.describe_arguments(path))
            return 0
        return launch_standin.launch(path, given)


def _launch_file(name: str) -> Path:
    """The file of that path; else the one of that name in share/<package>/launch, in our packages first."""
    if os.path.exists(name) or os.sep in name:
        if not os.path.isfile(name):
            raise UsageError(f'there is no launch file {name}')
        return Path(name).resolve()
    packages = get_packages_with_prefixes()
    for package in sorted(packages, key=lambda package: (package not in OWN_PACKAGES, package)):
        path = Path(packages[package], 'share', package, 'launch', name)
        if path.is_file():
            return path
    raise UsageError(f'there is no launch file {name}, neither here nor in share/*/launch of an installed package')


def _run(options: argparse.Namespace) -> int:
    packages = get_packages_with_prefixes()
    found = {}
    for package in set(OWN_PACKAGES) & set(packages):
        folder = Path(packages[package], 'lib', package)
        found.update({path.name: (package, path) for path in sorted(folder.glob('*')) if os.access(path, os.X_OK)})
    if options.executable not in found:
        raise UsageError(f'there is no executable {options.executable}; there are: {", ".join(found)}')
    package, path = found[options.executable]
    _hand_over('ros2run', 'run', package, options.executable, *options.arguments)
    os.execv(path, [str(path), *options.arguments])


def _call(options: argparse.Namespace) -> int:
    _hand_over('ros2service', 'service', 'call', options.service, options.type, options.request)
    from .ros_queries import QueryError, call

    try:
        return call(options.service, options.type, options.request)
    except QueryError as error:
        raise UsageError(str(error)) from None


def _topics(options: argparse.Namespace) -> int:
    _hand_over('ros2topic', 'topic', 'list', '-t')
    from .ros_queries import print_topics

    print_topics()
    return 0


if __name__ == '__main__':
    sys.exit(main())
