"""The mathematics of the forward and reverse process against independent truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffuser_core.diffusion import LossWeights, clean_estimate, noised, target, training_loss
from diffuser_core.normalize import Normalizer
from diffuser_core.sampler import Denoiser, denoise, noised_start
from diffuser_core.schedule import NoiseSchedule, cosine_betas, strided_levels
from diffuser_core.trajectory import Channels
from diffuser_core.unet import TemporalUNet, UNetConfig


@pytest.mark.parametrize('levels', [20, 64, 256, 1000])
def test_cosine_schedule_is_the_closed_form(levels):
    def edge(i):
        return math.cos((i / levels + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = cosine_betas(levels)
    assert betas.max() <= 0.999
    alpha_bar = NoiseSchedule.cosine(levels).alpha_bar
    for i in range(levels - 1):  # before the clip at the last level the product telescopes
        assert alpha_bar[i].item() == pytest.approx(edge(i + 1) / edge(0), rel=1e-12)


@given(top=st.integers(1, 400), steps=st.integers(1, 500))
def test_strided_levels_fall_from_the_top_to_zero(top, steps):
    levels = strided_levels(top, steps)
    assert levels[0] == top - 1
    assert all(a > b for a, b in zip(levels, levels[1:]))
    assert len(levels) == min(top, steps)
    assert levels[-1] == (0 if len(levels) > 1 else top - 1)


def test_levels_and_steps_must_be_positive():
    with pytest.raises(ValueError, match='0 levels and 3 steps'):
        strided_levels(0, 3)
    with pytest.raises(ValueError, match='at least 1 level'):
        cosine_betas(0)


@pytest.mark.parametrize(('channels', 'multipliers', 'published'), [
    (14, (1, 2, 4, 8), 3_956_302),  # Hopper
    (23, (1, 2, 4, 8), 3_958_327),  # Walker2d
    (6, (1, 4, 8), 3_682_118),  # Maze2D
])
def test_network_has_the_published_number_of_parameters(channels, multipliers, published):
    network = TemporalUNet(channels, UNetConfig(32, multipliers))
    assert sum(p.numel() for p in network.parameters()) == published


def test_network_takes_any_legal_horizon_and_names_illegal_ones():
    network = TemporalUNet(3, UNetConfig(8, (1, 2, 4)))
    for horizon in (4, 8, 60):
        assert network(torch.zeros(2, horizon, 3), torch.tensor([0, 5])).shape == (2, horizon, 3)
    with pytest.raises(ValueError, match='multiple of 4.*got 10'):
        network(torch.zeros(1, 10, 3), torch.tensor([0]))


@pytest.mark.parametrize(('norm', 'local'), [('step', True), ('window', False)])
def test_how_far_a_step_sees(norm, local):
    """Nine convolutions of width 5 reach 18 steps; a norm over the window reaches everywhere."""
    torch.manual_seed(0)
    network = TemporalUNet(2, UNetConfig(8, (1,), norm=norm)).eval()
    x = torch.randn(1, 48, 2)
    changed = x.clone()
    changed[:, 0] += 1.0
    moved = (network(changed, torch.tensor([3])) - network(x, torch.tensor([3]))).abs().amax((0, 2))
    assert moved[18] > 0.0 and bool((moved[19:] == 0.0).all()) == local


def test_unknown_norms_are_refused():
    with pytest.raises(ValueError, match="model.norm must be one of window, step, got 'batch'"):
        UNetConfig(norm='batch')


def test_the_network_is_told_what_is_known_of_both_ends_and_nothing_else():
    torch.manual_seed(0)
    network = TemporalUNet(2, UNetConfig(8, (1, 2), context=16))
    known = torch.arange(8.0).reshape(1, 4, 2)
    mask = torch.tensor([[[True, False], [True, True], [False, False], [False, True]]])
    context = network.encode(known, mask)
    assert context[0, 16:].tolist() == [0, 0, 0, 7, 1, 0, 0, 1]
    x, i = torch.zeros(3, 4, 2), torch.tensor([1, 1, 1])
    assert not torch.allclose(network(x, i, context), network(x, i, network.encode(2 * known, mask)))
    with pytest.raises(ValueError, match='needs a context'):
        network(x, i)
    with pytest.raises(ValueError, match='takes no context'):
        TemporalUNet(2, UNetConfig(8, (1, 2)))(x, i, context)


def pointing(things=((0, 1), (2, 3)), channels=5):
    torch.manual_seed(0)
    return TemporalUNet(channels, UNetConfig(8, (1, 2), context=16, pointers=('x', 'y')), things)


def test_pointers_copy_a_known_place_exactly_and_never_an_unknown_one():
    network = pointing()
    known, mask = torch.zeros(1, 4, 5), torch.zeros(1, 4, 5, dtype=torch.bool)
    known[0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4, 9.0])
    known[0, -1] = torch.tensor([0.5, 0.6, 0.7, 0.8, 9.0])
    mask[0, 0] = True
    mask[0, -1, :2] = True
    ends = network.encode(known, mask)[:, -20:].unflatten(1, (2, 2, 5))
    head = network.pointers
    sources = {0: (0.1, 0.2), 1: (0.3, 0.4), 2: (0.5, 0.6)}  # first places of both things, last place of the first one
    torch.nn.init.zeros_(head.logits.weight)
    for source, place in sources.items():
        with torch.no_grad():
            head.logits.bias.copy_(30.0 * (torch.arange(16) % 4 == source))
        copied = head(torch.randn(1, 8, 4), ends[:, 0], ends[:, 1])[0]
        assert copied.shape == (5, 4) and torch.equal(copied[4], torch.zeros(4))
        torch.testing.assert_close(copied[:4], torch.tensor([*place, *place])[:, None].expand(4, 4))
    with torch.no_grad():
        head.logits.bias.copy_(30.0 * (torch.arange(16) % 4 == 3))  # the last place of the second thing is not known
    mixed = head(torch.randn(1, 8, 4), ends[:, 0], ends[:, 1])[0]
    torch.testing.assert_close(mixed[0], torch.full((4,), (0.1 + 0.3 + 0.5) / 3))


def test_pointers_need_a_context_and_things_with_the_fields():
    with pytest.raises(ValueError, match='model.pointers needs a model.context'):
        UNetConfig(8, (1, 2), pointers=('x',))
    with pytest.raises(ValueError, match='nothing has all the fields x, y'):
        pointing(things=())
    channels = Channels(('red.x', 'red.y', 'tip.y', 'tip.x', 'blue.x', 'q'), ('m',) * 6)
    assert channels.things(('x', 'y')) == [[0, 1], [3, 2]] and channels.things(()) == []


@pytest.mark.parametrize('prediction', ['x0', 'epsilon', 'v'])
def test_clean_estimate_inverts_the_forward_process(prediction):
    schedule = NoiseSchedule.cosine(50)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 6, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    i = torch.tensor([0, 10, 30, 48])
    noisy = noised(clean, i, noise, schedule)
    output = target(prediction, clean, noise, i, schedule)
    torch.testing.assert_close(clean_estimate(prediction, output, noisy, i, schedule), clean, rtol=1e-10, atol=1e-10)


def gaussian_denoiser(mean, covariance, schedule):
    """The exact denoiser of a Gaussian prior: E[x0 | xi], by Gaussian conditioning in float64."""
    size = len(mean)

    def network(noisy, i, context):
        alpha_bar = schedule.alpha_bar[i[0]].item()
        gain = math.sqrt(alpha_bar) * covariance @ np.linalg.inv(alpha_bar * covariance + (1 - alpha_bar) * np.eye(size))
        flat = noisy.double().numpy().reshape(len(noisy), size)
        clean = mean + (flat - math.sqrt(alpha_bar) * mean) @ gain.T
        return torch.from_numpy(clean.reshape(noisy.shape))

    return network


@pytest.mark.parametrize(('eta', 'steps', 'tolerance'), [(1.0, 200, 0.03), (0.0, 200, 0.03), (0.0, 40, 0.06)])
def test_samples_of_a_gaussian_prior_have_its_mean_and_covariance(eta, steps, tolerance):
    rng = np.random.default_rng(0)
    size, count = 6, 40_000
    root = rng.normal(size=(size, size)) / math.sqrt(size)
    mean, covariance = rng.normal(size=size) * 0.3, root @ root.T + 0.1 * np.eye(size)
    schedule = NoiseSchedule.cosine(200)
    denoiser = Denoiser(gaussian_denoiser(mean, covariance, schedule), schedule, clip=False)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(count, 3, 2, dtype=torch.float64, generator=generator)
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    known = torch.zeros(3, 2, dtype=torch.float64)
    samples = denoise(denoiser, start, strided_levels(200, steps), known, nothing, generator, eta).clean
    flat = samples.numpy().reshape(count, size)
    # the last step returns the mean of x0 given the least noisy level, so only that level's noise is missing
    assert np.abs(flat.mean(axis=0) - mean).max() < 3 * math.sqrt(covariance.max() / count) + 0.005
    assert np.abs(np.cov(flat.T) - covariance).max() < tolerance * np.abs(covariance).max()


def test_a_warm_start_returns_to_the_plan_it_came_from():
    """With the exact denoiser of a narrow prior, noising to any level and denoising gives the prior's mean back."""
    schedule = NoiseSchedule.cosine(64)
    mean = np.linspace(-0.5, 0.5, 8)
    denoiser = Denoiser(gaussian_denoiser(mean, 1e-8 * np.eye(8), schedule), schedule)
    plan = torch.from_numpy(mean).reshape(1, 4, 2)
    generator = torch.Generator().manual_seed(0)
    for i in (0, 20, 63):
        start = noised_start(plan, i, schedule, torch.randn(1, 4, 2, dtype=torch.float64, generator=generator))
        result = denoise(denoiser, start, [i], torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool), generator).clean
        torch.testing.assert_close(result.double(), plan, atol=1e-3, rtol=0)


