"""A ball drives through a maze: bridge, planner, and a node that runs episodes and reports how they went.

Everything shuts down when the last episode has been reported, or when a part of it dies. For example

    ros2 launch diffuser_ros maze2d.launch.py size:=large multi_task:=true episodes:=5

While it drives, the goal can be changed by the planner's service ~/set_goal, with the task 'state', the channels x and y and
two values in metres.
"""

from pathlib import Path

from launch_ros.actions import Node

from diffuser_ros.launch_parts import Arguments, description, end_together, folder, text

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
    'record': ('', 'a new file (.mcap) that the planner records the run to, for replay and report; empty: none'),
    'video': ('true', 'make a video of the first episode (true or false)'),
}
CONFIG = Path(__file__).parents[1] / 'config'


def nodes(context):
    """Bridge, planner and episodes."""
    given = Arguments(context, ARGUMENTS)
    if given['size'] not in SIZES:
        raise RuntimeError(f'size:={given["size"]} is not understood: it must be umaze, medium or large')
    title, realtime, seed = SIZES[given['size']], given.flag('realtime'), given.number('seed')
    checkpoint = folder(given['checkpoint']) or str(CONFIG / 'checkpoints' / f'maze2d_{title.lower()}')
    env = f'diffuser/{"Multi2D" if given.flag("multi_task") else "Maze2D"}-{title}-v0'
    out = folder(given['out'])
    bridge = Node(package='diffuser_ros', executable='gym_bridge', name='gym_bridge', output='screen',
                  parameters=[{'env': text(env), 'seed': seed, 'realtime': realtime,
                               'recording': text(f'{out}/.episode.npz')}])
    planner = Node(package='diffuser_ros', executable='planner_node', name='diffuser_planner', output='screen',
                   parameters=[str(CONFIG / 'maze_planner.yaml'), {'checkpoint': text(checkpoint), 'lock_step': not realtime,
                               'record': text(folder(given['record']))}])
    episode = Node(package='diffuser_ros', executable='gym_episode_node', name='episode', output='screen',
                   parameters=[{'episodes': given.number('episodes'), 'seed': seed, 'env': text(env), 'driver': text('planner'),
                                'goal': text(given['goal']), 'out': text(out), 'video': given.flag('video'),
                                'realtime': realtime, 'command': text(given.command(__file__))}])
    return end_together({'the bridge has ended': bridge, 'the planner has ended': planner, 'the episodes have ended': episode})


def generate_launch_description():
    """The arguments and the nodes."""
    return description(ARGUMENTS, nodes)
