"""The presets are what shared knowledge of the paper and its code says, and they can be trained and planned with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffuser_core.checkpoint import Checkpoint
from diffuser_core.normalize import Normalizer
from diffuser_core.planner import Planner
from diffuser_core.presets import DOMAINS, paper, preset_table
from diffuser_core.schedule import NoiseSchedule
from diffuser_core.trajectory import Channels
from diffuser_core.unet import TemporalUNet
from diffuser_core.value_network import ValueNetwork


@pytest.mark.parametrize(('domain', 'channels', 'published'), [
    ('hopper', 14, 3_956_302), ('walker2d', 23, 3_958_327), ('maze2d-umaze', 6, 3_682_118), ('maze2d-large', 6, 3_682_118)])
def test_networks_have_the_published_number_of_parameters(domain, channels, published):
    assert sum(p.numel() for p in TemporalUNet(channels, paper(domain).model).parameters()) == published


def test_values_of_the_released_code_and_of_the_text():
    hopper, text = paper('hopper'), paper('hopper', 'paper')
    assert (hopper.horizon, hopper.levels, hopper.prediction, hopper.clip) == (32, 20, 'x0', False)
    assert hopper.loss.first_action == 10.0 and hopper.normalizer == 'gaussian'
    assert (hopper.guide.scale, hopper.guide.stop_level, paper('hopper-medium-expert').guide.scale) == (0.1, 2, 1e-4)
    assert (paper('halfcheetah').horizon, paper('halfcheetah').guide.scale, paper('halfcheetah').guide.stop_level) == (4, 1e-3, 4)
    assert [paper(f'maze2d-{m}').horizon for m in ('umaze', 'medium', 'large')] == [128, 256, 384]
    assert [paper(f'maze2d-{m}').levels for m in ('umaze', 'medium', 'large')] == [64, 256, 256]
    kuka = paper('kuka')
    assert (kuka.levels, kuka.prediction, kuka.loss.kind, kuka.stride) == (1000, 'epsilon', 'l1', 2)
    assert kuka.optimizer.learning_rate == 2e-5
    assert (text.horizon, text.levels, text.prediction, text.optimizer.learning_rate) == (100, 100, 'epsilon', 4e-5)
    assert text.sampling().rule == 'algorithm1' and hopper.sampling().rule == 'released'
    for domain in DOMAINS:
        alpha_bar = NoiseSchedule.cosine(paper(domain).levels).alpha_bar
        edge = np.cos((np.arange(len(alpha_bar) + 1) / len(alpha_bar) + 0.008) / 1.008 * np.pi / 2) ** 2
        assert alpha_bar[:-1].numpy() == pytest.approx((edge[1:] / edge[0])[:-1], rel=1e-10)


@pytest.mark.parametrize('domain', ['hopper', 'halfcheetah', 'maze2d-umaze'])
def test_presets_train_and_plan_with_their_own_settings(domain):
    preset = paper(domain)
    config = preset.train('run', 'runs/data', ('*',), ('x', 'y') if preset.conditions != 'first' else ())
    assert config.optimizer.ema_every == 10 and config.optimizer.accumulate == 2 and config.optimizer.ema_start == 2000
    torch.manual_seed(0)
    channels = Channels(('a', 'x', 'y'), ('1', 'm', 'm'), actions=1)
    checkpoint = Checkpoint(TemporalUNet(3, config.model).state_dict(), config.model, config.diffusion,
                            Normalizer('gaussian', torch.zeros(3), torch.ones(3)), channels, config.data.horizon, 0.1)
    plan = Planner(checkpoint).plan(np.zeros(2), sampling=preset.sampling())
    assert plan.provenance['levels'] == list(range(preset.levels - 1, -1, -1)) and plan.horizon == preset.horizon
    if preset.guide:
        judge = ValueNetwork(3, preset.guide.network, preset.horizon)
        assert judge(torch.zeros(2, preset.horizon, 3), torch.tensor([0])).shape == (2,)


def test_unknown_presets_are_refused_by_name():
    with pytest.raises(ValueError, match="no preset 'ant'; there are hopper, .*, kuka"):
        paper('ant')
    with pytest.raises(ValueError, match="of 'code' or of 'paper', got 'thesis'"):
        paper('kuka', 'thesis')


def test_the_page_on_fidelity_shows_the_values_that_are_used():
    page = (Path(__file__).parents[1] / 'docs' / 'fidelity.md').read_text(encoding='utf-8')
    assert preset_table() in page
