"""Any Gymnasium environment with Box spaces as a robot behind two topics, `state` and `command`, for some episodes.

No planner ships for such robots, mazes excepted (maze2d.launch.py). So who drives is one of these:

    driver:=external   (default) whoever publishes diffuser_msgs/NamedVector on `command`; the first episode waits for that
    driver:=random     actions drawn evenly from the action space: shows that all of it runs, and nothing about planning

Everything shuts down when the last episode has been reported, or when a part of it dies. For example

    ros2 launch diffuser_ros mujoco.launch.py env:=Hopper-v5 driver:=random episodes:=3
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
    'env': ('Hopper-v5', "id of the environment; 'package:Id-v0' imports a package first"),
    'kwargs': ('', "its arguments as YAML or JSON: kwargs:='{max_episode_steps: 300}'"),
    'driver': ('external', "who drives: 'external', whoever publishes on the topic command; or 'random', for a look"),
    'episodes': ('1', 'number of episodes to run'),
    'seed': ('0', 'seed of the first episode, 0 or greater; further episodes count on'),
    'realtime': ('true', 'true: the simulation follows the clock; false: it waits for every command'),
    'command_timeout': ('0.1', 'in real time, age beyond which a command is no longer in force and the neutral action is done [s]'),
    'publish_clock': ('false', "publish the simulation's time on /clock (true or false), for nodes with use_sim_time"),
    'out': ('runs/mujoco', 'folder for summary.json, episodes.jsonl and episode.mp4'),
    'video': ('false', 'make a video of the first episode when all are over (true or false)'),
}


def nodes(context):
    """Bridge and episodes; when one of them ends, for good or ill, so does everything."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    changed = [f'{name}:={value}' for name, value in given.items() if value != ARGUMENTS[name][0]]
    out = os.path.abspath(os.path.expanduser(given['out']))
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
    try:
        timeout = float(given['command_timeout'])
    except ValueError:
        raise RuntimeError(f'command_timeout:={given["command_timeout"]} is not understood: it must be a number') from None
    if given['driver'] not in ('external', 'random'):
        raise RuntimeError(f'driver:={given["driver"]} is not understood: it must be external or random')
    words = {name: ParameterValue(given[name], value_type=str) for name in ('env', 'kwargs')}
    command = shlex.join(['ros2', 'launch', 'diffuser_ros', Path(__file__).name, *changed])
    recording = os.path.join(out, '.episode.npz') if flags['video'] else ''

    bridge = Node(package='diffuser_ros', executable='gym_bridge', name='gym_bridge', output='screen',
                  parameters=[{**words, 'seed': numbers['seed'], 'realtime': flags['realtime'], 'command_timeout': timeout,
                               'publish_clock': flags['publish_clock'],
                               'recording': ParameterValue(recording, value_type=str)}])
    episode = Node(package='diffuser_ros', executable='gym_episode_node', name='episode', output='screen',
                   parameters=[{**words, **numbers, 'driver': given['driver'], 'out': ParameterValue(out, value_type=str),
                                'video': flags['video'], 'realtime': flags['realtime'],
                                'command': ParameterValue(command, value_type=str)}])
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
