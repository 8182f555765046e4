"""Sampling is exact: for a Gaussian distribution of trajectories mean, covariance, conditionals and tilts are known.

Deterministic samplers are affine maps there, so their result's mean and covariance are computed without random numbers. What
remains is the error of the finite number of steps; tolerances are about twice what is measured (docs/sampling.md).
"""

import math

import numpy as np
import pytest
import torch
from gaussian_prior import Gaussian, affine_map, deterministic_error
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuser_core.budget import Budget
from diffuser_core.sampler import RULES, Denoiser, Guidance, SoftKnown, denoise, noised_start
from diffuser_core.schedule import NoiseSchedule, strided_levels

PRIOR = Gaussian.random()
UNIT = Gaussian(PRIOR.mean, np.eye(6))
SLOPE = np.linspace(-1.0, 1.0, 6)
CURVATURE = np.diag(np.linspace(0.5, 3.0, 6))
FREE = torch.zeros(3, 2, dtype=torch.bool)
NOTHING = torch.zeros(3, 2, dtype=torch.float64)


def linear(x, i):
    """Value and gradient of J = SLOPE x."""
    return torch.zeros(len(x)), torch.from_numpy(np.broadcast_to(SLOPE.reshape(3, 2), x.shape).copy())


def normal(count, seed=0):
    return torch.randn(count, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('prediction', ['x0', 'epsilon', 'v'])
@pytest.mark.parametrize(('solver', 'steps', 'tolerance'), [('ddim', 1000, 7e-3), ('ddim', 80, 0.09), ('dpm++', 1000, 1e-4),
                                                            ('dpm++', 80, 6e-3)])
def test_deterministic_solvers_turn_noise_into_the_prior(prediction, solver, steps, tolerance):
    mean_error, covariance_error = deterministic_error(PRIOR, PRIOR, steps, solver, prediction=prediction)
    assert mean_error < 1e-4 and covariance_error < tolerance


def test_the_second_order_solver_is_of_second_order_and_the_other_of_first():
    def errors(solver):
        return [deterministic_error(PRIOR, PRIOR, steps, solver)[1] for steps in (20, 40, 80)]

    assert all(1.8 < a / b < 2.2 for a, b in zip(errors('ddim'), errors('ddim')[1:]))
    assert all(3.5 < a / b < 4.8 for a, b in zip(errors('dpm++'), errors('dpm++')[1:]))


@pytest.mark.parametrize('eta', [0.5, 1.0])
def test_stochastic_sampling_gives_the_prior(eta):
    count, schedule = 20_000, NoiseSchedule.cosine(300)
    denoiser = Denoiser(PRIOR.network(schedule), schedule, clip=False)
    drawn = denoise(denoiser, normal(count), strided_levels(300, 300), NOTHING, FREE,
                    torch.Generator().manual_seed(1), eta).clean.numpy().reshape(count, 6)
    # three standard errors of a mean, and five of the largest variance
    assert np.abs(drawn.mean(0) - PRIOR.mean).max() < 3 * math.sqrt(PRIOR.covariance.max() / count)
    assert np.abs(np.cov(drawn.T) - PRIOR.covariance).max() < 5 * PRIOR.covariance.max() * math.sqrt(2 / count)


KNOWN = {0: 0.4, 1: -0.2, 5: 1.0}


def inpainting():
    mask, known = FREE.clone(), NOTHING.clone()
    for index, value in KNOWN.items():
        mask.view(-1)[index], known.view(-1)[index] = True, value
    return mask, known


@pytest.mark.parametrize(('solver', 'tolerance'), [('ddim', 7e-3), ('dpm++', 1e-4)])
def test_a_network_that_is_told_what_is_known_gives_the_exact_conditional(solver, tolerance):
    mask, known = inpainting()
    truth = PRIOR.given(KNOWN)
    schedule = NoiseSchedule.cosine(1000)
    # the network that training would give: it sees known entries without noise and estimates the rest given them
    rest = Gaussian(truth.mean, truth.covariance + 1e-12 * np.eye(6))
    matrix, offset = affine_map(Denoiser(rest.network(schedule), schedule, clip=False), strided_levels(1000, 1000), PRIOR,
                                solver=solver, known=known, mask=mask)
    assert np.abs(offset - truth.mean).max() < 1e-4
    assert np.abs(matrix @ matrix.T - truth.covariance).max() < tolerance


def replaced(resample, count=2000, steps=100):
    """Error of mean and covariance where only replacement tells the unconditional network what is known."""
    mask, known = inpainting()
    schedule = NoiseSchedule.cosine(1000)
    denoiser = Denoiser(PRIOR.network(schedule), schedule, clip=False)
    drawn = denoise(denoiser, normal(count), strided_levels(1000, steps), known, mask,
                    torch.Generator().manual_seed(1), 1.0, resample=resample).clean.numpy().reshape(count, 6)
    truth = PRIOR.given(KNOWN)
    assert np.abs(drawn[:, list(KNOWN)] - list(KNOWN.values())).max() == 0.0
    return np.abs(drawn.mean(0) - truth.mean).max(), np.abs(np.cov(drawn.T) - truth.covariance).max()


@pytest.mark.parametrize('solver', ['ddim', 'dpm++'])
@pytest.mark.parametrize('curvature', [None, CURVATURE])
def test_guidance_by_the_exact_objective_of_every_level_gives_the_exact_tilt(solver, curvature):
    truth = PRIOR.tilted(SLOPE, curvature)
    mean_error, covariance_error = deterministic_error(
        PRIOR, truth, 1000, solver, gradient=lambda schedule: PRIOR.exact_guide(schedule, SLOPE, curvature))
    assert mean_error < 1e-4 and covariance_error < (7e-3 if solver == 'ddim' else 1e-4)


def test_guidance_through_the_network_is_exact_for_a_linear_objective():
    mean_error, covariance_error = deterministic_error(PRIOR, PRIOR.tilted(SLOPE), 1000, 'dpm++', gradient=lambda _: linear,
                                                       rule='posterior', differentiable=True)
    assert mean_error < 1e-4 and covariance_error < 1e-4


def test_guidance_of_clean_estimates_is_exact_for_a_linear_objective_and_a_prior_without_correlations():
    mean_error, covariance_error = deterministic_error(UNIT, UNIT.tilted(SLOPE), 1000, 'dpm++', gradient=lambda _: linear,
                                                       rule='clean')
    assert mean_error < 2e-4 and covariance_error < 1e-4


def test_guidance_of_stochastic_samples_gives_the_tilt():
    count, schedule = 20_000, NoiseSchedule.cosine(300)
    truth = PRIOR.tilted(SLOPE, CURVATURE)
    denoiser = Denoiser(PRIOR.network(schedule), schedule, clip=False)
    drawn = denoise(denoiser, normal(count), strided_levels(300, 300), NOTHING, FREE, torch.Generator().manual_seed(1), 1.0,
                    guidance=Guidance(PRIOR.exact_guide(schedule, SLOPE, CURVATURE), 'score')).clean.numpy().reshape(count, 6)
    assert np.abs(drawn.mean(0) - truth.mean).max() < 3 * math.sqrt(truth.covariance.max() / count) + 2e-3
    assert np.abs(np.cov(drawn.T) - truth.covariance).max() < 5 * truth.covariance.max() * math.sqrt(2 / count) + 5e-3


def posterior(schedule, i):
    """Coefficients of DDPM's posterior q(tau^{i-1} | tau^i, tau^0): of tau^0, of tau^i, and its variance."""
    a = [1.0, *schedule.alpha_bar.tolist()]
    here, there = a[i + 1], a[i]
    beta = 1.0 - here / there
    return (math.sqrt(there) * beta / (1 - here), math.sqrt(here / there) * (1 - there) / (1 - here),
            beta * (1 - there) / (1 - here))


def quadratic(x, i):
    """A level-dependent value and gradient: J = -(1 + i / 10) |x - 0.3|^2 / 2."""
    return -(1 + i / 10) * (x - 0.3).square().sum((1, 2)) / 2, -(1 + i / 10) * (x - 0.3)


def test_the_guided_update_is_algorithm_1_of_the_paper_written_out():
    levels, scale = 20, 0.7
    schedule = NoiseSchedule.cosine(levels)
    mask, known = inpainting()
    network = PRIOR.network(schedule)
    scaled = Guidance(lambda x, i: tuple(scale * part for part in quadratic(x, i)), 'algorithm1')
    ours = denoise(Denoiser(network, schedule, clip=False), normal(4), list(range(19, -1, -1)), known, mask,
                   torch.Generator().manual_seed(5), 1.0, guidance=scaled).clean

    generator = torch.Generator().manual_seed(5)
    tau = torch.where(mask, known, normal(4))
    for i in range(levels - 1, -1, -1):
        by_clean, by_noisy, variance = posterior(schedule, i)
        estimate = torch.where(mask, known, network(tau, torch.tensor([i]), None))
        mean = by_clean * estimate + by_noisy * tau
        if i:
            _, gradient = quadratic(mean, i - 1)
            mean = mean + scale * variance * gradient.masked_fill(mask, 0.0)
            mean = mean + math.sqrt(variance) * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        tau = torch.where(mask, known, mean)
    assert (ours - tau).abs().max() < 1e-12


def test_the_released_rule_is_the_released_locomotion_loop_written_out():
    """Twice over, the gradient at tau^i times the variance, nothing below the stop level, then one ordinary step."""
    levels, scale, stop = 20, 0.1, 2
    schedule = NoiseSchedule.cosine(levels)
    mask, known = inpainting()
    network = PRIOR.network(schedule)
    guidance = Guidance(lambda x, i: tuple(scale * part for part in quadratic(x, i)), 'released', steps=2, stop_level=stop)
    out = denoise(Denoiser(network, schedule, clip=False), normal(4), list(range(19, -1, -1)), known, mask,
                  torch.Generator().manual_seed(5), 1.0, guidance=guidance)

    generator = torch.Generator().manual_seed(5)
    tau = torch.where(mask, known, normal(4))
    for i in range(levels - 1, -1, -1):
        by_clean, by_noisy, variance = posterior(schedule, i)
        for _ in range(2):
            value, gradient = quadratic(tau, i)
            if i >= stop:
                seen, tau = value, torch.where(mask, known, tau + scale * variance * gradient)
        mean = by_clean * torch.where(mask, known, network(tau, torch.tensor([i]), None)) + by_noisy * tau
        if i:
            mean = mean + math.sqrt(variance) * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        tau = torch.where(mask, known, mean)
    assert (out.clean - tau).abs().max() < 1e-12
    assert (out.values - scale * seen).abs().max() < 1e-12


def test_resampling_reconciles_what_replacement_alone_leaves_apart():
    """Replacement inpainting with an unconditional network is biased, however many steps; repeating levels mends part of it."""
    (mean_once, covariance_once), (mean_often, covariance_often) = replaced(0), replaced(3)
    assert mean_once > 0.15 and mean_often < 0.8 * mean_once  # 0.20 and 0.13
    assert covariance_often < 0.6 * covariance_once  # 0.05 and 0.17


@pytest.mark.parametrize('weight', [0.0, 0.25, 1.0])
def test_a_wanted_value_moves_the_estimate_by_its_weight_and_through_the_network_the_same_for_a_unit_prior(weight):
    schedule = NoiseSchedule.cosine(50)
    denoiser = Denoiser(UNIT.differentiable(schedule), schedule, clip=False)
    wanted = torch.full((3, 2), 0.8, dtype=torch.float64)
    plain = denoise(denoiser, normal(4), [30], NOTHING, FREE, torch.Generator()).clean
    for through in (False, True):
        soft = SoftKnown(wanted, torch.full((3, 2), weight, dtype=torch.float64), through)
        drawn = denoise(denoiser, normal(4), [30], NOTHING, FREE, torch.Generator(), soft=soft).clean
        assert (drawn - (plain + weight * (wanted - plain))).abs().max() < 1e-12


@pytest.mark.parametrize('k', [1, 8, 20, 64])
def test_the_papers_warm_start_keeps_the_prior(k):
    """Section 5.4: a plan drawn from the prior, noised to level k and denoised k levels, is again a draw from the prior."""
    schedule = NoiseSchedule.cosine(64)
    denoiser = Denoiser(PRIOR.network(schedule), schedule, clip=False)
    matrix, offset = affine_map(denoiser, list(range(k - 1, -1, -1)), PRIOR, solver='dpm++')
    a = schedule.alpha_bar[k - 1].item()
    mean = matrix @ (math.sqrt(a) * PRIOR.mean) + offset
    covariance = matrix @ (a * PRIOR.covariance + (1 - a) * np.eye(6)) @ matrix.T
    assert np.abs(mean - PRIOR.mean).max() < 1e-3
    assert np.abs(covariance - PRIOR.covariance).max() < 0.02  # what 64 steps leave of the shortest
    plan, noise = normal(2, 3), normal(2, 4)
    start = noised_start(plan, k - 1, schedule, noise)
    assert (start - (math.sqrt(a) * plan + math.sqrt(1 - a) * noise)).abs().max() < 1e-12


class Clock:
    """Each look at it takes one second of its list."""

    def __init__(self, *durations):
        self.now, self.durations = 0.0, list(durations)

    def __call__(self):
        now = self.now
        if self.durations:
            self.now += self.durations.pop(0)
        return now


@pytest.mark.parametrize(('durations', 'seconds', 'steps'), [
    ([1, 1, 1, 1, 1], 10.0, 5),
    ([1, 1, 1, 1, 1], 3.5, 3),
    ([1, 1, 1, 1, 1], 3.0, 3),
    ([1, 3, 1, 1, 1], 6.5, 2),  # the longest step so far would not fit any more
    ([9, 1, 1, 1, 1], 2.0, 1),  # the first step is always taken
])
def test_an_anytime_plan_stops_before_the_step_that_would_be_late(durations, seconds, steps):
    schedule = NoiseSchedule.cosine(50)
    denoiser = Denoiser(PRIOR.network(schedule), schedule, clip=False)
    levels = strided_levels(50, 5)
    out = denoise(denoiser, normal(1), levels, NOTHING, FREE, torch.Generator(), budget=Budget(seconds, Clock(*durations)))
    assert out.visited == levels[:steps]
    cut = denoise(denoiser, normal(1), levels[:steps], NOTHING, FREE, torch.Generator())
    assert torch.equal(out.clean, cut.clean)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RULES), st.sampled_from(['ddim', 'dpm++']), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2),
       st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 6), st.floats(-2, 2))
