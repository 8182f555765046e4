"""Collection of stacking demonstrations over all cores, into a Minari data set.

Every demonstration is a function of its seed alone, so the data do not depend on the number of workers or on
interruptions. Seeds are worked off in shards; a finished shard is a file under `<out>/shards`, written under another
name and renamed, so that an interrupted run leaves complete shards only and continues with the missing ones. When all
are there they become the data set `diffuser_core.data.demonstrations.DATASET_ID` under `<out>`, one Minari episode a
shard.

Workers are started by 'spawn': a script that calls `collect` with more than one worker needs the usual
`if __name__ == "__main__":` guard.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffuser_core.data.demonstrations import DATASET_ID, INFOS, load_segments
from diffuser_core.experts.demonstrations import RECIPE, Run, record
from diffuser_core.workers import available_cores, follow_parent

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

SHARD_SIZE = 100
_stop: Event | None = None


def collect(
    out: str | Path,
    demonstrations: int,
    seed_start: int,
    workers: int | None = None,
    progress: bool = True,
    *,
    shard_size: int = SHARD_SIZE,
) -> dict[str, Any]:
    """Record the demonstrations of seeds `seed_start` to `seed_start + demonstrations - 1` and return a summary.

    out: folder for the data set, usable as MINARI_DATASETS_PATH; workers: processes, None for one a core;
    shard_size: demonstrations an episode of the data set. Failed demonstrations are left out and counted. A run that
    was interrupted continues when called again with the same numbers; ValueError if `out` holds another collection.
    """
    if demonstrations < 1 or shard_size < 1:
        raise ValueError(f"demonstrations and shard_size must be at least 1, got {demonstrations} and {shard_size}")
    if seed_start < 0:
        raise ValueError(f"seed_start must not be negative, got {seed_start}")
    out = Path(out)
    settings = {
        "recipe": RECIPE,
        "demonstrations": demonstrations,
        "seed_start": seed_start,
        "shard_size": shard_size,
    }
    _claim(out, settings)
    started, cpu_seconds = time.monotonic(), 0.0
    if not (out / DATASET_ID).exists():
        seeds = range(seed_start, seed_start + demonstrations)
        shards = [
            (_shard_path(out, number), seeds[first : first + shard_size])
            for number, first in enumerate(range(0, demonstrations, shard_size))
        ]
        for leftover in (out / "shards").glob("*.part"):
            leftover.unlink()
        cpu_seconds = _record_shards(shards, workers or available_cores(), progress)
        _assemble(out, [path for path, _ in shards])
    return _summary(out, demonstrations, cpu_seconds, time.monotonic() - started)


def _shard_path(out: Path, number: int) -> Path:
    return out / "shards" / f"shard-{number:05d}.npz"


def _claim(out: Path, settings: dict[str, int]) -> None:
    """Note the settings in a fresh folder, or check that a folder with data has the same ones."""
    note = out / "collection.json"
    if not note.exists():
        if (out / DATASET_ID).exists():
            raise ValueError(f"{out} already holds a data set that this collection did not make; choose another folder")
        (out / "shards").mkdir(parents=True, exist_ok=True)
        _write_text(note, json.dumps(settings, indent=2) + "\n")
        return
    try:
        found = json.loads(note.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{note} is damaged ({error}); remove the folder or choose another") from error
    for name, value in settings.items():
        if found.get(name) != value:
            raise ValueError(
                f"{out} holds a collection with {name} {found.get(name)}, not {value}; "
                "choose another folder or remove it"
            )


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _record_shards(shards: list[tuple[Path, range]], workers: int, progress: bool) -> float:
    """Record the shards that are missing and return the CPU time this took [s]."""
    from tqdm.auto import tqdm

    missing = [(path, seeds) for path, seeds in shards if not path.exists()]
    total = sum(len(seeds) for _, seeds in shards)
    done = total - sum(len(seeds) for _, seeds in missing)
    cpu_seconds = 0.0
    with tqdm(total=total, initial=done, unit="demo", desc="collect", disable=not progress) as bar:
        if workers == 1 or len(missing) <= 1:
            for path, seeds in missing:
                cpu_seconds += _record_shard(path, seeds)
                bar.update(len(seeds))
            return cpu_seconds
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        with ProcessPoolExecutor(min(workers, len(missing)), context, _start_worker, (stop,)) as pool:
            futures = {pool.submit(_record_shard, path, seeds): len(seeds) for path, seeds in missing}
            try:
                for future in as_completed(futures):
                    cpu_seconds += future.result()
                    bar.update(futures[future])
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return cpu_seconds


def _start_worker(stop: Event) -> None:
    """Leave Ctrl-C to the parent, which asks to stop between two demonstrations; end when the parent is gone."""
    global _stop
    _stop = stop
    follow_parent()


def _record_shard(path: Path, seeds: range) -> float:
    """Record one shard, write it in one go and return the CPU time [s]; an asked-for stop leaves nothing behind."""
    from diffuser_core.envs.kuka_stack import KukaStackEnv

    started = time.process_time()
    parts, env = [], KukaStackEnv()
    try:
        for seed in seeds:
            if _stop is not None and _stop.is_set():
                return time.process_time() - started
            parts += [_columns(run, seed) for run in record(env, seed).runs]
    finally:
        env.close()
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
    os.replace(part, path)
    return time.process_time() - started


def _columns(run: Run, seed: int) -> dict[str, NDArray[Any]]:
    """One row a tick and a last one for the final state, which repeats the action before it."""
    rows = len(run.observations)
    segment = np.append(run.segment, run.segment[-1])
    pairs = np.array(run.relations, dtype=np.int64)[segment]
    return {
        "observations": run.observations,
        "actions": np.vstack([run.actions, run.actions[-1:]]),
        "rewards": np.append(run.rewards, 0.0),
        "truncations": np.arange(rows) == rows - 1,
        "demonstration": np.full(rows, seed, dtype=np.int64),
        "segment": segment,
        "upper": pairs[:, 0],
        "lower": pairs[:, 1],
    }


def _assemble(out: Path, shards: list[Path]) -> None:
    """Turn the shards into the Minari data set, beside its final place and then moved there, and remove them."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    from diffuser_core.envs import KUKA_STACK_ID

    building = out / ".building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    dataset = None
    with _datasets_path(building), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in shards:
            with np.load(path) as columns:
                if "observations" not in columns:
                    continue
                episode = EpisodeBuffer(
                    observations=_with_last(columns["observations"]),
                    actions=columns["actions"],
                    rewards=columns["rewards"],
                    terminations=np.zeros(len(columns["rewards"]), dtype=bool),
                    truncations=columns["truncations"],
                    infos={name: _with_last(columns[name]) for name in INFOS},
                )
            if dataset is None:
                dataset = minari.create_dataset_from_buffers(
                    DATASET_ID,
                    [episode],
                    env=gymnasium.spec(KUKA_STACK_ID),
                    algorithm_name="scripted pick and place",
                    description="Four slabs stacked by a scripted demonstrator; many demonstrations an episode, "
                    "each ends at a truncation.",
                    data_format="hdf5",
                )
            else:
                dataset.update_dataset_from_buffer([episode])
    if dataset is None:
        raise RuntimeError(f"no demonstration of {len(shards)} shards in {out} succeeded: there is no data to write")
    (out / DATASET_ID).parent.mkdir(parents=True, exist_ok=True)
    os.replace(building / DATASET_ID, out / DATASET_ID)
    shutil.rmtree(building)
    shutil.rmtree(out / "shards")


def _with_last(values: NDArray[Any]) -> NDArray[Any]:
    """The rows and the last one again: Minari wants one observation and one info more than actions."""
    return np.concatenate([values, values[-1:]])


@contextmanager
def _datasets_path(path: Path) -> Iterator[None]:
    """Point Minari at a folder for the time of the block."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(path.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _summary(out: Path, demonstrations: int, cpu_seconds: float, wall_seconds: float) -> dict[str, Any]:
    data = load_segments(out)
    kept = len(np.unique(data.demonstrations))
    ticks = np.diff(data.bounds, axis=1) - 1
    return {
        "path": str(out / DATASET_ID),
        "demonstrations": kept,
        "failed": demonstrations - kept,
        "segments": len(data),
        "rows": len(data.observations),
        "ticks_per_segment": {
            name: float(np.percentile(ticks, q)) for name, q in (("min", 0), ("median", 50), ("p95", 95), ("max", 100))
        },
        "fingerprint": data.fingerprint,
        "cpu_seconds": round(cpu_seconds, 2),
        "wall_seconds": round(wall_seconds, 2),
    }
