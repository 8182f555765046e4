"""Kuka stacking demonstrations on disk: the layout of the data set, and loading it as segments.

The data set is a Minari one in HDF5 with few long episodes. Each episode holds many demonstrations back to back, one
row a tick: observation (39,), action (8,), reward, and the infos 'demonstration' (its seed), 'segment' (its number
within the demonstration), 'upper' and 'lower' (block indices of 'put upper on lower'). The last row of a demonstration
is its final resting state; it is marked by a truncation, and its action repeats the one before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffuser_core.data.hdf5 import check_sizes, numbers
from diffuser_core.envs.stacking import BLOCKS, CHANNELS, GROUND, TICK, UNITS
from diffuser_core.messages import one_line

DATASET_ID = "diffuser/kuka-stack/expert-v0"
INFOS = ("demonstration", "segment", "upper", "lower")
DATA_FILE = Path("data") / "main_data.hdf5"


@dataclass(frozen=True)
class SegmentData:
    """All segments 'put block upper on block lower' of a data set.

    observations (rows, 39) float32, channels named by `channels` with `units`; bounds (segments, 2): segment s is
    `observations[bounds[s, 0]:bounds[s, 1]]`, from its first observation to the resting state after it, a row that
    the next segment of the same demonstration shares; pairs (segments, 2): block indices upper and lower;
    demonstrations (segments,): the seed of the demonstration; tick_dt: time between rows [s]; fingerprint: sha256 of
    the arrays, in hexadecimal; actions: how many of the channels are actions.
    """

    observations: NDArray[np.float32]
    bounds: NDArray[np.int64]
    pairs: NDArray[np.int64]
    demonstrations: NDArray[np.int64]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    tick_dt: float
    fingerprint: str
    actions: int = 0

    def __len__(self) -> int:
        return len(self.bounds)

    def rows(self, segment: int) -> NDArray[np.float32]:
        """Observations (rows of the segment, 39)."""
        start, end = self.bounds[segment]
        return self.observations[start:end]


def load_segments(path: str | Path) -> SegmentData:
    """Load a collected data set; `path` is the folder given to `collect`, the data set's own folder or its HDF5 file.

    FileNotFoundError where there is none, ValueError where it is damaged or not of this kind; both name the file.
    """
    import h5py

    file_path = find_data_file(path)
    observations, bounds, pairs, seeds = [], [], [], []
    rows = 0
    try:
        with h5py.File(file_path, "r") as file:
            check_sizes(file, file_path)
            for number in range(len(file)):
                episode = file[f"episode_{number}"]
                ends = numbers(episode, "truncations").astype(bool)
                infos = {name: numbers(episode["infos"], name) for name in INFOS}
                with np.errstate(over="ignore", invalid="ignore"):  # not finite then, which is refused below
                    values = numbers(episode, "observations").astype(np.float32)
                _check_episode(values, ends, infos)
                starts, stops = _segment_bounds(ends, infos)
                observations.append(values[: len(ends)])
                bounds.append(np.stack([starts, stops], axis=1) + rows)
                pairs.append(np.stack([infos["upper"][starts], infos["lower"][starts]], axis=1))
                seeds.append(infos["demonstration"][starts])
                rows += len(ends)
        if not observations:
            raise ValueError("it holds no episodes")
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:  # HDF5's too
        reason = one_line(error).strip("'\"")
        raise ValueError(f"the demonstrations in {file_path} are damaged or of another kind: {reason}") from error
    arrays = (
        np.concatenate(observations),
        np.concatenate(bounds).astype(np.int64),
        np.concatenate(pairs).astype(np.int64),
        np.concatenate(seeds).astype(np.int64),
    )
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return SegmentData(*arrays, channels=CHANNELS, units=UNITS, tick_dt=TICK, fingerprint=digest.hexdigest())


def find_data_file(path: str | Path) -> Path:
    """The HDF5 file of a data set, given the file, the data set's folder or the folder of data sets it lies in."""
    base = Path(path)
    candidates = (base, base / DATA_FILE, base / DATASET_ID / DATA_FILE)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no demonstrations at {base}: expected the file {candidates[-1]}, which `collect` writes")


def _check_episode(
    values: NDArray[np.float32], ends: NDArray[np.bool_], infos: dict[str, NDArray[Any]]
) -> None:
    for name, info in {"truncations": ends, **infos}.items():
        if info.ndim != 1 or info.dtype.kind not in "iub":
            raise ValueError(f"{name} must be one whole number a row, got {info.dtype} of shape {info.shape}")
    ticks = len(ends)
    if values.ndim != 2 or values.shape[1] != len(CHANNELS):
        raise ValueError(f"observations have shape {values.shape}, expected {len(CHANNELS)} columns")
    if ticks == 0 or len(values) < ticks or any(len(info) < ticks for info in infos.values()):
        raise ValueError("its arrays do not have the same number of rows")
    if not ends[-1]:
        raise ValueError("its last demonstration is cut off")
    if not np.isfinite(values).all():
        raise ValueError("an observation is not finite")
    blocks = len(BLOCKS)
    if not (np.isin(infos["upper"], range(blocks)).all() and np.isin(infos["lower"], range(GROUND, blocks)).all()):
        raise ValueError("a segment is about a block that there is not")


def _segment_bounds(
    ends: NDArray[np.bool_], infos: dict[str, NDArray[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row and end row (excluded) of every segment of an episode."""
    ticks = len(ends)
    after_end = np.concatenate([[True], ends[:-1]])
    changed = np.concatenate([[True], np.diff(infos["segment"][:ticks]) != 0])
    starts = np.flatnonzero(after_end | changed)
    stops = np.append(starts[1:], ticks)
    shares_next = ~after_end[np.minimum(stops, ticks - 1)] & (stops < ticks)
    return starts, stops + shares_next
