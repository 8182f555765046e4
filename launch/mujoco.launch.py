"""Any Gymnasium environment as a robot: its bridge, and a node that runs episodes and reports their returns.

Actions are drawn at random (driver:=random), come from a node of your own that publishes on `command` (driver:=external), or from
a planner trained as docs/locomotion.md says (driver:=planner). For example

    ros2 launch diffuser_ros mujoco.launch.py env:=Hopper-v5 realtime:=false episodes:=3
"""

from pathlib import Path

import yaml
from launch_ros.actions import Node

from diffuser_ros.launch_parts import Arguments, description, end_together, folder, text

CONFIG = Path(__file__).parents[1] / 'config'
ARGUMENTS = {
    'env': ('Hopper-v5', "id of the environment; 'package:Id-v0' imports the package first"),
    'kwargs': ('', "arguments of the environment as YAML or JSON: '{max_episode_steps: 300}'"),
    'driver': ('random', "who drives: 'random', actions drawn at random; 'external', whoever publishes on command; 'planner', "
               'a trained planner of ours'),
    'checkpoint': ('', 'for driver:=planner: folder of a trained planner; empty: the one that comes with the package'),
    'backend': ('traced', 'for driver:=planner: how its networks are executed: traced, openvino (twice as fast), ...'),
    'record': ('', 'for driver:=planner: a new file (.mcap) that the run is recorded to; empty: none'),
    'realtime': ('true', 'true: the simulation follows the clock; false: it waits for every command'),
    'publish_clock': ('false', 'publish the simulated time on /clock, for nodes with use_sim_time (true or false)'),
    'episodes': ('1', 'number of episodes to run'),
    'seed': ('0', 'seed of the first episode, 0 or greater; further episodes count on'),
    'out': ('runs/mujoco', 'folder for summary.json, episodes.jsonl and episode.mp4'),
    'video': ('false', 'make a video of the first episode; needs EGL or OSMesa (true or false)'),
}


def nodes(context):
    """Bridge and episodes."""
    given = Arguments(context, ARGUMENTS)
    if given['driver'] not in ('random', 'external', 'planner'):
        raise RuntimeError(f'driver:={given["driver"]} is not understood: it must be random, external or planner')
    out, shared = folder(given['out']), {'env': text(given['env']), 'kwargs': text(given['kwargs']), 'seed': given.number('seed'),
                                         'realtime': given.flag('realtime')}
    bridge = Node(package='diffuser_ros', executable='gym_bridge', name='gym_bridge', output='screen',
                  parameters=[{**shared, 'publish_clock': given.flag('publish_clock'), 'recording': text(f'{out}/.episode.npz')}])
    episode = Node(package='diffuser_ros', executable='gym_episode_node', name='episode', output='screen',
                   parameters=[{**shared, 'episodes': given.number('episodes'), 'driver': text(given['driver']), 'out': text(out),
                                'video': given.flag('video'), 'command': text(given.command(__file__))}])
    if given['driver'] != 'planner':
        return end_together({'the bridge has ended': bridge, 'the episodes have ended': episode})
    checkpoint = folder(given['checkpoint']) or shipped(given['env'])
    planner = Node(package='diffuser_ros', executable='planner_node', name='diffuser_planner', output='screen',
                   parameters=[str(CONFIG / 'runner_planner.yaml'),
                               {'checkpoint': text(checkpoint), 'backend': text(given['backend']),
                                'lock_step': not given.flag('realtime'), 'record': text(folder(given['record'])),
                                **pace(Path(checkpoint))}])
    return end_together({'the bridge has ended': bridge, 'the planner has ended': planner, 'the episodes have ended': episode})


def shipped(env):
    """The shipped planner of an environment; RuntimeError if there is none."""
    robot = env.partition('-')[0].lower()
    found = sorted((CONFIG / 'checkpoints').glob(f'{robot}_*'))
    if not found:
        raise RuntimeError(f'no planner for env:={env} comes with the package: train one (docs/locomotion.md) and name its '
                           'folder with checkpoint:=')
    return str(found[0])


def pace(checkpoint):
    """The parameters that follow from the length of a planning step, which is a tick; none for what the node will refuse."""
    try:
        described = yaml.safe_load((checkpoint / 'config.yaml').read_text(encoding='utf-8'))
        step, horizon = float(described['step_dt']), int(described['horizon'])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    return {'tick_rate': 1.0 / step, 'state_timeout': 12 * step, 'plan_timeout': (horizon - 1) * step}


def generate_launch_description():
    """The arguments and the nodes."""
    return description(ARGUMENTS, nodes)
