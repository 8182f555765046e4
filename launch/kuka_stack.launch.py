"""The simulated Kuka arm stacks blocks: bridge, planner, and a node that runs episodes and reports how they went.

Everything shuts down when the last episode has been reported, or when a part of it dies. For example

    ros2 launch diffuser_ros kuka_stack.launch.py task:=relations relations:='red on green, blue on red'
"""

import os
import shlex
from pathlib import Path

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
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

ARGUMENTS = {
    'gui': ('false', 'open a window that shows the simulation (true or false)'),
    'realtime': ('true', 'true: the simulation follows the clock; false: it waits for every command of the planner'),
    'episodes': ('1', 'number of episodes to run, of 16 simulated seconds each'),
    'seed': ('0', 'seed of the first start layout, 0 or greater; further episodes count on'),
    'task': ('unconditional', "'unconditional', a tower of all blocks; 'conditional', a tower in an order drawn from the seed; "
             "'rearrangement', start and goal drawn from the seed; or 'relations', the arrangement given"),
    'relations': ('', "for task:=relations, what shall stand on what: 'red on green, blue on red'"),
    'checkpoint': ('', 'folder of a trained planner; empty: the one that comes with the package'),
    'out': ('runs/demo', 'folder for summary.json, episodes.jsonl, plan_vs_executed.png and episode.mp4'),
    'video': ('true', 'make a video of the first episode (true or false)'),
}
CONFIG = Path(__file__).parents[1] / 'config' / 'kuka_planner.yaml'


def nodes(context):
    """The three nodes; when one of them ends, for good or ill, so does everything."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    changed = [f'{name}:={value}' for name, value in given.items() if value != ARGUMENTS[name][0]]
    for name in ('checkpoint', 'out'):
        if given[name]:
            given[name] = os.path.abspath(os.path.expanduser(given[name]))
    flags = {}
    for name in ('gui', 'realtime', 'video'):
        if given[name].lower() not in ('true', 'false'):
            raise RuntimeError(f'{name}:={given[name]} is not understood: it must be true or false')
        flags[name] = given[name].lower() == 'true'
    numbers = {}
    for name in ('episodes', 'seed'):
        if not given[name].isdecimal():
            raise RuntimeError(f'{name}:={given[name]} is not understood: it must be a whole number, 0 or greater')
        numbers[name] = int(given[name])
    words = {name: ParameterValue(given[name], value_type=str) for name in ('task', 'relations', 'checkpoint', 'out')}
    command = shlex.join(['ros2', 'launch', 'diffuser_ros', Path(__file__).name, *changed])

    bridge = Node(package='diffuser_ros', executable='kuka_bridge', name='kuka_bridge', output='screen',
                  parameters=[{'realtime': flags['realtime'], 'gui': flags['gui'], 'seed': numbers['seed']}])
    planner = Node(package='diffuser_ros', executable='planner_node', name='diffuser_planner', output='screen',
                   parameters=[str(CONFIG), {'checkpoint': words['checkpoint'], 'lock_step': not flags['realtime']}])
    episode = Node(package='diffuser_ros', executable='episode_node', name='episode', output='screen',
                   parameters=[{**numbers, 'task': words['task'], 'relations': words['relations'], 'out': words['out'],
                                'video': flags['video'], 'realtime': flags['realtime'],
                                'command': ParameterValue(command, value_type=str)}])
    ends = [(episode, 'the episodes have ended'), (bridge, 'the bridge has ended'), (planner, 'the planner has ended')]
    handlers = [OnProcessExit(target_action=node, on_exit=[EmitEvent(event=Shutdown(reason=reason))])
                for node, reason in ends]
    return [*map(RegisterEventHandler, handlers), bridge, planner, episode]


def generate_launch_description():
    """Declare the arguments, keep discovery on this machine unless the user says otherwise, start the nodes."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    discovery = 'ROS_AUTOMATIC_DISCOVERY_RANGE'
    local = [] if discovery in os.environ else [SetEnvironmentVariable(discovery, 'LOCALHOST')]
    return LaunchDescription([*arguments, *local, OpaqueFunction(function=nodes)])
