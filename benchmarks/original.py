"""The original planning algorithm, written out plainly and run eagerly, to measure against.

Written from the published description of the method and of the released code's settings: one gather of coefficients a level, an
eager network called with one level a trajectory, conditions written in after every step, guides differentiated
automatically, a full DDPM chain from noise for every plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from diffuser_core.schedule import cosine_betas

__all__ = ['OriginalPlanner']

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class OriginalPlanner:
    """Plans as the released code does.

    network     eager module: (noisy (batch, horizon, channels), levels (batch,)) -> clean estimate or noise
    value       eager return predictor, or None; guides twice a level, scaled by `scale` and the posterior variance, not below
                level `stop`
    """

    network: Network
    levels: int
    prediction: str = 'x0'
    clip: bool = True
    value: Network | None = None
    scale: float = 0.1
    stop: int = 2
    guide_steps: int = 2
    device: torch.device = torch.device('cpu')

    def __post_init__(self) -> None:
        betas = cosine_betas(self.levels)
        alpha_bar = np.cumprod(1.0 - betas)
        before = np.append(1.0, alpha_bar[:-1])

        def table(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).float().to(self.device)

        self._signal, self._noise = table(1.0 / np.sqrt(alpha_bar)), table(np.sqrt(1.0 / alpha_bar - 1.0))
        variance = betas * (1.0 - before) / (1.0 - alpha_bar)
        self._variance = table(variance)
        self._log_variance = table(np.log(np.clip(variance, 1e-20, None)))
        self._by_clean = table(betas * np.sqrt(before) / (1.0 - alpha_bar))
        self._by_noisy = table((1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - alpha_bar))

    def plan(self, conditions: dict[int, torch.Tensor], actions: int, start: torch.Tensor, noises: torch.Tensor,
             count: int | None = None) -> torch.Tensor:
        """Clean trajectories from `start` (batch, horizon, channels); `noises` (levels, batch, horizon, channels), one a level.

        conditions  planning step -> known state (observations,); count: number of levels to run, from the top; all by default
        """
        x = self._conditioned(start.clone(), conditions, actions)
        for i in list(reversed(range(self.levels)))[:count]:
            level = torch.full((len(x),), i, dtype=torch.long, device=self.device)
            if self.value is not None:
                x = self._guided(x, level, conditions, actions)
            with torch.no_grad():
                x = self._step(x, level, noises[i])
                x = self._conditioned(x, conditions, actions)
        return x

    def _guided(self, x: torch.Tensor, level: torch.Tensor, conditions: dict[int, torch.Tensor], actions: int) -> torch.Tensor:
        assert self.value is not None
        for _ in range(self.guide_steps):
            with torch.enable_grad():
                x.requires_grad_()
                (gradient,) = torch.autograd.grad([self.value(x, level).sum()], [x])
                x.detach_()
            gradient = self._gather(self._variance, level) * gradient
            gradient[level < self.stop] = 0
            x = self._conditioned(x + self.scale * gradient, conditions, actions)
        return x

    def _step(self, x: torch.Tensor, level: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        output = self.network(x, level)
        if self.prediction == 'epsilon':
            output = self._gather(self._signal, level) * x - self._gather(self._noise, level) * output
        if self.clip:
            output = output.clamp(-1.0, 1.0)
        mean = self._gather(self._by_clean, level) * output + self._gather(self._by_noisy, level) * x
        noise = noise.clone()
        noise[level == 0] = 0
        return mean + torch.exp(0.5 * self._gather(self._log_variance, level)) * noise

    @staticmethod
    def _conditioned(x: torch.Tensor, conditions: dict[int, torch.Tensor], actions: int) -> torch.Tensor:
        for t, state in conditions.items():
            x[:, t, actions:] = state.clone()
        return x

    @staticmethod
    def _gather(values: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return values.gather(-1, level).reshape(-1, 1, 1)
