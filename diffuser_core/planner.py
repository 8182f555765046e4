"""The planner: a checkpoint made ready to answer 'what next?' from a state, conditions and, if there is one, the last plan."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffuser_core.checkpoint import Checkpoint
from diffuser_core.conditions import Conditions
from diffuser_core.sampler import Denoiser, Network, denoise, noised_start
from diffuser_core.schedule import NoiseSchedule, strided_levels
from diffuser_core.trajectory import Channels, Plan
from diffuser_core.unet import TemporalUNet

__all__ = ['DEFAULT_SAMPLING', 'Planner', 'Sampling']


@dataclass(frozen=True)
class Sampling:
    """How a plan is drawn.

    steps  network calls a plan made from pure noise
    warm_steps  network calls a plan made from an earlier one
    warm_level  share of the denoising levels that the earlier plan is noised up to, in (0, 1]
    eta    noise added on the way: 0 none (DDIM), 1 as DDPM
    """

    steps: int = 6
    warm_steps: int = 3
    warm_level: float = 0.5
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warm_steps < 1:
            raise ValueError(f'a plan needs at least one denoising step, got {self.steps} cold and {self.warm_steps} warm')
        if not 0.0 < self.warm_level <= 1.0 or not 0.0 <= self.eta <= 1.0:
            raise ValueError(f'warm_level lies in (0, 1] and eta in [0, 1], got {self.warm_level} and {self.eta}')


DEFAULT_SAMPLING = Sampling()


class Planner:
    """Plans with one trained model.

    Every draw comes from a generator seeded with `seed`: the same seed and the same calls give the same plans on the same
    device and thread count. Not thread-safe.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str = 'cpu', seed: int = 0) -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self._normalizer = checkpoint.normalizer.to(self.device)
        diffusion = checkpoint.diffusion
        network = checkpoint.network().to(self.device)
        self._denoiser = Denoiser(_traced(network, checkpoint), NoiseSchedule.cosine(diffusion.levels), diffusion.prediction,
                                  diffusion.clip, network.encode)
        self._generator = torch.Generator(self.device)
        self.reseed(seed)

    @classmethod
    def from_checkpoint(cls, folder: Path | str, *, device: str = 'cpu', seed: int = 0) -> Planner:
        """Load a checkpoint folder; CheckpointError if it is missing, damaged or does not fit itself."""
        return cls(Checkpoint.load(Path(folder)), device=device, seed=seed)

    @property
    def channels(self) -> Channels:
        """Columns of the plans."""
        return self.checkpoint.channels

    @property
    def step_dt(self) -> float:
        """Seconds between the rows of a plan."""
        return self.checkpoint.step_dt

    def reseed(self, seed: int) -> None:
        """Start the sequence of random draws again."""
        self._seed = seed
        self._generator.manual_seed(seed)

    def conditions(self, horizon: int | None = None) -> Conditions:
        """Empty conditions for this model's channels, to add known values to."""
        return Conditions.none(horizon or self.checkpoint.horizon, self.channels)

    def plan(self, observation: np.ndarray, conditions: Conditions | None = None, *, warm_start: Plan | None = None,
             sampling: Sampling = DEFAULT_SAMPLING, t0: float = 0.0) -> Plan:
        """One plan from `observation` (observations,) in physical units, the state at time `t0` [s].

        `conditions` holds further known entries and fixes the horizon; without it the horizon is training's. `warm_start`
        is an earlier plan, shifted to `t0` and noised. ValueError, one sentence, for wrong shapes and non-finite numbers.
        """
        return self.candidates(observation, conditions, count=1, warm_start=warm_start, sampling=sampling, t0=t0)[0]

    def candidates(self, observation: np.ndarray, conditions: Conditions | None = None, *, count: int,
                   warm_start: Plan | None = None, sampling: Sampling = DEFAULT_SAMPLING, t0: float = 0.0) -> list[Plan]:
        """`count` independent plans in one batch; arguments as for `plan`."""
        conditions = self.conditions() if conditions is None else conditions
        mask, values = self._known(observation, conditions)
        known = self._normalizer.normalize(values)
        shape = (count, *mask.shape)
        noise = torch.randn(shape, generator=self._generator, device=self.device)
        levels = self._denoiser.schedule.levels
        if warm_start is None:
            visited = strided_levels(levels, sampling.steps)
            start = noise
        else:
            if warm_start.channels != self.channels or warm_start.horizon != len(mask):
                raise ValueError(f'a warm start needs a plan of this model with horizon {len(mask)}, got one of '
                                 f'{len(warm_start.channels)} channels and horizon {warm_start.horizon}')
            visited = strided_levels(max(1, round(sampling.warm_level * levels)), sampling.warm_steps)
            shifted = torch.from_numpy(warm_start.shifted(t0)).float().to(self.device)
            start = noised_start(self._normalizer.normalize(shifted).expand(shape), visited[0], self._denoiser.schedule, noise)
        with torch.inference_mode():
            clean = denoise(self._denoiser, start, visited, known, mask, self._generator, sampling.eta)
            physical = torch.where(mask, values, self._normalizer.denormalize(clean)).double().cpu().numpy()
        provenance = {'levels': visited, 'seed': self._seed, 'warm': warm_start is not None}
        if not np.isfinite(physical).all():
            raise FloatingPointError('the network returned a plan with non-finite values')
        return [Plan(row, self.channels, t0, self.step_dt, provenance) for row in physical]

    def _known(self, observation: np.ndarray, conditions: Conditions) -> tuple[torch.Tensor, torch.Tensor]:
        channels = self.channels
        observation = np.asarray(observation, dtype=np.float64)
        if observation.shape != (len(channels.observations),):
            raise ValueError(f'the observation needs shape ({len(channels.observations)},), got {observation.shape}')
        if not np.isfinite(observation).all():
            wrong = channels.observations[int(np.flatnonzero(~np.isfinite(observation))[0])]
            raise ValueError(f'the observation of {wrong} is not a finite number')
        if conditions.mask.shape[1] != len(channels):
            raise ValueError(f'conditions need {len(channels)} channels, got {conditions.mask.shape[1]}')
        multiple = self.checkpoint.model.horizon_multiple
        horizon = len(conditions.mask)
        if horizon < 2 or horizon % multiple:
            raise ValueError(f'the horizon must be a multiple of {multiple}, got {horizon}; the nearest are '
                             f'{max(multiple, horizon // multiple * multiple)} and {(horizon // multiple + 1) * multiple}')
        mask, values = conditions.mask.copy(), conditions.values.copy()
        mask[0, channels.actions:] = True
        values[0, channels.actions:] = observation
        values[~mask] = 0.0
        return torch.from_numpy(mask).to(self.device), torch.from_numpy(values).float().to(self.device)


def _traced(network: TemporalUNet, checkpoint: Checkpoint) -> Network:
    """The network as one graph: the same numbers, without Python's overhead for every operation; any batch and horizon."""
    device = next(network.parameters()).device
    x = torch.zeros(1, checkpoint.horizon, len(checkpoint.channels), device=device)
    context = network.encode(x, torch.zeros_like(x, dtype=torch.bool))
    inputs = (x, torch.zeros(1, dtype=torch.int64, device=device), *(() if context is None else (context,)))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # the check of the horizon is not part of the graph; the planner checks it itself
        graph = torch.jit.trace(network, inputs, check_trace=False)
    return graph if context is not None else lambda noisy, i, _: graph(noisy, i)
