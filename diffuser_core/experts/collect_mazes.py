"""Collection of undirected drives through a maze into the data set 'diffuser/maze2d-<size>/journeys-v0'."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_core.data.episodes import load_episodes
from diffuser_core.envs import MAZE_IDS
from diffuser_core.envs.maze_layout import layout
from diffuser_core.experts.shards import Recipe, collect_shards
from diffuser_core.experts.waypoint import REACH_RANGE, RECIPE, journeys

__all__ = ['STEPS', 'collect_maze']

STEPS = {'umaze': 1_000_000, 'medium': 2_000_000, 'large': 4_000_000}
"""Steps of D4RL's data sets."""


def collect_maze(out: str | Path, size: str, seed_start: int, workers: int | None = None, *, steps: int | None = None,
                 d4rl_controller: bool = False, drive_ticks: int = 100_000, progress: bool = True) -> dict[str, Any]:
    """Drive through the maze `size` for `steps` steps and return a summary.

    steps            default: as many as D4RL
    d4rl_controller  whether every journey is driven by D4RL's waypoint controller; else corners are cut more or less, drawn anew
                     for each journey
    drive_ticks      longest drive without a new start; steps are shared out among as many drives as that takes, rounded up

    A run that was interrupted continues when called again with the same arguments; ValueError if `out` holds something else.
    """
    out, maze = Path(out), layout(size)
    steps = STEPS[size] if steps is None else steps
    if min(steps, drive_ticks) < 1 or seed_start < 0:
        raise ValueError(f'steps and drive_ticks must be at least 1 and seed_start 0, got {steps}, {drive_ticks}, {seed_start}')
    reach = None if d4rl_controller else REACH_RANGE
    drives = -(-steps // drive_ticks)
    ticks = -(-steps // drives)
    recipe = Recipe(
        dataset_id=f'diffuser/maze2d-{size}/journeys-v0', env_id=MAZE_IDS[size, True], infos=('journey',),
        algorithm='replanning waypoint controller' + (' of D4RL' if d4rl_controller else ''),
        description=f'Undirected drives through the maze {maze.name} to random goals, one after another.',
        settings={'recipe': RECIPE, 'size': size, 'drives': drives, 'ticks': ticks, 'seed_start': seed_start,
                  'reach': reach and list(reach)},
        unit='drive', record=partial(journeys, size, reach, ticks))
    began = time.monotonic()
    cpu_seconds = collect_shards(out, recipe, range(seed_start, seed_start + drives), 1, workers, progress)
    wall_seconds = time.monotonic() - began
    data = load_episodes(out)
    lengths = np.diff(data.bounds, axis=1) - 1
    return {
        'path': str(out / recipe.dataset_id), 'steps': drives * ticks, 'journeys': len(data.bounds),
        'ticks_per_journey': {name: float(np.percentile(lengths, q))
                              for name, q in (('min', 0), ('median', 50), ('p95', 95), ('max', 100))},
        'fingerprint': data.fingerprint, 'cpu_seconds': round(cpu_seconds, 2), 'wall_seconds': round(wall_seconds, 2)}
