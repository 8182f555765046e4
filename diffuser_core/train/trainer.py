"""The training loop: Adam on the denoising loss, averaged weights, resume after an interrupt to the same result."""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from diffuser_core import __version__
from diffuser_core.checkpoint import Checkpoint
from diffuser_core.config import to_mapping
from diffuser_core.data.episodes import EpisodeData
from diffuser_core.data.windows import Symmetries, Windows, match_channels
from diffuser_core.diffusion import LossWeights, training_loss
from diffuser_core.normalize import Normalizer
from diffuser_core.schedule import NoiseSchedule
from diffuser_core.train.config import LossConfig, TrainConfig
from diffuser_core.train.data_sets import TrainingData, latest_starts
from diffuser_core.trajectory import Channels
from diffuser_core.unet import TemporalUNet

__all__ = ['Trainer', 'TrainError']

RESUME = 'resume.safetensors'
HELD_OUT = 0.02
VALIDATION_WINDOWS = 256


class TrainError(ValueError):
    """A training run that cannot start; the message says why."""


class Trainer:
    """One training run in the folder `out`; continues there if it was interrupted.

    `out` receives `checkpoint/` (averaged weights), `resume.safetensors` (optimiser and random state, no pickle), `tensorboard/`
    and `summary.json`.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, out: Path, *, device: str = 'cpu',
                 command: str = '') -> None:
        self.config, self.out, self.command = config, Path(out), command
        self.device = torch.device(device)
        self._data = data
        names = match_channels(data.channels, config.data.channels)
        units = dict(zip(data.channels, data.units))
        actions = sum(name in names for name in data.channels[:data.actions])
        self.channels = Channels(tuple(names), tuple(units[n] for n in names), actions)
        self._goal = match_channels(names, config.data.goal) if config.data.goal else []
        things = self.channels.things(config.model.pointers)
        rows = torch.from_numpy(data.observations[:, [data.channels.index(n) for n in names]])
        self.normalizer = Normalizer.fit(config.data.normalizer, rows.numpy(), config.data.least_scale).to(self.device)
        self._symmetries = Symmetries.of(self.channels, config.data.exchangeable, config.data.mirror)
        if config.data.normalizer == 'limits':
            self.normalizer = _symmetric(self.normalizer, self._symmetries, things)
        segments = torch.from_numpy(data.bounds) - torch.tensor([0, 1])
        held_out = max(1, round(HELD_OUT * len(segments)))
        if len(segments) <= held_out:
            raise TrainError(f'training needs at least 2 segments, the data has {len(segments)}')
        latest = latest_starts(data, config.data.horizon, config.data.stride) if config.data.continuing else None
        self._train = self._windows(rows, segments[:-held_out], None if latest is None else latest[:-held_out])
        self._validation = self._windows(rows, segments[-held_out:], None if latest is None else latest[-held_out:])

        torch.manual_seed(config.seed)
        self.network = TemporalUNet(len(names), config.model, things)
        self._parent = self._start(Path(config.start_from)) if config.start_from is not None else None
        self.network.to(self.device)
        self._average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=config.optimizer.learning_rate)
        self._generator = torch.Generator(self.device).manual_seed(config.seed)
        self._schedule = NoiseSchedule.cosine(config.diffusion.levels)
        self._loss_weights = self._weigh()
        self.step = 0
        self._seconds = 0.0

    def _start(self, folder: Path) -> dict[str, Any]:
        """Take over a checkpoint's weights and normaliser; returns where they came from."""
        parent = Checkpoint.load(folder)
        if (parent.model, parent.channels) != (self.config.model, self.channels):
            raise TrainError(f'{folder} has another network or other channels than this configuration')
        self.network.load_state_dict(parent.network().state_dict())
        self.normalizer = parent.normalizer.to(self.device)
        return dict(parent.provenance)

    def _weigh(self) -> torch.Tensor | None:
        """Weights (known, horizon, channels) of the errors where so many first actions are known; None if all count alike."""
        loss = self.config.loss
        if loss == LossConfig(kind=loss.kind):
            return None
        factors = torch.ones(len(self.channels))
        for pattern, factor in loss.weights.items():
            factors[self.channels.indices(match_channels(self.channels.names, [pattern])).tolist()] = factor
        weights = LossWeights(factors, loss.discount, loss.first_action)
        shape = torch.Size((1, self.config.data.horizon, len(self.channels)))
        return torch.stack([weights.over(shape, self.channels.actions, self.device, known)
                            for known in range(self.config.data.prefix + 1)])

    def _windows(self, rows: torch.Tensor, segments: torch.Tensor, latest: torch.Tensor | None = None) -> Windows:
        data = self.config.data
        jitter = torch.zeros(len(self.channels), device=self.device)
        for pattern, size in data.jitter.items():
            jitter[self.channels.indices(match_channels(self.channels.names, [pattern])).tolist()] = size
        symmetries = Symmetries(self._symmetries.permutations.to(self.device), self._symmetries.mirror.to(self.device))
        return Windows(rows.to(self.device), segments.to(self.device), horizon=data.horizon, stride=data.stride,
                       goal=self.channels.indices(self._goal).tolist(), goal_share=data.goal_share, symmetries=symmetries,
                       jitter=jitter, latest=None if latest is None else latest.to(self.device),
                       # the mazes' planners were trained with their first force shown, and follow planned states instead
                       actions=self.channels.actions if data.continuing else 0, prefix=data.prefix,
                       weights=self._tilted().to(self.device) if data.tilt else None)

    def _tilted(self) -> torch.Tensor:
        """How likely windows start at each row of the data, relative to the others."""
        if not isinstance(self._data, EpisodeData) or self._data.rewards is None:
            raise TrainError('data.tilt needs a data set with rewards')
        returns = torch.from_numpy(self._data.returns)
        weights = torch.exp(self.config.data.tilt * (returns - returns.max()) / returns.std(correction=0).clamp_min(1e-6))
        return weights.repeat_interleave(torch.from_numpy(self._data.lengths + 1))

    def _episodes_in_effect(self) -> float:
        """How many episodes, equally long and equally likely, would be as diverse as those that the tilt leaves."""
        weights = self._tilted()
        shares = torch.stack([weights[first:end].sum() for first, end in self._data.bounds])
        return float(shares.sum() ** 2 / (shares ** 2).sum())

    def run(self, *, progress: bool = True) -> dict[str, Any]:
        """Train to the configured number of steps and return the summary; an interrupt saves first, then propagates."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        total = self.config.optimizer.steps
        began = time.monotonic() - self._seconds
        losses: list[float] = []
        validation = math.nan
        with SummaryWriter(str(self.out / 'tensorboard'), purge_step=self.step) as board, \
                tqdm(total=total, initial=self.step, disable=not progress, unit='step', dynamic_ncols=True) as bar:
            try:
                while self.step < total:
                    losses.append(self._advance())
                    bar.update()
                    if self.step % 100 == 0:
                        recent = sum(losses) / len(losses)
                        board.add_scalar('loss/train', recent, self.step)
                        bar.set_postfix(loss=f'{recent:.5f}', held_out=f'{validation:.5f}')
                        losses.clear()
                    if self.step % self.config.save_every == 0 or self.step == total:
                        validation = self.validate()
                        board.add_scalar('loss/held_out', validation, self.step)
                        self._seconds = time.monotonic() - began
                        self._save(validation)
            except KeyboardInterrupt:
                self._seconds = time.monotonic() - began
                self._save(validation)
                raise
        return self._summary(validation)

    def _advance(self) -> float:
        options = self.config.optimizer
        rate = min(1.0, (self.step + 1) / max(1, options.warmup))
        if options.decay == 'cosine':
            rate *= 0.5 * (1.0 + math.cos(math.pi * self.step / options.steps))
        for group in self._optimizer.param_groups:
            group['lr'] = options.learning_rate * rate
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(options.accumulate):
            windows, mask = self._train.sample(options.batch, self._generator)
            loss = self._loss(windows, mask, self._generator) / options.accumulate
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(f'the loss is not finite at step {self.step}; the checkpoint before it is in {self.out}')
            loss.backward()
            total += loss.item()
        self._optimizer.step()
        self.step += 1
        if self.step % options.ema_every == 0:
            with torch.no_grad():
                torch._foreach_lerp_(list(self._average.values()), list(self.network.state_dict().values()), 1.0 - self._keep())
        return total

    def _keep(self) -> float:
        """Share of the averaged weights that this step leaves."""
        options = self.config.optimizer
        if options.ema_start is not None:
            return options.ema if self.step >= options.ema_start else 0.0
        return min(options.ema, (self.step + 1) / (self.step + 10))

    def _loss(self, windows: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        weights = self._loss_weights
        if weights is not None:
            known = mask[:, :, :self.channels.actions].all(2).sum(1) if self.config.data.prefix and self.channels.actions else 0
            weights = weights[known]
        bf16 = self.config.optimizer.precision == 'bf16'
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            return training_loss(self.network, self.normalizer.normalize(windows), mask, self._schedule,
                                 self.config.diffusion.prediction, generator, self.config.loss.kind, weights)

    @torch.no_grad()
    def validate(self) -> float:
        """Loss of the averaged weights on held-out segments, always on the same windows and noise."""
        current = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self._average)
        generator = torch.Generator(self.device).manual_seed(1)
        windows, mask = self._validation.sample(VALIDATION_WINDOWS, generator)
        loss = float(self._loss(windows, mask, generator))
        self.network.load_state_dict(current)
        return loss

    def checkpoint(self, validation: float) -> Checkpoint:
        """The averaged weights with everything that planning needs."""
        data = self.config.data
        return Checkpoint(
            weights=self._average, model=self.config.model, diffusion=self.config.diffusion,
            normalizer=self.normalizer.to('cpu'), channels=self.channels, horizon=data.horizon,
            step_dt=data.stride * self._data.tick_dt, goal=tuple(self._goal),
            provenance={
                'command': self.command, 'config': to_mapping(self.config), 'data_fingerprint': self._data.fingerprint,
                'segments': len(self._data), 'steps': self.step, 'seconds': round(self._seconds),
                'held_out_loss': validation, 'date': datetime.date.today().isoformat(), 'version': __version__,
                **({} if self._parent is None else {'started_from': self._parent}),
            })

    def _save(self, validation: float) -> None:
        self.checkpoint(validation).save(self.out / 'checkpoint')
        tensors = {f'network.{k}': v for k, v in self.network.state_dict().items()}
        tensors |= {f'average.{k}': v for k, v in self._average.items()}
        for n, parameter in enumerate(self.network.parameters()):
            for key, value in self._optimizer.state[parameter].items():
                tensors[f'optimizer.{n}.{key}'] = value
        tensors['generator'] = self._generator.get_state()
        state = {'step': self.step, 'seconds': self._seconds, 'config': to_mapping(self.config),
                 'data_fingerprint': self._data.fingerprint}
        save_file({k: v.contiguous() for k, v in tensors.items()}, self.out / f'{RESUME}.new',
                  metadata={'state': json.dumps(state)})
        os.replace(self.out / f'{RESUME}.new', self.out / RESUME)

    def _resume(self) -> None:
        path = self.out / RESUME
        if not path.exists():
            return
        with safe_open(path, 'pt') as opened:
            state = json.loads(opened.metadata()['state'])
        if state['config'] != to_mapping(self.config) or state['data_fingerprint'] != self._data.fingerprint:
            raise TrainError(f'{self.out} holds a run with another configuration or other data; choose another --out, or '
                             'remove that folder to start again')
        tensors = load_file(path, device=str(self.device))
        self.network.load_state_dict({k.removeprefix('network.'): v for k, v in tensors.items() if k.startswith('network.')})
        self._average = {k: tensors[f'average.{k}'] for k in self._average}
        for n, parameter in enumerate(self.network.parameters()):
            prefix = f'optimizer.{n}.'
            self._optimizer.state[parameter] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            self._optimizer.state[parameter]['step'] = self._optimizer.state[parameter]['step'].cpu()
        self._generator.set_state(tensors['generator'].cpu())
        self.step, self._seconds = state['step'], state['seconds']

    def _summary(self, validation: float) -> dict[str, Any]:
        summary = {
            'command': self.command, 'version': __version__, 'seed_start': self.config.seed, 'episodes': 0,
            'device': str(self.device), 'wall_s': round(self._seconds, 1), 'steps': self.step,
            'held_out_loss': validation, 'data_fingerprint': self._data.fingerprint,
            'checkpoint': str(self.out / 'checkpoint'),
            **({'episodes_in_effect': round(self._episodes_in_effect(), 1)} if self.config.data.tilt else {}),
        }
        (self.out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n', encoding='utf-8')
        return summary


def _symmetric(normalizer: Normalizer, symmetries: Symmetries, things: list[list[int]]) -> Normalizer:
    """Widen limits so that every symmetry of the data maps the normal range onto itself, and `things` have the same units."""
    low, high = normalizer.offset - normalizer.scale, normalizer.offset + normalizer.scale
    for alike in zip(*things):
        low[list(alike)], high[list(alike)] = low[list(alike)].min(), high[list(alike)].max()
    order = symmetries.permutations.to(low.device)
    low, high = low[order].amin(0), high[order].amax(0)
    mirrored = symmetries.mirror.to(low.device) < 0
    reach = torch.maximum(low.abs(), high.abs())
    low, high = torch.where(mirrored, -reach, low), torch.where(mirrored, reach, high)
    return Normalizer(normalizer.kind, (high + low) / 2, (high - low) / 2)
