"""A ball drives through a maze: bridge, planner, and a node that runs episodes and reports how they went.

Everything shuts down when the last episode has been reported, or when a part of it dies. For example

    ros2 launch diffuser_ros maze2d.launch.py size:=large multi_task:=true episodes:=5

While it drives, the goal can be changed by the planner's service ~/set_goal, with the task 'state', the channels x and y and
two values in metres.
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

SIZES = {'umaze': 'UMaze', 'medium': 'Medium', 'large': 'Large', 'u': 'UMaze', 'm': 'Medium', 'l': 'Large'}
ARGUMENTS = {
    'size': ('umaze', 'which maze: umaze, medium or large (or u, m, l)'),
    'multi_task': ('false', 'true: a goal drawn in every episode (Multi2D); false: the goal of the maze (Maze2D)'),
    'goal': ('', "goal of every episode, 'x, y' in metres; empty: as multi_task says"),
    'realtime': ('true', 'true: the simulation follows the clock; false: it waits for every command of the planner'),
    'episodes': ('1', 'number of episodes to run, of 3 to 8 simulated seconds each'),
    'seed': ('0', 'seed of the first start, 0 or greater; further episodes count on'),
    'checkpoint': ('', 'folder of a trained planner; empty: the one that comes with the package for this maze'),
    'out': ('runs/maze2d', 'folder for summary.json, episodes.jsonl and episode.mp4'),
    'video': ('true', 'make a video of the first episode (true or false)'),
}
CONFIG = Path(__file__).parents[1] / 'config'


def nodes(context):
    """The three nodes; when one of them ends, for good or ill, so does everything."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    changed = [f'{name}:={value}' for name, value in given.items() if value != ARGUMENTS[name][0]]
    if given['size'] not in SIZES:
        raise RuntimeError(f'size:={given["size"]} is not understood: it must be umaze, medium or large')
    flags = {}
    for name in ('multi_task', 'realtime', 'video'):
        if given[name].lower() not in ('true', 'false'):
            raise RuntimeError(f'{name}:={given[name]} is not understood: it must be true or false')
        flags[name] = given[name].lower() == 'true'
    numbers = {}
    for name in ('episodes', 'seed'):
        if not given[name].isdecimal():
            raise RuntimeError(f'{name}:={given[name]} is not understood: it must be a whole number, 0 or greater')
        numbers[name] = int(given[name])
    title = SIZES[given['size']]
    checkpoint = given['checkpoint'] or str(CONFIG / 'checkpoints' / f'maze2d_{title.lower()}')
    out = os.path.abspath(os.path.expanduser(given['out']))
    env = f'diffuser/{"Multi2D" if flags["multi_task"] else "Maze2D"}-{title}-v0'
    command = shlex.join(['ros2', 'launch', 'diffuser_ros', Path(__file__).name, *changed])

    def words(text):
        return ParameterValue(text, value_type=str)

    bridge = Node(package='diffuser_ros', executable='gym_bridge', name='gym_bridge', output='screen',
                  parameters=[{'env': words(env), 'seed': numbers['seed'], 'realtime': flags['realtime'],
                               'recording': words(os.path.join(out, '.episode.npz'))}])
    planner = Node(package='diffuser_ros', executable='planner_node', name='diffuser_planner', output='screen',
                   parameters=[str(CONFIG / 'maze_planner.yaml'),
                               {'checkpoint': words(os.path.abspath(os.path.expanduser(checkpoint))),
                                'lock_step': not flags['realtime']}])
    episode = Node(package='diffuser_ros', executable='gym_episode_node', name='episode', output='screen',
                   parameters=[{**numbers, 'env': words(env), 'driver': words('planner'), 'goal': words(given['goal']),
                                'out': words(out), 'video': flags['video'], 'realtime': flags['realtime'],
                                'command': words(command)}])
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
