"""Windows and the trainer: what the network sees, that it learns, that an interrupted run ends the same."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuser_core.checkpoint import Checkpoint, DiffusionConfig
from diffuser_core.data.demonstrations import SegmentData
from diffuser_core.data.windows import Symmetries, Windows, match_channels
from diffuser_core.planner import Planner
from diffuser_core.train.config import DataConfig, OptimizerConfig, TrainConfig
from diffuser_core.train.trainer import Trainer, TrainError
from diffuser_core.trajectory import Channels
from diffuser_core.unet import UNetConfig

CHANNELS = Channels(('a.x', 'a.y', 'b.x', 'b.y', 'q'), ('m', 'm', 'm', 'm', 'rad'))
NO_SYMMETRY = Symmetries.of(CHANNELS, (), ())


def windows_over(rows, segments, **options):
    settings = {'horizon': 4, 'stride': 2, 'goal': [], 'goal_share': 0.0, 'symmetries': NO_SYMMETRY,
                'jitter': torch.zeros(5)} | options
    return Windows(rows, segments, **settings)


def counting_rows(count):
    return torch.arange(count).float()[:, None].expand(-1, 5).clone()


def test_windows_stay_in_their_segment_and_hold_its_end():
    windows = windows_over(counting_rows(30), torch.tensor([[0, 9], [10, 29]]))
    drawn, mask = windows.sample(500, torch.Generator().manual_seed(0))
    first = drawn[:, 0, 0]
    end = torch.where(first < 10, 9, 29)
    for t in range(4):
        assert torch.equal(drawn[:, t, 0], torch.minimum(first + 2 * t, end))
    assert mask[:, 0].all() and not mask[:, 1:].any()
    assert {0.0, 10.0} <= set(first.tolist())


def test_goals_are_shown_in_their_share_and_goal_free_windows_avoid_the_end():
    windows = windows_over(counting_rows(100), torch.tensor([[0, 99]]), goal=[0, 1], goal_share=0.6)
    drawn, mask = windows.sample(4000, torch.Generator().manual_seed(0))
    with_goal = mask[:, -1, 0]
    assert with_goal.float().mean().item() == pytest.approx(0.6, abs=0.03)
    assert torch.equal(mask[:, -1, 1], with_goal) and not mask[:, -1, 2:].any()
    starts = drawn[:, 0, 0]
    assert starts[~with_goal].max() <= 75 < 90 < starts[with_goal].max()


def test_symmetries_relabel_whole_objects_and_flip_signs():
    symmetries = Symmetries.of(CHANNELS, ('a', 'b'), ('*.y', 'q'))
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]).repeat(6, 1)
    drawn, _ = windows_over(rows, torch.tensor([[0, 5]]), symmetries=symmetries).sample(200, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in drawn[:, 0].tolist()} == {
        (1, 2, 3, 4, 5), (3, 4, 1, 2, 5), (1, -2, 3, -4, -5), (3, -4, 1, -2, -5)}


def test_jitter_moves_the_first_row_of_its_channels_only():
    rows = torch.zeros(8, 5)
    drawn, _ = windows_over(rows, torch.tensor([[0, 7]]), jitter=torch.tensor([0.0, 0.0, 0.3, 0.0, 0.0])).sample(
        4000, torch.Generator().manual_seed(0))
    assert drawn[:, 0, 2].std().item() == pytest.approx(0.3 / 3 ** 0.5, rel=0.1)  # of a deviation uniform in [0, 0.3]
    drawn[:, 0, 2] = 0.0
    assert not drawn.any()


def test_patterns_that_match_nothing_are_named():
    with pytest.raises(ValueError, match="no channel matches 'c.*'"):
        match_channels(CHANNELS.names, ['a.*', 'c.*'])


def straight_lines(segments=300, rows=12):
    """A point that moves on a straight line between random places; the goal is where it ends."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(-1, 1, (segments, 2, 2))
    share = np.linspace(0, 1, rows)[:, None]
    lines = [(1 - share) * a + share * b for a, b in ends]
    bounds = np.arange(segments)[:, None] * rows + [0, rows]
    return SegmentData(np.concatenate(lines).astype(np.float32), bounds, np.zeros((segments, 2), dtype=np.int64),
                       np.arange(segments), ('x', 'y'), ('m', 'm'), 0.1, 'fingerprint-of-lines')


def config(**optimizer):
    options = {'steps': 300, 'batch': 32, 'learning_rate': 3e-3, 'warmup': 20, 'ema': 0.95, 'precision': 'float32'} | optimizer
    return TrainConfig('lines', DataConfig('unused', ('*',), goal=('x', 'y'), horizon=12), UNetConfig(16, (1, 2), context=32),
                       DiffusionConfig(levels=16), OptimizerConfig(**options), save_every=100)