def test_inpainted_entries_reach_every_network_call_and_the_result():
    schedule = NoiseSchedule.cosine(16)
    seen = []

    def network(noisy, i, context):
        seen.append(noisy.clone())
        return torch.zeros_like(noisy)

    known = torch.zeros(4, 2)
    mask = torch.zeros(4, 2, dtype=torch.bool)
    mask[0], mask[-1, 1] = True, True
    known[0], known[-1, 1] = 0.3, -0.7
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 4, 2, generator=generator)
    result = denoise(Denoiser(network, schedule), start, strided_levels(16, 4), known, mask, generator, eta=1.0).clean
    for x in (*seen, result):
        assert torch.equal(x[:, 0], known[0].expand(5, 2)) and torch.equal(x[:, -1, 1], known[-1, 1].expand(5))
    assert len(seen) == 4


def test_training_loss_ignores_inpainted_entries_and_shows_them_without_noise():
    schedule = NoiseSchedule.cosine(16)
    clean = torch.full((3, 4, 2), 0.5)
    mask = torch.zeros(3, 4, 2, dtype=torch.bool)
    mask[:, 0] = True
    inputs = []

    class Network:
        encode = staticmethod(lambda known, mask: None)

        def __call__(self, noisy, i, context):
            inputs.append(noisy)
            wrong = clean.clone()
            wrong[:, 0] = 99.0
            return wrong

    loss = training_loss(Network(), clean, mask, schedule, 'x0', torch.Generator().manual_seed(0))
    assert loss.item() == 0.0
    assert torch.equal(inputs[0][:, 0], clean[:, 0]) and not torch.equal(inputs[0][:, 1], clean[:, 1])


