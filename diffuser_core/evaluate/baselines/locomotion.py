"""What learned baselines of the locomotion robots learn from: every step of the data. Loads neither torch nor Minari."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffuser_core.data.episodes import segments_of
from diffuser_core.evaluate.baselines.encoding import Transitions

__all__ = ['load_locomotion_transitions']


def load_locomotion_transitions(path: str | Path) -> Transitions:
    """The transitions of all episodes that `collect locomotion` wrote, in order; reads the HDF5 file without Minari.

    The last of an episode that was cut off is left out: which action would have followed is not known. FileNotFoundError if
    there is no data set in the folder, ValueError, naming the file, if it is damaged or of another kind.
    """
    import h5py

    files = sorted(Path(path).glob('**/data/main_data.hdf5'))
    if len(files) != 1:
        raise FileNotFoundError(f'{path} must hold one data set, as `collect` writes it, but holds {len(files)}')
    try:
        with h5py.File(files[0], 'r') as file:
            found = [file[f'episode_{n}'] for n in range(len(file))]
            kept = [episode for episode in found if len(episode['actions']) >= 2]
            columns = [{name: np.asarray(episode[name]) for name in ('observations', 'actions', 'rewards', 'terminations')}
                       for episode in kept]
        _, _, fingerprint = segments_of(((c['observations'], c['actions'], None) for c in columns), str(files[0]))
        parts = []
        for c in columns:
            steps = len(c['actions']) if c['terminations'][-1] else len(c['actions']) - 1
            parts.append((c['observations'][:steps], c['actions'][:steps], c['rewards'][:steps], c['observations'][1:steps + 1],
                          c['terminations'][:steps]))
    except (OSError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f'the data set {files[0]} is damaged or not of a locomotion robot: {error}') from error
    seen, actions, rewards, after, terminals = (np.concatenate(column).astype(np.float32) for column in zip(*parts))
    return Transitions(seen, actions, rewards, after, terminals, fingerprint)
