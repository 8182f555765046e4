"""Minari data sets as rows to train on: those that `collect` writes, and others with Box actions and Box or Dict observations.

Columns are the actions, then the observations. Environments of this package name them; others get 'action.0', 'obs.0', ... Of a
Dict observation (goal-conditioned mazes) the part 'observation' counts. An info 'journey', if there is one, cuts episodes into
segments: equal numbers back to back, those below zero left out. Without it a segment is an episode.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffuser_core.data.hdf5 import check_sizes
from diffuser_core.data.metadata import check_environment
from diffuser_core.messages import one_line

__all__ = ['MINARI_PREFIX', 'EpisodeData', 'datasets_path', 'load_episodes', 'segments_of']

Episode = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64] | None]

MINARI_PREFIX = 'minari:'
"""A data path that begins so is the id of a data set installed on the machine."""


@dataclass(frozen=True)
class EpisodeData:
    """Segments of a data set.

    observations  (rows, channels) float32, actions first; the last row of a segment repeats the action before it
    bounds        (segments, 2): segment s is `observations[bounds[s, 0]:bounds[s, 1]]`
    actions       how many of the channels are actions
    tick_dt       time between rows [s]
    fingerprint   sha256 of the arrays, in hexadecimal
    rewards       (rows,) float32 for the step that follows each row, 0 at the last row of a segment; None unless read whole
    terminated    (segments,) whether an episode came to its own end, such as a fall, and was not cut off; None unless read whole
    """

    observations: NDArray[np.float32]
    bounds: NDArray[np.int64]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    actions: int
    tick_dt: float
    fingerprint: str
    rewards: NDArray[np.float32] | None = None
    terminated: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Steps of each segment, (segments,)."""
        return self.bounds[:, 1] - self.bounds[:, 0] - 1

    @property
    def returns(self) -> NDArray[np.float64]:
        """Sum of the rewards of each segment, (segments,); ValueError unless read whole."""
        if self.rewards is None:
            raise ValueError('returns need a data set that is read whole')
        return np.add.reduceat(self.rewards, self.bounds[:, 0], dtype=np.float64)


def load_episodes(path: str | Path, *, whole: bool = False) -> EpisodeData:
    """Load the only data set in the folder `path`, or 'minari:<id>', an installed one.

    whole  whether every episode is one segment, whatever journeys it consists of

    FileNotFoundError if there is none; ValueError, naming the data set, if it is damaged or of a kind that cannot be used.
    """
    text = str(path)
    if text.startswith(MINARI_PREFIX):
        name = text.removeprefix(MINARI_PREFIX)
        try:
            return _read(name, name, whole)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'the Minari data set {name} is not installed; "minari download {name}" fetches it') from error
    folder = Path(path)
    found = sorted(file.parent.parent for file in folder.glob('**/data/metadata.json')) if folder.is_dir() else []
    if len(found) != 1:
        raise FileNotFoundError(f'{folder} must hold one data set, as `collect` writes it, but holds {len(found)}')
    name = str(found[0].relative_to(folder))
    with datasets_path(folder):
        try:
            return _read(name, str(found[0]), whole)
        except FileNotFoundError as error:
            raise ValueError(f'the data set {found[0]} is damaged: {one_line(error)}') from error


