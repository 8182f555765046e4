"""Environments. Importing this package registers them with Gymnasium and loads no simulator."""

import gymnasium

from diffuser_core.envs.maze_layout import LAYOUTS

KUKA_STACK_ID = "diffuser/KukaStack-v0"
MAZE_IDS = {
    (size, multi_task): f"diffuser/{kind}-{title}-v0"
    for size, title in (("umaze", "UMaze"), ("medium", "Medium"), ("large", "Large"))
    for multi_task, kind in ((False, "Maze2D"), (True, "Multi2D"))
}
"""Gymnasium's id of a maze's size, with its own goal or (multi-task) with one drawn every episode."""

if KUKA_STACK_ID not in gymnasium.registry:
    gymnasium.register(id=KUKA_STACK_ID, entry_point="diffuser_core.envs.kuka_stack:KukaStackEnv")
for (_size, _multi_task), _id in MAZE_IDS.items():
    if _id not in gymnasium.registry:
        gymnasium.register(
            id=_id,
            entry_point="diffuser_core.envs.point_maze:PointMazeEnv",
            max_episode_steps=LAYOUTS[_size].limit,
            kwargs={"size": _size, "multi_task": _multi_task},
        )

__all__ = ["KUKA_STACK_ID", "MAZE_IDS"]
