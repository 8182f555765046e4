"""Any Gymnasium environment as a robot: its bridge, and a node that runs episodes and reports their returns.

There is no planner here yet for robots other than those of kuka_stack.launch.py and maze2d.launch.py: actions are drawn at random
(driver:=random), or come from a node of your own that publishes on `command` (driver:=external). For example

    ros2 launch diffuser_ros mujoco.launch.py env:=Hopper-v5 realtime:=false episodes:=3
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
    'env': ('Hopper-v5', "id of the environment; 'package:Id-v0' imports the package first"),
    'kwargs': ('', "arguments of the environment as YAML or JSON: '{max_episode_steps: 300}'"),
    'driver': ('random', "who drives: 'random', actions drawn at random; 'external', whoever publishes on command"),
    'realtime': ('true', 'true: the simulation follows the clock; false: it waits for every command'),
    'publish_clock': ('false', 'publish the simulated time on /clock, for nodes with use_sim_time (true or false)'),
    'episodes': ('1', 'number of episodes to run'),
    'seed': ('0', 'seed of the first episode, 0 or greater; further episodes count on'),
    'out': ('runs/mujoco', 'folder for summary.json, episodes.jsonl and episode.mp4'),
    'video': ('false', 'make a video of the first episode; needs EGL or OSMesa (true or false)'),
}


def nodes(context):
    """The two nodes; when one of them ends, for good or ill, so does everything."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    changed = [f'{name}:={value}' for name, value in given.items() if value != ARGUMENTS[name][0]]
    if given['driver'] not in ('random', 'external'):
        raise RuntimeError(f'driver:={given["driver"]} is not understood: it must be random or external')
    flags = {}
    for name in ('realtime', 'publish_clock', 'video'):
        if given[name].lower() not in ('true', 'false'):
            raise RuntimeError(f'{name}:={given[name]} is not understood: it must be true or false')
        flags[name] = given[name].lower() == 'true'
    numbers = {}
    for name in ('episodes', 'seed'):
        if not given[name].isdecimal():
            raise RuntimeError(f'{name}:={given[name]} is not understood: it must be a whole number, 0 or greater')
        numbers[name] = int(given[name])
    out = os.path.abspath(os.path.expanduser(given['out']))
    command = shlex.join(['ros2', 'launch', 'diffuser_ros', Path(__file__).name, *changed])
    words = {name: ParameterValue(given[name], value_type=str) for name in ('env', 'kwargs', 'driver')}
    recording = ParameterValue(os.path.join(out, '.episode.npz'), value_type=str)
    bridge = Node(package='diffuser_ros', executable='gym_bridge', name='gym_bridge', output='screen',
                  parameters=[{'env': words['env'], 'kwargs': words['kwargs'], 'seed': numbers['seed'],
                               'realtime': flags['realtime'], 'publish_clock': flags['publish_clock'], 'recording': recording}])
    episode = Node(package='diffuser_ros', executable='gym_episode_node', name='episode', output='screen',
                   parameters=[{**numbers, **words, 'out': ParameterValue(out, value_type=str), 'video': flags['video'],
                                'realtime': flags['realtime'], 'command': ParameterValue(command, value_type=str)}])
    ends = [(episode, 'the episodes have ended'), (bridge, 'the bridge has ended')]
    handlers = [OnProcessExit(target_action=node, on_exit=[EmitEvent(event=Shutdown(reason=reason))])
                for node, reason in ends]
    return [*map(RegisterEventHandler, handlers), bridge, episode]


def generate_launch_description():
    """Declare the arguments, keep discovery on this machine unless the user says otherwise, start the nodes."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    discovery = 'ROS_AUTOMATIC_DISCOVERY_RANGE'
    local = [] if discovery in os.environ else [SetEnvironmentVariable(discovery, 'LOCALHOST')]
    return LaunchDescription([*arguments, *local, OpaqueFunction(function=nodes)])
