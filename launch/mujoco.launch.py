"""Any Gymnasium environment as a robot: its bridge, and a node that runs episodes and reports their returns.

There is no planner here yet for robots other than those of kuka_stack.launch.py and maze2d.launch.py: actions are drawn at random
(driver:=random), or come from a node of your own that publishes on `command` (driver:=external). For example

    ros2 launch diffuser_ros mujoco.launch.py env:=Hopper-v5 realtime:=false episodes:=3
"""

from launch_ros.actions import Node

from diffuser_ros.launch_parts import Arguments, description, end_together, folder, text

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
    """Bridge and episodes."""
    given = Arguments(context, ARGUMENTS)
    if given['driver'] not in ('random', 'external'):
        raise RuntimeError(f'driver:={given["driver"]} is not understood: it must be random or external')
    out, shared = folder(given['out']), {'env': text(given['env']), 'kwargs': text(given['kwargs']), 'seed': given.number('seed'),
                                         'realtime': given.flag('realtime')}
    bridge = Node(package='diffuser_ros', executable='gym_bridge', name='gym_bridge', output='screen',
                  parameters=[{**shared, 'publish_clock': given.flag('publish_clock'), 'recording': text(f'{out}/.episode.npz')}])
    episode = Node(package='diffuser_ros', executable='gym_episode_node', name='episode', output='screen',
                   parameters=[{**shared, 'episodes': given.number('episodes'), 'driver': text(given['driver']), 'out': text(out),
                                'video': given.flag('video'), 'command': text(given.command(__file__))}])
    return end_together({'the bridge has ended': bridge, 'the episodes have ended': episode})


def generate_launch_description():
    """The arguments and the nodes."""
    return description(ARGUMENTS, nodes)
