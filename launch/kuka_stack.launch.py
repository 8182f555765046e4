"""The simulated Kuka arm stacks blocks: bridge, planner, and a node that runs episodes and reports how they went.

Everything shuts down when the last episode has been reported, or when a part of it dies. For example

    ros2 launch diffuser_ros kuka_stack.launch.py task:=relations relations:='red on green, blue on red'
"""

from pathlib import Path

from launch_ros.actions import Node

from diffuser_ros.launch_parts import Arguments, description, end_together, folder, text

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
    'record': ('', 'a new file (.mcap) that the planner records the run to, for replay and report; empty: none'),
    'video': ('true', 'make a video of the first episode (true or false)'),
}
CONFIG = Path(__file__).parents[1] / 'config' / 'kuka_planner.yaml'


def nodes(context):
    """Bridge, planner and episodes."""
    given = Arguments(context, ARGUMENTS)
    realtime, seed = given.flag('realtime'), given.number('seed')
    checkpoint, out = text(folder(given['checkpoint'])), text(folder(given['out']))
    bridge = Node(package='diffuser_ros', executable='kuka_bridge', name='kuka_bridge', output='screen',
                  parameters=[{'realtime': realtime, 'gui': given.flag('gui'), 'seed': seed}])
    planner = Node(package='diffuser_ros', executable='planner_node', name='diffuser_planner', output='screen',
                   parameters=[str(CONFIG), {'checkpoint': checkpoint, 'lock_step': not realtime,
                               'record': text(folder(given['record']))}])
    episode = Node(package='diffuser_ros', executable='episode_node', name='episode', output='screen',
                   parameters=[{'episodes': given.number('episodes'), 'seed': seed, 'task': text(given['task']),
                                'relations': text(given['relations']), 'out': out, 'video': given.flag('video'),
                                'realtime': realtime, 'command': text(given.command(__file__))}])
    return end_together({'the bridge has ended': bridge, 'the planner has ended': planner, 'the episodes have ended': episode})


def generate_launch_description():
    """The arguments and the nodes."""
    return description(ARGUMENTS, nodes)