def _read(name: str, where: str, whole: bool) -> EpisodeData:
    import h5py
    import minari
    from minari.storage.local import get_dataset_path

    with _reading(where):
        metadata = Path(get_dataset_path(name)) / 'data' / 'metadata.json'
        if metadata.is_file():
            check_environment(metadata)
        dataset = minari.load_dataset(name)
        for path in sorted(Path(dataset.storage.data_path).glob('*.hdf5')):
            with h5py.File(path, 'r') as file:
                check_sizes(file, path)
        actions_dim = int(np.prod(dataset.action_space.shape))

    rewards: list[NDArray[np.float32]] = []
    terminated: list[bool] = []

    def episodes() -> Iterator[Episode]:
        source = dataset.iterate_episodes()
        while True:
            with _reading(where):
                episode = next(source, None)
                if episode is None:
                    return
                journeys = None if whole else (episode.infos or {}).get('journey')
                if whole and len(episode.actions) >= 2:
                    rewards.append(np.append(episode.rewards, 0.0).astype(np.float32))
                    terminated.append(bool(episode.terminations[-1]))
            yield (_flat(episode.observations, where), np.asarray(episode.actions),
                   None if journeys is None else np.asarray(journeys))

    rows, bounds, fingerprint = segments_of(episodes(), where)
    channels, units, tick_dt = _describe(dataset, actions_dim, rows.shape[1] - actions_dim, where)
    paid = np.concatenate(rewards) if whole else None
    if paid is not None and not np.isfinite(paid).all():
        raise ValueError(f'the data set {where} cannot be used: it holds rewards that are not finite')
    return EpisodeData(rows, bounds, channels, units, actions_dim, tick_dt, fingerprint, paid,
                       np.array(terminated) if whole else None)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """What Minari, which checks little, raises over damaged files, as a ValueError that names the data set."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f'the data set {where} is damaged: {one_line(error) or type(error).__name__}') from error


def segments_of(episodes: Iterable[Episode], where: str) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    """Rows, bounds and fingerprint, as in `EpisodeData`, of episodes: observations (steps + 1, n), actions (steps, m), and the
    journeys' numbers (steps or more,) or None. ValueError, naming the data set `where`, if something is wrong with one."""
    parts: list[NDArray[np.float32]] = []
    lengths = []
    for number, (observations, actions, journeys) in enumerate(episodes):
        if actions.ndim != 2 or not len(actions) or len(observations) != len(actions) + 1:
            raise ValueError(f'the data set {where} cannot be used: in episode {number}, observations {observations.shape} '
                             f'and actions {actions.shape} do not go together')
        if actions.dtype.kind not in 'fiu':
            raise ValueError(f'the data set {where} cannot be used: in episode {number}, actions are not numbers')
        with np.errstate(over='ignore', invalid='ignore'):  # not finite then, which is refused below
            rows = np.concatenate([np.concatenate([actions, actions[-1:]]), observations], axis=1).astype(np.float32)
        if parts and rows.shape[1] != parts[0].shape[1]:
            raise ValueError(f'the data set {where} cannot be used: episode {number} has {rows.shape[1]} columns, others have '
                             f'{parts[0].shape[1]}')
        if journeys is not None and (journeys.ndim != 1 or journeys.dtype.kind not in 'iu' or len(journeys) < len(actions)):
            raise ValueError(f'the data set {where} cannot be used: in episode {number}, journeys are not a whole number a step')
        if not np.isfinite(rows).all():
            raise ValueError(f'the data set {where} cannot be used: episode {number} holds numbers that are not finite')
        numbers = np.zeros(len(actions), dtype=np.int64) if journeys is None else journeys[:len(actions)]
        for first, end in _runs(numbers):
            if end - first >= 2:
                parts.append(rows[first:end + 1])
                lengths.append(len(parts[-1]))
    if not parts:
        raise ValueError(f'the data set {where} cannot be used: it holds no segment of two steps')
    ends = np.cumsum(lengths)
    bounds, rows = np.stack([ends - lengths, ends], axis=1), np.concatenate(parts)
    digest = hashlib.sha256()
    for array in (rows, bounds):
        digest.update(np.ascontiguousarray(array).data)
    return rows, bounds, digest.hexdigest()


def _flat(observations: Any, where: str) -> NDArray[Any]:
    """Observations (rows, observations)."""
    if isinstance(observations, dict):
        if 'observation' not in observations:
            raise ValueError(f'the data set {where} cannot be used: its observations have the parts {", ".join(observations)}, '
                             "none is called 'observation'")
        observations = observations['observation']
    observations = np.asarray(observations)
    if observations.dtype.kind not in 'fiu' or observations.ndim == 0 or not observations.size:
        raise ValueError(f'the data set {where} cannot be used: its observations are not arrays of numbers')
    return observations.reshape(len(observations), -1)


def _runs(numbers: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and end (excluded) of every run of equal numbers from 0 up."""
    firsts = np.flatnonzero(np.concatenate([[True], np.diff(numbers) != 0]))
    for first, end in zip(firsts, [*firsts[1:], len(numbers)]):
        if numbers[first] >= 0:
            yield int(first), int(end)


def _describe(dataset: Any, actions: int, observations: int, where: str) -> tuple[tuple[str, ...], tuple[str, ...], float]:
    """Channel names, units, and seconds between rows."""
    try:
        env = dataset.recover_environment()
    except Exception as error:  # whatever an environment's package raises when it is not installed
        raise ValueError(f'the environment of the data set {where}, which says how long a step is, cannot be made: '
                         f'{one_line(error)}') from error
    try:
        robot = env.unwrapped
        tick_dt = getattr(robot, 'dt', None)
        if tick_dt is None and hasattr(robot, 'model'):
            tick_dt = robot.model.opt.timestep * getattr(robot, 'frame_skip', 1)
        if tick_dt is None:
            raise ValueError(f'the environment of the data set {where} does not say how long a step takes (no attribute dt)')
        names = getattr(robot, 'channels', None) or tuple(f'obs.{n}' for n in range(observations))
        units = getattr(robot, 'units', None) or ('1',) * observations
        forces = getattr(robot, 'actions', None) or tuple(f'action.{n}' for n in range(actions))
    finally:
        env.close()
    return (*forces, *names), (*('1',) * actions, *units), float(tick_dt)


@contextmanager
def datasets_path(path: Path) -> Iterator[None]:
    """Point Minari at a folder for the time of the block."""
    before = os.environ.get('MINARI_DATASETS_PATH')
    os.environ['MINARI_DATASETS_PATH'] = str(path.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ['MINARI_DATASETS_PATH']
        else:
            os.environ['MINARI_DATASETS_PATH'] = before
