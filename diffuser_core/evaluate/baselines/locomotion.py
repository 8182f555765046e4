"""What learned baselines of the locomotion robots learn from: every step of the data. Loads neither torch nor Minari."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffuser_core.data.episodes import segments_of
from diffuser_core.evaluate.baselines.encoding import Transitions

__all__ = ['LocomotionEpisode', 'load_locomotion_episodes', 'load_locomotion_transitions']


def load_locomotion_transitions(path: str | Path) -> Transitions:
    """The transitions of all episodes that `collect locomotion` wrote, in order; reads the HDF5 file without Minari.

    The last of an episode that was cut off is left out: which action would have followed is not known. Errors as of
    `load_locomotion_episodes`.
    """
    episodes, fingerprint = load_locomotion_episodes(path)
    parts = []
    for episode in episodes:
        steps = len(episode.actions) if episode.terminated else len(episode.actions) - 1
        ended = np.zeros(steps, dtype=np.float32)
        ended[-1] = episode.terminated
        parts.append((episode.observations[:steps], episode.actions[:steps], episode.rewards[:steps],
                      episode.observations[1:steps + 1], ended))
    seen, actions, rewards, after, terminals = (np.concatenate(column) for column in zip(*parts))
    returns = [float(episode.rewards.sum(dtype=np.float64)) for episode in episodes]
    return Transitions(seen, actions, rewards, after, terminals, fingerprint, max(returns) - min(returns))


@dataclass(frozen=True)
class LocomotionEpisode:
    """Observations (steps + 1, n), actions (steps, m), rewards (steps,), float32, and whether the robot fell at the end."""

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: bool


def load_locomotion_episodes(path: str | Path) -> tuple[list[LocomotionEpisode], str]:
    """The episodes of at least two steps that `collect locomotion` wrote, in order, and the data's fingerprint.

    FileNotFoundError if there is no data set in the folder, ValueError, naming the file, if it is damaged or of another kind.
    """
    import h5py

    files = sorted(Path(path).glob('**/data/main_data.hdf5'))
    if len(files) != 1:
        raise FileNotFoundError(f'{path} must hold one data set, as `collect` writes it, but holds {len(files)}')
    try:
        with h5py.File(files[0], 'r') as file:
            found = [file[f'episode_{n}'] for n in range(len(file))]
            kept = [episode for episode in found if len(episode['actions']) >= 2]
            columns = [[np.asarray(episode[name]) for name in ('observations', 'actions', 'rewards', 'terminations')]
                       for episode in kept]
        _, _, fingerprint = segments_of(((seen, actions, None) for seen, actions, _, _ in columns), str(files[0]))
        episodes = [LocomotionEpisode(seen.astype(np.float32), actions.astype(np.float32), rewards.astype(np.float32),
                                      bool(ends[-1])) for seen, actions, rewards, ends in columns]
    except (OSError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f'the data set {files[0]} is damaged or not of a locomotion robot: {error}') from error
    return episodes, fingerprint
