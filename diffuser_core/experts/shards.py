"""Collection over all cores into a Minari data set, whatever is recorded.

What a seed gives is a function of the seed alone, so the data do not depend on the number of workers or on
interruptions. Seeds are worked off in shards; a finished shard is a file under `<out>/shards`, written under another
name and renamed, so that an interrupted run leaves complete shards only and continues with the missing ones. When all
are there they become the data set under `<out>`, one Minari episode a shard.

Workers are started by 'spawn': a script that collects with more than one worker needs the usual
`if __name__ == "__main__":` guard.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffuser_core.data.episodes import datasets_path
from diffuser_core.workers import available_cores, follow_parent

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

__all__ = ["Columns", "Recipe", "collect_shards"]

Columns = dict[str, NDArray[Any]]
_stop: Event | None = None


@dataclass(frozen=True)
class Recipe:
    """What is collected.

    record      seeds of a shard, and whether to stop -> its columns, one row a tick: observations, actions, rewards, truncations
                and `infos`; no columns if nothing came of the seeds, None if it was stopped. It is sent to other processes.
                With the columns terminations and last_observations, (episodes, observations), a shard is cut into episodes
                wherever one was terminated or truncated
    settings    what the data follow from; data of other settings are kept apart
    unit        what a seed gives, for the progress bar
    reference_scores  returns that a normalised score calls 0 and 100, stored with the data; None if there are none
    """

    dataset_id: str
    env_id: str
    infos: tuple[str, ...]
    algorithm: str
    description: str
    settings: dict[str, Any]
    unit: str
    record: Callable[[range, Callable[[], bool]], Columns | None]
    reference_scores: tuple[float, float] | None = None


def collect_shards(out: Path, recipe: Recipe, seeds: range, shard_size: int, workers: int | None, progress: bool) -> float:
    """Make the data set of `recipe` under `out` and return the CPU time this took [s], 0 if it was there already.

    ValueError if `out` holds another collection, RuntimeError if nothing came of any seed.
    """
    _claim(out, recipe)
    if (out / recipe.dataset_id).exists():
        return 0.0
    shards = [(out / "shards" / f"shard-{number:05d}.npz", seeds[first : first + shard_size])
              for number, first in enumerate(range(0, len(seeds), shard_size))]
    for leftover in (out / "shards").glob("*.part"):
        leftover.unlink()
    cpu_seconds = _record_shards(recipe, shards, workers or available_cores(), progress)
    _assemble(out, recipe, [path for path, _ in shards])
    return cpu_seconds


def _claim(out: Path, recipe: Recipe) -> None:
    """Note the settings in a fresh folder, or check that a folder with data has the same ones."""
    note = out / "collection.json"
    if not note.exists():
        if (out / recipe.dataset_id).exists():
            raise ValueError(f"{out} already holds a data set that this collection did not make; choose another folder")
        (out / "shards").mkdir(parents=True, exist_ok=True)
        _write_text(note, json.dumps(recipe.settings, indent=2) + "\n")
        return
    try:
        found = json.loads(note.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{note} is damaged ({error}); remove the folder or choose another") from error
    for name, value in recipe.settings.items():
        if found.get(name) != value:
            raise ValueError(
                f"{out} holds a collection with {name} {found.get(name)}, not {value}; "
                "choose another folder or remove it"
            )


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _record_shards(recipe: Recipe, shards: list[tuple[Path, range]], workers: int, progress: bool) -> float:
    """Record the shards that are missing and return the CPU time this took [s]."""
    from tqdm.auto import tqdm

    missing = [(path, seeds) for path, seeds in shards if not path.exists()]
    total = sum(len(seeds) for _, seeds in shards)
    done = total - sum(len(seeds) for _, seeds in missing)
    cpu_seconds = 0.0
    with tqdm(total=total, initial=done, unit=recipe.unit, desc="collect", disable=not progress) as bar:
        if workers == 1 or len(missing) <= 1:
            for path, seeds in missing:
                cpu_seconds += _record_shard(recipe, path, seeds)
                bar.update(len(seeds))
            return cpu_seconds
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        with ProcessPoolExecutor(min(workers, len(missing)), context, _start_worker, (stop,)) as pool:
            futures = {pool.submit(_record_shard, recipe, path, seeds): len(seeds) for path, seeds in missing}
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


def _record_shard(recipe: Recipe, path: Path, seeds: range) -> float:
    """Record one shard, write it in one go and return the CPU time [s]; an asked-for stop leaves nothing behind."""
    started = time.process_time()
    columns = recipe.record(seeds, lambda: _stop is not None and _stop.is_set())
    if columns is not None:
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)
        os.replace(part, path)
    return time.process_time() - started


def _assemble(out: Path, recipe: Recipe, shards: list[Path]) -> None:
    """Turn the shards into the Minari data set, beside its final place and then moved there, and remove them."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    import diffuser_core.envs  # noqa: F401  registers the environments

    building = out / ".building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    dataset = None
    with datasets_path(building), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in shards:
            with np.load(path) as columns:
                if "observations" not in columns:
                    continue
                episodes = [EpisodeBuffer(**episode) for episode in _episodes(columns, recipe.infos)]
            if dataset is None:
                dataset = minari.create_dataset_from_buffers(
                    recipe.dataset_id,
                    episodes,
                    env=gymnasium.spec(recipe.env_id),
                    algorithm_name=recipe.algorithm,
                    description=recipe.description,
                    data_format="hdf5",
                    **_references(recipe),
                )
            else:
                dataset.update_dataset_from_buffer(episodes)
    if dataset is None:
        raise RuntimeError(f"no demonstration of {len(shards)} shards in {out} succeeded: there is no data to write")
    (out / recipe.dataset_id).parent.mkdir(parents=True, exist_ok=True)
    os.replace(building / recipe.dataset_id, out / recipe.dataset_id)
    shutil.rmtree(building)
    shutil.rmtree(out / "shards")


def _references(recipe: Recipe) -> dict[str, Any]:
    return {} if recipe.reference_scores is None else dict(zip(("ref_min_score", "ref_max_score"), recipe.reference_scores))


def _episodes(columns: Mapping[str, NDArray[Any]], infos: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The fields of a Minari episode for each that a shard holds."""
    rows = len(columns["rewards"])
    terminated = columns["terminations"] if "terminations" in columns else np.zeros(rows, dtype=bool)
    whole = {name: columns[name] for name in ("observations", "actions", "rewards", "truncations", *infos)}
    if "terminations" not in columns:
        ends, lasts = np.array([rows]), whole["observations"][-1:]
    else:
        ends, lasts = np.flatnonzero(terminated | whole["truncations"]) + 1, columns["last_observations"]
    for first, end, last in zip([0, *ends[:-1]], ends, lasts):
        yield {
            "observations": np.concatenate([whole["observations"][first:end], last[None]]),
            **{name: whole[name][first:end] for name in ("actions", "rewards", "truncations")},
            "terminations": terminated[first:end],
            "infos": {name: _with_last(whole[name][first:end]) for name in infos},
        }


def _with_last(values: NDArray[Any]) -> NDArray[Any]:
    """The rows and the last one again: Minari wants one observation and one info more than actions."""
    return np.concatenate([values, values[-1:]])
