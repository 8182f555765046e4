"""Collecting demonstrations, resuming, and loading them as segments."""

import json
import re
import shutil

import h5py
import minari
import numpy as np
import pytest

from diffuser_core.data.demonstrations import DATASET_ID, find_data_file, load_segments
from diffuser_core.envs.stacking import CHANNELS, GROUND, SLAB_HEIGHT, standing_relations
from diffuser_core.experts import collect as recipes
from diffuser_core.experts import shards as collecting
from diffuser_core.experts.collect import collect

COUNT, SEED, SHARD = 5, 60_000, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demonstrations")
    summary = collect(out, COUNT, SEED, workers=1, progress=False, shard_size=SHARD)
    assert summary["demonstrations"] == COUNT and summary["failed"] == 0
    return out


@pytest.fixture(scope="module")
def data(folder):
    return load_segments(folder)


def test_segments_are_complete_and_end_at_rest(data):
    assert data.observations.dtype == np.float32 and data.observations.shape[1] == 39
    assert data.channels == CHANNELS and data.tick_dt == pytest.approx(1 / 24)
    assert sorted(set(data.demonstrations.tolist())) == list(range(SEED, SEED + COUNT))
    for index, (upper, lower) in enumerate(data.pairs):
        rows = data.rows(index)
        assert 20 < len(rows) <= 125
        blocks = rows[:, 7:].reshape(-1, 4, 8)
        assert not blocks[-1, :, 7].any()
        assert blocks[:, upper, 7].any() and np.delete(blocks[..., 7], upper, axis=1).sum() == 0
        still = np.zeros(4)
        if lower == GROUND:
            assert blocks[-1, upper, 2] == pytest.approx(SLAB_HEIGHT / 2, abs=5e-3)
        else:
            assert (upper, lower) not in standing_relations(blocks[0, :, :3], blocks[0, :, 7], still)
            assert (upper, lower) in standing_relations(blocks[-1, :, :3], still, still)
        assert np.abs(rows[-1] - rows[-2]).max() < 2e-3


def test_segments_of_a_demonstration_share_a_row_and_others_do_not(data):
    assert data.bounds[0, 0] == 0 and data.bounds[-1, 1] == len(data.observations)
    for index in range(len(data) - 1):
        same = data.demonstrations[index] == data.demonstrations[index + 1]
        assert data.bounds[index, 1] - data.bounds[index + 1, 0] in ((0, 1) if same else (0,))
    assert (np.diff(data.bounds[:, 0]) > 0).all()
    shared = [data.bounds[n, 1] - data.bounds[n + 1, 0] for n in range(len(data) - 1)]
    assert 1 in shared and 0 in shared


def test_it_is_a_minari_data_set_of_few_episodes(folder, data, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    stored = minari.load_dataset(DATASET_ID)
    assert stored.total_episodes == -(-COUNT // SHARD)
    assert stored.total_steps == len(data.observations)
    episodes = list(stored.iterate_episodes())
    assert COUNT <= sum(episode.truncations.sum() for episode in episodes) <= len(data)
    assert episodes[0].actions.shape[1] == 8
    assert stored.spec.env_spec.id == "diffuser/KukaStack-v0"


def test_fingerprint_and_paths(folder, data):
    assert re.fullmatch(r"[0-9a-f]{64}", data.fingerprint)
    for path in (folder / DATASET_ID, find_data_file(folder)):
        assert load_segments(path).fingerprint == data.fingerprint


def test_an_interrupted_run_continues_with_the_same_data(tmp_path, data, monkeypatch):
    whole = collecting._record_shard

    def interrupted(recipe, path, seeds):
        if seeds[0] == SEED + SHARD:
            path.with_name(path.name + ".part").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        return whole(recipe, path, seeds)

    monkeypatch.setattr(collecting, "_record_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, COUNT, SEED, workers=1, progress=False, shard_size=SHARD)
    first = tmp_path / "shards" / "shard-00000.npz"
    assert [path for path in (tmp_path / "shards").iterdir() if path.suffix == ".npz"] == [first]
    written = first.stat().st_mtime_ns

    def checked(recipe, path, seeds):
        assert path != first, "a finished shard was recorded again"
        return whole(recipe, path, seeds)

    monkeypatch.setattr(collecting, "_record_shard", checked)
    assert first.stat().st_mtime_ns == written
    summary = collect(tmp_path, COUNT, SEED, workers=1, progress=False, shard_size=SHARD)
    assert summary["fingerprint"] == data.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["collection.json", "diffuser"]
    assert collect(tmp_path, COUNT, SEED, workers=1, progress=False, shard_size=SHARD)["cpu_seconds"] == 0.0


def test_workers_do_not_change_the_data(tmp_path, data):
    summary = collect(tmp_path, COUNT, SEED, workers=2, progress=False, shard_size=SHARD)
    assert summary["fingerprint"] == data.fingerprint


def test_failed_demonstrations_are_left_out_and_counted(tmp_path, monkeypatch):
    import dataclasses

    record = recipes.record
    monkeypatch.setattr(
        recipes,
        "record",
        lambda env, seed: dataclasses.replace(record(env, seed), **({"runs": ()} if seed == SEED + 1 else {})),
    )
    summary = collect(tmp_path / "some", 2, SEED, workers=1, progress=False)
    assert (summary["demonstrations"], summary["failed"]) == (1, 1)
    with pytest.raises(RuntimeError, match="no demonstration of 1 shards"):
        collect(tmp_path / "none", 1, SEED + 1, workers=1, progress=False)


def test_other_settings_need_another_folder(folder):
    with pytest.raises(ValueError, match=f"seed_start {SEED}, not 7"):
        collect(folder, COUNT, 7, workers=1, progress=False, shard_size=SHARD)
    with pytest.raises(ValueError, match="at least 1"):
        collect(folder, 0, SEED, workers=1, progress=False)


def test_a_damaged_note_is_named(tmp_path):
    (tmp_path / "collection.json").write_text("{")
    with pytest.raises(ValueError, match=r"collection\.json is damaged"):
        collect(tmp_path, 1, SEED, workers=1, progress=False)
    (tmp_path / "collection.json").write_text(json.dumps({"recipe": 0}))
    with pytest.raises(ValueError, match="recipe 0, not"):
        collect(tmp_path, 1, SEED, workers=1, progress=False)


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no demonstrations at .*nothing"):
        load_segments(tmp_path / "nothing")
    broken = tmp_path / "main_data.hdf5"
    shutil.copy(find_data_file(folder), broken)
    with broken.open("r+b") as file:
        file.truncate(4000)
    with pytest.raises(ValueError, match=r"main_data\.hdf5 are damaged"):
        load_segments(broken)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda episode: episode.pop("truncations"), "truncations"),
        (lambda episode: episode["observations"].__setitem__((3, 4), np.nan), "not finite"),
        (lambda episode: episode["truncations"].__setitem__(-1, False), "cut off"),
        (lambda episode: episode["infos"].pop("upper"), "upper"),
    ],
)
def test_a_data_set_with_a_fault_is_refused(folder, tmp_path, damage, part):
    copy = tmp_path / "main_data.hdf5"
    shutil.copy(find_data_file(folder), copy)
    with h5py.File(copy, "a") as file:
        damage(file["episode_0"])
    with pytest.raises(ValueError) as error:
        load_segments(copy)
    assert part in str(error.value) and str(copy) in str(error.value)
