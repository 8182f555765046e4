"""Training of what guides: the return predictor and the classifier of states, both on noised inputs and their level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional
from tqdm import trange

from diffuser_core.diffusion import noised
from diffuser_core.schedule import NoiseSchedule
from diffuser_core.value_network import StepClassifier, ValueNetwork

__all__ = ['discounted_returns', 'train_classifier', 'train_value']

Batch = Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def discounted_returns(rewards: torch.Tensor, discount: float = 0.997, terminated: bool = False,
                       termination_penalty: float | None = None, after: float = 0.0) -> torch.Tensor:
    """Return from every step of one episode to its end, sum of discount^k r; rewards (steps,) -> (steps,), float64.

    With a `termination_penalty`, the last reward of an episode that `terminated` is replaced by it (the released code: -100).
    `after` is the return of what would have followed an episode that did not terminate, but was cut off.
    """
    if rewards.dim() != 1 or len(rewards) == 0 or not 0.0 < discount <= 1.0:
        raise ValueError(f'returns need rewards of shape (steps,) and a discount in (0, 1], got {tuple(rewards.shape)} and '
                         f'{discount}')
    rewards = rewards.double().clone()
    if terminated and termination_penalty is not None:
        rewards[-1] = termination_penalty
    later, returns = 0.0 if terminated else after, []
    for reward in reversed(rewards.tolist()):
        later = reward + discount * later
        returns.append(later)
    return torch.tensor(returns[::-1], dtype=torch.float64)


def train_value(network: ValueNetwork, sample: Batch, schedule: NoiseSchedule, *, steps: int, learning_rate: float = 2e-4,
                seed: int = 0, progress: bool = False) -> list[float]:
    """Fit `network` to E[return | noised trajectory, level] by squared error; returns the loss of every step.

    sample  generator -> (trajectories (batch, horizon, channels) in normal units, returns (batch,), best scaled to about 1)
    """
    return _train(network, sample, schedule, lambda out, wanted: functional.mse_loss(out, wanted), steps, learning_rate, seed,
                  progress)


def train_classifier(network: StepClassifier, sample: Batch, schedule: NoiseSchedule, *, steps: int,
                     learning_rate: float = 1e-3, seed: int = 0) -> list[float]:
    """Fit `network` to the properties of single noised states by cross-entropy; returns the loss of every step.

    sample  generator -> (states (batch, channels) in normal units, labels (batch, classes), 0 or 1)
    """
    return _train(network, sample, schedule, functional.binary_cross_entropy_with_logits, steps, learning_rate, seed)


def _train(network: ValueNetwork | StepClassifier, sample: Batch, schedule: NoiseSchedule,
           loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], steps: int, learning_rate: float,
           seed: int, progress: bool = False) -> list[float]:
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    network.train()
    losses = []
    for step in trange(steps, disable=not progress, unit='step'):
        clean, wanted = sample(generator)
        i = torch.randint(0, schedule.levels, (len(clean),), generator=generator, device=device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        as_trajectories = clean if clean.dim() == 3 else clean[:, None]
        noisy = noised(as_trajectories, i, noise.reshape(as_trajectories.shape), schedule).reshape(clean.shape)
        error = loss(network(noisy, i), wanted.to(clean.dtype))
        if not bool(torch.isfinite(error)):
            raise FloatingPointError(f'the loss of the guide is not finite at step {step}')
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
        losses.append(error.item())
    network.eval()
    return losses