def test_weighted_losses_are_the_formula():
    schedule = NoiseSchedule.cosine(16)
    rng = np.random.default_rng(0)
    clean, wrong = (torch.from_numpy(rng.normal(size=(3, 4, 2))) for _ in range(2))
    mask = torch.zeros(3, 4, 2, dtype=torch.bool)
    mask[:, -1, 1] = True

    class Network:
        encode = staticmethod(lambda known, mask: None)

        def __call__(self, noisy, i, context):
            return wrong

    weights = LossWeights(torch.tensor([2.0, 0.5]), discount=0.9, first_action=10.0).over(clean.shape, 1, torch.device('cpu'))
    steps = 0.9 ** np.arange(4) / np.mean(0.9 ** np.arange(4))
    expected = np.array([[10.0, 0.5 * steps[0]], *((2 * s, 0.5 * s) for s in steps[1:])])
    assert weights.numpy() == pytest.approx(expected, rel=1e-6)
    error = np.abs((wrong - clean).numpy())
    error[:, -1, 1] = 0.0
    for kind, power in (('l1', 1), ('l2', 2)):
        loss = training_loss(Network(), clean, mask, schedule, 'x0', torch.Generator().manual_seed(0), kind, weights.double())
        assert loss.item() == pytest.approx((expected * error ** power).mean(), rel=1e-6)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=8),
       st.sampled_from(['limits', 'gaussian', 'identity']))
def test_normaliser_round_trip(rows, kind):
    values = np.array(rows)
    normalizer = Normalizer.fit(kind, values)
    tensor = torch.from_numpy(values).float()
    normal = normalizer.normalize(tensor)
    assert torch.isfinite(normal).all()
    back = normalizer.denormalize(normal)
    size = max(1.0, float(np.abs(values).max()))
    assert (back - tensor).abs().max() <= 1e-5 * size
    if kind == 'limits':
        assert normal.abs().max() <= 1.0 + 1e-3
    again = Normalizer.from_dict(normalizer.as_dict())
    assert torch.equal(again.normalize(tensor), normal)


def test_a_trembling_channel_is_not_blown_up_to_the_full_range():
    values = np.column_stack([np.linspace(-2, 2, 9), 1e-4 * np.linspace(-1, 1, 9), np.full(9, 3.0)])
    normalizer = Normalizer.fit('limits', values, least_scale=0.05)
    assert normalizer.scale.tolist() == pytest.approx([2.0, 0.05, 0.05])
    assert normalizer.normalize(torch.from_numpy(values)).abs().amax(0).tolist() == pytest.approx([1.0, 0.002, 0.0])


def test_normaliser_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match='finite numbers'):
        Normalizer.fit('limits', np.array([[np.nan]]))
    with pytest.raises(ValueError, match='positive finite scales'):
        Normalizer('limits', torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="unknown normaliser 'cdf'"):
        Normalizer('cdf', torch.zeros(1), torch.ones(1))
