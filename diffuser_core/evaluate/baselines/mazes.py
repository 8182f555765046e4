"""What a learned baseline of the mazes sees, does and is paid for. Loads neither torch nor Minari.

A journey of the data is an episode: its goal is where it ended. The observation is the state and the goal, (x, y, vx, vy, goal x,
goal y), the action the force. Every step within 0.5 m of the goal is paid 1. At its end the ball rests in the goal, where it
would be paid for ever: the last transition is terminal and is paid the discounted rest at once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffuser_core.data.episodes import segments_of
from diffuser_core.envs.maze_layout import CHANNELS, FORCES, GOAL_RADIUS
from diffuser_core.evaluate.baselines.encoding import Transitions

__all__ = ['DISCOUNT', 'OBSERVATION_SIZE', 'load_maze_transitions', 'maze_transitions']

DISCOUNT = 0.99
OBSERVATION_SIZE = len(CHANNELS) + 2


def load_maze_transitions(path: str | Path) -> Transitions:
    """The transitions of all journeys that `collect maze2d_<size>` wrote, in order; reads the HDF5 file without Minari.

    FileNotFoundError if there is none in the folder, ValueError, naming the file, if it is damaged or of another kind.
    """
    import h5py

    files = sorted(Path(path).glob('**/data/main_data.hdf5'))
    if len(files) != 1:
        raise FileNotFoundError(f'{path} must hold one data set, as `collect` writes it, but holds {len(files)}')
    try:
        with h5py.File(files[0], 'r') as file:
            found = [file[f'episode_{n}'] for n in range(len(file))]
            episodes = [(np.asarray(episode['observations']), np.asarray(episode['actions']),
                         np.asarray(episode['infos']['journey'])) for episode in found]
            return maze_transitions(*segments_of(episodes, str(files[0])))
    except (OSError, KeyError, IndexError) as error:
        raise ValueError(f'the data set {files[0]} is damaged or not of a maze: {error}') from error


def maze_transitions(rows: NDArray[np.float32], bounds: NDArray[np.int64], fingerprint: str) -> Transitions:
    """The transitions of segments, as `segments_of` gives them."""
    if rows.shape[1] != len(FORCES) + len(CHANNELS):
        raise ValueError(f'a maze has {len(FORCES) + len(CHANNELS)} channels, the data {rows.shape[1]}')
    lengths = np.diff(bounds, axis=1)[:, 0]
    goals = np.repeat(rows[bounds[:, 1] - 1, 2:4], lengths, axis=0)
    seen = np.concatenate([rows[:, 2:], goals], axis=1)
    last = np.zeros(len(rows), dtype=bool)
    last[bounds[:, 1] - 1] = True
    before = np.flatnonzero(~last)
    after = before + 1
    rewards = (np.hypot(*(rows[after, 2:4] - goals[after]).T) <= GOAL_RADIUS).astype(np.float32)
    terminals = last[after].astype(np.float32)
    rewards[terminals > 0] = 1.0 / (1.0 - DISCOUNT)
    return Transitions(seen[before], rows[before, :2], rewards, seen[after], terminals, fingerprint)
