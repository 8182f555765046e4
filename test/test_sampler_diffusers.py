"""The samplers agree with the schedulers of the `diffusers` library, on the same networks, levels and noise (float64)."""

import os

os.environ['HF_HUB_OFFLINE'] = '1'  # nothing is looked up; before the import, which reads it

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from gaussian_prior import Gaussian

from diffuser_core.sampler import Denoiser, denoise
from diffuser_core.schedule import NoiseSchedule, cosine_betas, strided_levels

LEVELS = 100
SCHEDULE = NoiseSchedule.cosine(LEVELS)
PRIOR = Gaussian.random(1)
TYPES = {'x0': 'sample', 'epsilon': 'epsilon', 'v': 'v_prediction'}
FREE = torch.zeros(3, 2, dtype=torch.bool)
NOTHING = torch.zeros(3, 2, dtype=torch.float64)


def start():
    return torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def theirs(scheduler, prediction, levels, **options):
    """Samples by their loop, with their tables in double precision."""
    network = PRIOR.network(SCHEDULE, prediction)
    x = start()
    for i in levels:
        x = scheduler.step(network(x, torch.tensor([i]), None), i, x, **options).prev_sample
    return x


def ours(prediction, levels, eta, solver='ddim', seed=3):
    denoiser = Denoiser(PRIOR.network(SCHEDULE, prediction), SCHEDULE, prediction, clip=False)
    return denoise(denoiser, start(), levels, NOTHING, FREE, torch.Generator().manual_seed(seed), eta, solver=solver).clean


@pytest.mark.parametrize('prediction', TYPES)
@pytest.mark.parametrize('eta', [0.0, 0.4, 1.0])
@pytest.mark.parametrize('steps', [100, 25, 10])
def test_ddim(prediction, eta, steps):
    levels = list(range(LEVELS - LEVELS // steps, -1, -(LEVELS // steps)))  # theirs needs even strides
    scheduler = DDIMScheduler(LEVELS, trained_betas=cosine_betas(LEVELS), clip_sample=False, set_alpha_to_one=True,
                              prediction_type=TYPES[prediction])
    scheduler.alphas_cumprod = SCHEDULE.alpha_bar
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == levels
    result = theirs(scheduler, prediction, levels, eta=eta, generator=torch.Generator().manual_seed(3))
    assert (result - ours(prediction, levels, eta)).abs().max() < 1e-10


@pytest.mark.parametrize('prediction', TYPES)
def test_ddpm(prediction):
    levels = list(range(LEVELS - 1, -1, -1))
    scheduler = DDPMScheduler(LEVELS, trained_betas=cosine_betas(LEVELS), clip_sample=False, prediction_type=TYPES[prediction],
                              variance_type='fixed_small')
    scheduler.alphas_cumprod = SCHEDULE.alpha_bar
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    result = theirs(scheduler, prediction, levels, generator=torch.Generator().manual_seed(3))
    assert (result - ours(prediction, levels, 1.0)).abs().max() < 1e-10


@pytest.mark.filterwarnings('ignore::DeprecationWarning:diffusers')
@pytest.mark.parametrize('prediction', TYPES)
@pytest.mark.parametrize('steps', [100, 20, 5, 2])
def test_dpm_solver(prediction, steps):
    levels = strided_levels(LEVELS, steps)
    scheduler = DPMSolverMultistepScheduler(LEVELS, trained_betas=cosine_betas(LEVELS), prediction_type=TYPES[prediction],
                                            algorithm_type='dpmsolver++', solver_order=2, solver_type='midpoint',
                                            lower_order_final=False, euler_at_final=True, final_sigmas_type='zero')
    scheduler.set_timesteps(timesteps=levels)
    alpha_bar = SCHEDULE.alpha_bar[levels]
    scheduler.sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1, dtype=torch.float64)])
    scheduler.timesteps = torch.tensor(levels)
    network, x, outputs = PRIOR.network(SCHEDULE, prediction), start(), []
    for n, i in enumerate(levels):  # what their step() does, which rounds to single precision
        scheduler._step_index = n
        outputs = [*outputs[-1:], scheduler.convert_model_output(network(x, torch.tensor([i]), None), sample=x)]
        if n in (0, steps - 1):
            x = scheduler.dpm_solver_first_order_update(outputs[-1], sample=x)
        else:
            x = scheduler.multistep_dpm_solver_second_order_update(outputs, sample=x)
    assert (x - ours(prediction, levels, 0.0, 'dpm++')).abs().max() < 1e-9