def test_a_trained_model_plans_straight_to_its_goal(tmp_path):
    trainer = Trainer(config(), straight_lines(), tmp_path, command='a test')
    before = trainer.validate()
    summary = trainer.run(progress=False)
    assert summary['held_out_loss'] < 0.3 * before
    assert json.loads((tmp_path / 'summary.json').read_text()) == summary
    planner = Planner.from_checkpoint(tmp_path / 'checkpoint')
    made = planner.checkpoint.provenance
    assert made['steps'] == 300 and made['data_fingerprint'] == 'fingerprint-of-lines' and made['command'] == 'a test'
    goal = planner.conditions().known(-1, planner.channels, {'x': 0.6, 'y': -0.4})
    start, way = np.array([-0.6, 0.2]), np.array([1.2, -0.6])
    length = np.linalg.norm(way)
    for plan in planner.candidates(start, goal, count=8):  # how fast it goes is open, where it goes is not
        along = (plan.values - start) @ way / length
        aside = (plan.values - start) @ np.array([-way[1], way[0]]) / length
        assert np.abs(aside).max() < 0.15
        assert (np.diff(along) > -0.1).all()


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    data, short = straight_lines(), config(steps=20)
    Trainer(short, data, tmp_path / 'whole').run(progress=False)

    advance = Trainer._advance

    def interrupt(trainer):
        if trainer.step == 9:
            raise KeyboardInterrupt
        return advance(trainer)

    monkeypatch.setattr(Trainer, '_advance', interrupt)
    with pytest.raises(KeyboardInterrupt):
        Trainer(short, data, tmp_path / 'parts').run(progress=False)
    assert Checkpoint.load(tmp_path / 'parts' / 'checkpoint').provenance['steps'] == 9
    monkeypatch.setattr(Trainer, '_advance', advance)
    Trainer(short, data, tmp_path / 'parts').run(progress=False)
    whole, parts = (Checkpoint.load(tmp_path / name / 'checkpoint').weights for name in ('whole', 'parts'))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_folder_with_another_run_is_not_continued(tmp_path):
    Trainer(config(steps=2), straight_lines(), tmp_path).run(progress=False)
    with pytest.raises(TrainError, match='another configuration or other data'):
        Trainer(config(steps=3), straight_lines(), tmp_path).run(progress=False)
    with pytest.raises(TrainError, match='another configuration or other data'):
        Trainer(config(steps=2), dataclasses.replace(straight_lines(), fingerprint='other'), tmp_path).run(progress=False)


def test_a_run_goes_on_from_a_checkpoint_of_the_same_network(tmp_path):
    data = straight_lines()
    Trainer(config(steps=40), data, tmp_path / 'first').run(progress=False)
    parent = Checkpoint.load(tmp_path / 'first' / 'checkpoint')
    second = dataclasses.replace(config(steps=1, learning_rate=1e-9), start_from=str(tmp_path / 'first' / 'checkpoint'))
    Trainer(second, data, tmp_path / 'second').run(progress=False)
    child = Checkpoint.load(tmp_path / 'second' / 'checkpoint')
    assert all(torch.allclose(parent.weights[name], child.weights[name], atol=1e-6) for name in parent.weights)
    assert child.provenance['started_from']['steps'] == 40
    other = dataclasses.replace(second, model=UNetConfig(8, (1, 2), context=32))
    with pytest.raises(TrainError, match='another network or other channels'):
        Trainer(other, data, tmp_path / 'third')


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = Trainer(config(steps=5), straight_lines(), tmp_path)
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='not finite at step 0'):
        trainer.run(progress=False)
    assert not (tmp_path / 'checkpoint').exists()


def test_fields_that_pointers_copy_between_things_have_the_same_units():
    rows = np.random.default_rng(0).uniform(-1.0, 1.0, (60, 5)) * [1.0, 2.0, 3.0, 0.5, 7.0] + [0.0, 5.0, 1.0, 0.0, 0.0]
    data = SegmentData(rows.astype(np.float32), np.array([[0, 30], [30, 60]]), np.zeros((2, 2), dtype=np.int64), np.arange(2),
                       CHANNELS.names, CHANNELS.units, 0.1, 'fingerprint-of-things')

    def normalizer(pointers):
        settings = TrainConfig('things', DataConfig('unused', ('*',), goal=('a.x', 'a.y'), horizon=12),
                               UNetConfig(16, (1, 2), context=8, pointers=pointers), DiffusionConfig(levels=16))
        return Trainer(settings, data, Path('unused')).normalizer

    apart, alike = normalizer(()), normalizer(('x', 'y'))
    assert apart.scale[0] != apart.scale[2] and apart.offset[1] != apart.offset[3]
    for first, second in ((0, 2), (1, 3)):
        assert alike.scale[first] == alike.scale[second] and alike.offset[first] == alike.offset[second]
    normal = alike.normalize(torch.from_numpy(data.observations))
    assert normal.abs().max() <= 1.0 + 1e-6 and torch.equal(alike.scale[4], apart.scale[4])
