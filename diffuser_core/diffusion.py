"""Forward process and training loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffuser_core.schedule import NoiseSchedule
from diffuser_core.unet import TemporalUNet

__all__ = ['LOSSES', 'PREDICTIONS', 'LossWeights', 'clean_estimate', 'noised', 'training_loss']

PREDICTIONS = ('x0', 'epsilon', 'v')
LOSSES = ('l2', 'l1')


@dataclass(frozen=True)
class LossWeights:
    """How much each entry's error counts: the product of three factors.

    channels      (channels,) tensor of factors a channel; None: all 1
    discount      factor from one planning step to the next, in (0, 1]
    first_action  factor of the actions on the first step that is not known, in place of the others; None: nothing special. The
                  released code has 10
    """

    channels: torch.Tensor | None = None
    discount: float = 1.0
    first_action: float | None = None

    def over(self, shape: torch.Size, actions: int, device: torch.device, known: int = 0) -> torch.Tensor:
        """Weights (horizon, channels) for trajectories of this shape (batch, horizon, channels); the first `actions` columns are
        actions, which are `known` on so many steps. The discount's factors are scaled to a mean of 1, as in the released code."""
        horizon, size = shape[1:]
        steps = self.discount ** torch.arange(horizon, dtype=torch.float32, device=device)
        channels = torch.ones(size, device=device) if self.channels is None else self.channels.to(device)
        weights = (steps / steps.mean())[:, None] * channels
        if self.first_action is not None:
            weights[known, :actions] = self.first_action
        return weights


def noised(clean: torch.Tensor, i: torch.Tensor | int, noise: torch.Tensor, schedule: NoiseSchedule) -> torch.Tensor:
    """Trajectories at levels `i` (batch,), or all at one level: sample of q(tau^i | tau^0) with this standard normal noise."""
    signal, spread = schedule.signal_and_noise(i, clean.dtype)
    return signal * clean + spread * noise


def clean_estimate(prediction: str, output: torch.Tensor, noisy: torch.Tensor, i: torch.Tensor | int,
                   schedule: NoiseSchedule) -> torch.Tensor:
    """The network's estimate of the clean trajectories, whatever it predicts; see `target`. Levels as for `noised`."""
    if prediction == 'x0':
        return output
    signal, spread = schedule.signal_and_noise(i, noisy.dtype)
    if prediction == 'v':
        return signal * noisy - spread * output
    return (noisy - spread * output) / signal


def target(prediction: str, clean: torch.Tensor, noise: torch.Tensor, i: torch.Tensor, schedule: NoiseSchedule) -> torch.Tensor:
    """What the network is trained to return: the clean trajectory, the noise, or v = signal * noise - spread * clean
    (Salimans & Ho 2022), which stays well scaled at both ends of the schedule."""
    if prediction == 'x0':
        return clean
    if prediction == 'epsilon':
        return noise
    signal, spread = schedule.signal_and_noise(i, clean.dtype)
    return signal * noise - spread * clean


def training_loss(network: TemporalUNet, clean: torch.Tensor, mask: torch.Tensor, schedule: NoiseSchedule, prediction: str,
                  generator: torch.Generator, loss: str = 'l2', weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared ('l2') or absolute ('l1') error of the prediction over the entries that are not inpainted.

    clean (batch, horizon, channels) normalised; mask of the same shape is true where the planner will know the value: those
    entries are shown to the network without noise, as they are when planning, and carry no loss. weights (horizon, channels),
    or with a batch before them, multiply the errors; the sum is divided by the number of all entries.
    """
    i = torch.randint(0, schedule.levels, (len(clean),), generator=generator, device=clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    noisy = torch.where(mask, clean, noised(clean, i, noise, schedule))
    error = network(noisy, i, network.encode(clean, mask)).to(clean.dtype) - target(prediction, clean, noise, i, schedule)
    error = error.abs() if loss == 'l1' else error.square()
    if weights is not None:
        error = error * weights
    return error.masked_fill(mask, 0.0).mean()