def test_known_entries_survive_whatever_is_combined(rule, solver, eta, resample, shown, steps, value):
    schedule = NoiseSchedule.cosine(16)
    denoiser = Denoiser(PRIOR.differentiable(schedule), schedule, clip=False)
    mask = torch.tensor(shown).reshape(3, 2)
    known = torch.full((3, 2), value, dtype=torch.float64)
    guidance = Guidance(linear, rule)

    def draw():
        return denoise(denoiser, normal(2), strided_levels(16, steps), known, mask, torch.Generator().manual_seed(0), eta,
                       solver=solver, guidance=guidance, resample=resample).clean

    if solver == 'dpm++' and (eta or rule == 'algorithm1'):
        with pytest.raises(ValueError, match="'dpm\\+\\+' is deterministic"):
            draw()
        return
    drawn = draw()
    assert torch.equal(drawn[:, mask], known[mask].expand(2, -1))
    assert torch.isfinite(drawn).all() and torch.equal(drawn, draw())


def test_a_limit_holds_steep_guides_back_and_leaves_gentle_ones_alone():
    schedule = NoiseSchedule.cosine(50)
    denoiser = Denoiser(UNIT.network(schedule), schedule, clip=False)

    def shift(steepness, limit):
        guidance = Guidance(lambda x, i: (linear(x, i)[0], steepness * linear(x, i)[1]), limit=limit)
        guided = denoise(denoiser, normal(3), [30], NOTHING, FREE, torch.Generator(), guidance=guidance).clean
        return guided - denoise(denoiser, normal(3), [30], NOTHING, FREE, torch.Generator()).clean

    assert torch.allclose(shift(0.01, 0.2), shift(0.01, None))
    steep = shift(100.0, 0.2)
    assert torch.allclose(steep.abs().amax((1, 2)), torch.full((3,), 0.2, dtype=torch.float64))
    plain = shift(1.0, None)
    assert torch.allclose(steep / 0.2, plain / plain.abs().amax((1, 2), keepdim=True))  # its direction is kept
    with pytest.raises(ValueError, match='a positive limit, got 1, 0 and 0.0'):
        Guidance(linear, limit=0.0)


def test_unknown_solvers_and_rules_are_refused_by_name():
    schedule = NoiseSchedule.cosine(4)
    denoiser = Denoiser(PRIOR.network(schedule), schedule)
    with pytest.raises(ValueError, match="unknown solver 'euler'; there are ddim, dpm"):
        denoise(denoiser, normal(1), [3], NOTHING, FREE, torch.Generator(), solver='euler')
    with pytest.raises(ValueError, match="unknown guidance rule 'magic'; there are clean, posterior"):
        Guidance(linear, 'magic')
    with pytest.raises(ValueError, match='at least one level'):
        denoise(denoiser, normal(1), [], NOTHING, FREE, torch.Generator())
