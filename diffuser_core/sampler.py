"""The reverse process: from noise, or from a noised earlier plan, to trajectories.

One loop serves every case. DDIM (Song et al. 2021, eq. 12) with `eta` 0 is deterministic, with `eta` 1 and every level
visited it is DDPM, the paper's Algorithm 1 without a guide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffuser_core.diffusion import clean_estimate, noised
from diffuser_core.schedule import NoiseSchedule

__all__ = ['Denoiser', 'denoise', 'noised_start']

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Encoder = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Denoiser:
    """A network with what is needed to read its output: `prediction` 'x0' or 'epsilon', and whether estimates are clipped.

    encode  what the network is told of the known values beforehand; None if it is told nothing
    """

    network: Network
    schedule: NoiseSchedule
    prediction: str = 'x0'
    clip: bool = True
    encode: Encoder | None = None

    def estimate(self, noisy: torch.Tensor, i: int, context: torch.Tensor | None) -> torch.Tensor:
        """Clean estimate of `noisy` (batch, horizon, channels) at level `i`, given the context of what is known."""
        levels = torch.full((len(noisy),), i, device=noisy.device)
        clean = clean_estimate(self.prediction, self.network(noisy, levels, context), noisy, levels, self.schedule)
        return clean.clamp(-1.0, 1.0) if self.clip else clean


def noised_start(plan: torch.Tensor, i: int, schedule: NoiseSchedule, noise: torch.Tensor) -> torch.Tensor:
    """An earlier plan brought to level `i` (paper, section 5.4); all (batch, horizon, channels)."""
    return noised(plan, torch.full((len(noise),), i, device=noise.device), noise, schedule)


def denoise(denoiser: Denoiser, start: torch.Tensor, levels: Sequence[int], known: torch.Tensor, mask: torch.Tensor,
            generator: torch.Generator, eta: float = 0.0) -> torch.Tensor:
    """Clean trajectories from `start` (batch, horizon, channels) at level `levels[0]`, visiting `levels` downwards.

    `known` and `mask` (horizon, channels) are written in before every network call and at the end. `eta` 0 adds no noise
    on the way.
    """
    alpha_bar = denoiser.schedule.alpha_bar.tolist()
    context = denoiser.encode(known[None], mask[None]) if denoiser.encode else None
    x = torch.where(mask, known, start)
    clean = x
    for n, i in enumerate(levels):
        clean = torch.where(mask, known, denoiser.estimate(x, i, context))
        if n + 1 == len(levels):
            break
        here, there = alpha_bar[i], alpha_bar[levels[n + 1]]
        spread = eta * ((1 - there) / (1 - here) * (1 - here / there)) ** 0.5
        epsilon = (x - here ** 0.5 * clean) / (1 - here) ** 0.5
        x = there ** 0.5 * clean + max(1 - there - spread ** 2, 0.0) ** 0.5 * epsilon
        if spread:
            x = x + spread * torch.randn(x.shape, generator=generator, device=x.device)
        x = torch.where(mask, known, x)
    return clean
