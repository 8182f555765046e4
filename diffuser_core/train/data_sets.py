"""Which reader a data set needs: stacking demonstrations become features, everything else is read as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from diffuser_core.data.demonstrations import DATASET_ID, SegmentData, load_segments
from diffuser_core.data.episodes import MINARI_PREFIX, EpisodeData, load_episodes
from diffuser_core.envs.stacking_features import as_features

__all__ = ['TrainingData', 'latest_starts', 'load_rewarded', 'load_stacking', 'load_training_data']


class TrainingData(Protocol):
    """Segments of rows; `SegmentData` and `EpisodeData` say what the fields are."""

    def __len__(self) -> int: ...
    @property
    def observations(self) -> NDArray[np.float32]: ...
    @property
    def bounds(self) -> NDArray[np.int64]: ...
    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def units(self) -> tuple[str, ...]: ...
    @property
    def actions(self) -> int: ...
    @property
    def tick_dt(self) -> float: ...
    @property
    def fingerprint(self) -> str: ...


def load_stacking(path: str) -> SegmentData:
    """Stacking demonstrations as features; errors as `load_segments`."""
    return as_features(load_segments(Path(path)))


def load_training_data(path: str, *, whole: bool = False) -> TrainingData:
    """The data set in the folder `path`, or 'minari:<id>', an installed one; errors as of the two readers.

    whole  whether episodes are not cut into the journeys they consist of; ValueError for stacking demonstrations
    """
    if path.startswith(MINARI_PREFIX) or not _is_stacking(Path(path)):
        return load_episodes(path, whole=whole)
    if whole:
        raise ValueError(f'data.whole_episodes is not for stacking demonstrations, which {path} holds')
    return load_stacking(path)


def load_rewarded(path: str) -> EpisodeData:
    """Whole episodes with their rewards; ValueError for stacking demonstrations, which have none."""
    data = load_training_data(path, whole=True)
    assert isinstance(data, EpisodeData)
    return data


def latest_starts(data: TrainingData, horizon: int, stride: int) -> torch.Tensor:
    """Last row (segments,) at which a window of `horizon` rows, `stride` ticks apart, may start: one row before the end in
    episodes that came to their own end, so that windows hold it; the last that fits in those that were cut off."""
    terminated = getattr(data, 'terminated', None)
    if terminated is None:
        raise ValueError('data.continuing needs a data set that says how its episodes ended')
    first, end = torch.from_numpy(data.bounds).unbind(1)
    return torch.where(torch.from_numpy(terminated), end - 2, torch.maximum(end - 1 - (horizon - 1) * stride, first))


def _is_stacking(path: Path) -> bool:
    return path.is_file() or (path / DATASET_ID).exists() or path.as_posix().endswith(DATASET_ID)
