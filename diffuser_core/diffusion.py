"""Forward process and training loss."""

from __future__ import annotations

import torch

from diffuser_core.schedule import NoiseSchedule
from diffuser_core.unet import TemporalUNet

__all__ = ['PREDICTIONS', 'clean_estimate', 'noised', 'training_loss']

PREDICTIONS = ('x0', 'epsilon')


def noised(clean: torch.Tensor, i: torch.Tensor, noise: torch.Tensor, schedule: NoiseSchedule) -> torch.Tensor:
    """Trajectories at levels `i` (batch,): sample of q(tau^i | tau^0) with the given standard normal noise."""
    signal, spread = schedule.signal_and_noise(i)
    return signal * clean + spread * noise


def clean_estimate(prediction: str, output: torch.Tensor, noisy: torch.Tensor, i: torch.Tensor,
                   schedule: NoiseSchedule) -> torch.Tensor:
    """The network's estimate of the clean trajectories, whatever it predicts."""
    if prediction == 'x0':
        return output
    signal, spread = schedule.signal_and_noise(i)
    return (noisy - spread * output) / signal


def training_loss(network: TemporalUNet, clean: torch.Tensor, mask: torch.Tensor, schedule: NoiseSchedule, prediction: str,
                  generator: torch.Generator) -> torch.Tensor:
    """Mean squared error of the prediction over the entries that are not inpainted.

    clean (batch, horizon, channels) normalised; mask of the same shape is true where the planner will know the value: those
    entries are shown to the network without noise, as they are when planning, and carry no loss.
    """
    i = torch.randint(0, schedule.levels, (len(clean),), generator=generator, device=clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    noisy = torch.where(mask, clean, noised(clean, i, noise, schedule))
    target = clean if prediction == 'x0' else noise
    error = (network(noisy, i, network.encode(clean, mask)).float() - target).square()
    return error.masked_fill(mask, 0.0).mean()
