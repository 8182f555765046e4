"""Collection of stacking demonstrations into the data set `diffuser_core.data.demonstrations.DATASET_ID`: see `shards`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffuser_core.data.demonstrations import DATASET_ID, INFOS, load_segments
from diffuser_core.envs import KUKA_STACK_ID
from diffuser_core.experts.demonstrations import RECIPE, Run, record
from diffuser_core.experts.shards import Columns, Recipe, collect_shards

SHARD_SIZE = 100


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
    settings = {"recipe": RECIPE, "demonstrations": demonstrations, "seed_start": seed_start, "shard_size": shard_size}
    recipe = Recipe(
        dataset_id=DATASET_ID,
        env_id=KUKA_STACK_ID,
        infos=INFOS,
        algorithm="scripted pick and place",
        description="Four slabs stacked by a scripted demonstrator; many demonstrations an episode, each ends at a truncation.",
        settings=settings,
        unit="demo",
        record=_record,
    )
    started = time.monotonic()
    seeds = range(seed_start, seed_start + demonstrations)
    cpu_seconds = collect_shards(out, recipe, seeds, shard_size, workers, progress)
    return _summary(out, demonstrations, cpu_seconds, time.monotonic() - started)


def _record(seeds: range, stopped: Callable[[], bool]) -> Columns | None:
    from diffuser_core.envs.kuka_stack import KukaStackEnv

    parts, env = [], KukaStackEnv()
    try:
        for seed in seeds:
            if stopped():
                return None
            parts += [_columns(run, seed) for run in record(env, seed).runs]
    finally:
        env.close()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


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
