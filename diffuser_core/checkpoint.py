"""The self-contained artefact of training: a folder with `model.safetensors` and `config.yaml`.

It holds everything that planning needs (weights, normaliser, channels, network and schedule) and where it came from. It is
read without unpickling, and needs neither the data set nor a simulator nor a GPU.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save

from diffuser_core.config import ConfigError, from_mapping, parse_yaml, to_mapping
from diffuser_core.diffusion import PREDICTIONS
from diffuser_core.messages import one_line, shown
from diffuser_core.normalize import Normalizer
from diffuser_core.trained_value import TrainedValue
from diffuser_core.trajectory import Channels
from diffuser_core.unet import TemporalUNet, UNetConfig

__all__ = ['Checkpoint', 'CheckpointError', 'DiffusionConfig']

FORMAT = 2
WEIGHTS, DESCRIPTION = 'model.safetensors', 'config.yaml'
MOST_LEVELS = MOST_STEPS = 100_000
VALUE = 'value.'
"""Names of a return predictor's weights begin so."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the field."""


@dataclass(frozen=True)
class DiffusionConfig:
    """What the network predicts ('x0', 'epsilon' or 'v'), over how many denoising levels, and whether estimates are clipped to
    the data's range (normaliser 'limits' only)."""

    levels: int = 64
    prediction: str = 'x0'
    clip: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MOST_LEVELS:
            raise ValueError(f'diffusion.levels must be at least 1 and at most {MOST_LEVELS}, got {self.levels}')
        if self.prediction not in PREDICTIONS:
            raise ValueError(f'diffusion.prediction must be one of {", ".join(PREDICTIONS)}, got {self.prediction!r}')


@dataclass(frozen=True)
class Checkpoint:
    """A trained planner's parts.

    weights     the denoiser's (averaged) parameters
    goal        channels that training showed as a goal on the last step; empty if none
    horizon     steps of a training window
    step_dt     seconds between steps
    provenance  command, config, data fingerprint, steps, date, losses, library version: free-form, for people
    value       a return predictor for its plans, if one was trained
    aim         for planners that are told the return they shall reach: the one that was found to suit them, in deviations above
                the mean of the data; None: not known
    """

    weights: Mapping[str, torch.Tensor]
    model: UNetConfig
    diffusion: DiffusionConfig
    normalizer: Normalizer
    channels: Channels
    horizon: int
    step_dt: float
    goal: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    value: TrainedValue | None = None
    aim: float | None = None

    def network(self) -> TemporalUNet:
        """The denoiser with these weights, on the CPU, ready for inference; CheckpointError if they do not fit it."""
        def made() -> TemporalUNet:
            return TemporalUNet(len(self.channels), self.model, self.channels.things(self.model.pointers))

        try:
            with torch.device('meta'):  # without memory: a description may ask for any size
                made().load_state_dict(dict(self.weights), assign=True)
            network = made()
            network.load_state_dict(dict(self.weights))
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            raise CheckpointError(f'{WEIGHTS} does not fit the network described in {DESCRIPTION}: {one_line(error)}') from error
        return network.eval().requires_grad_(False)

    def describe(self) -> str:
        """What it is, for people."""
        made = yaml.safe_dump(dict(self.provenance), sort_keys=False, width=120).rstrip() if self.provenance else 'unknown'
        return '\n'.join([
            f'parameters   {sum(w.numel() for w in self.weights.values()):,}, width {self.model.width}, '
            f'multipliers {list(self.model.multipliers)}',
            f'diffusion    {self.diffusion.levels} levels, predicts {self.diffusion.prediction}',
            f'horizon      {self.horizon} steps of {1e3 * self.step_dt:.1f} ms = {self.horizon * self.step_dt:.2f} s',
            f'channels     {", ".join(f"{n} [{u}]" for n, u in zip(self.channels.names, self.channels.units))}',
            f'goal         {", ".join(self.goal) or "none"}',
            *([] if self.value is None else [f'value        {sum(w.numel() for w in self.value.weights.values()):,} parameters, '
                                             f'discount {self.value.discount}']),
            *([] if self.aim is None else [f'aim          {self.aim:g} deviations above the mean return of the data']),
            'made by', *(f'  {line}' for line in made.splitlines())])

    def save(self, folder: Path) -> None:
        """Write to `folder`, replacing an earlier checkpoint there in one step; an interrupt leaves the earlier one."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        value = {} if self.value is None else {VALUE + k: v for k, v in self.value.weights.items()}
        data = save({k: v.detach().cpu().contiguous() for k, v in {**self.weights, **value}.items()})
        description = {
            'format': FORMAT, 'weights_sha256': hashlib.sha256(data).hexdigest(),
            'channels': [{'name': n, 'unit': u} for n, u in zip(self.channels.names, self.channels.units)],
            'actions': self.channels.actions, 'goal': list(self.goal),
            'horizon': self.horizon, 'step_dt': self.step_dt,
            'model': to_mapping(self.model), 'diffusion': to_mapping(self.diffusion),
            'normalizer': self.normalizer.as_dict(), 'provenance': dict(self.provenance),
            **({} if self.value is None else {'value': self.value.described()}),
            **({} if self.aim is None else {'aim': self.aim}),
        }
        fresh = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
        try:
            (fresh / WEIGHTS).write_bytes(data)
            (fresh / DESCRIPTION).write_text(yaml.safe_dump(description, sort_keys=False, width=120), encoding='utf-8')
            fresh.chmod(0o755)
            for name in (WEIGHTS, DESCRIPTION):
                with open(fresh / name, 'rb') as written:
                    os.fsync(written.fileno())
            old = None
            if folder.exists():
                old = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-old-', dir=folder.parent))
                folder.rename(old / folder.name)
            fresh.rename(folder)
            if old is not None:
                shutil.rmtree(old)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint; CheckpointError, naming the file and the field, if anything about it is wrong."""
        folder = Path(folder)
        for name in (DESCRIPTION, WEIGHTS):
            if not (folder / name).is_file():
                raise CheckpointError(f'no checkpoint at {folder}: {name} is missing there')
        described = _description(folder / DESCRIPTION)
        data = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != described['weights_sha256']:
            raise CheckpointError(f'{folder / WEIGHTS} is damaged: its contents do not match weights_sha256 in {DESCRIPTION}')
        where = str(folder / DESCRIPTION)
        stored = _weights(data, folder / WEIGHTS)
        weights = {name: numbers for name, numbers in stored.items() if not name.startswith(VALUE)}
        try:
            channels = Channels(_words(c['name'] for c in described['channels']),
                                _words(c['unit'] for c in described['channels']), int(described['actions']))
            if not isinstance(kind := described['normalizer']['kind'], str):
                raise ValueError(f'normalizer.kind must be a word, got {shown(kind)}')
            for key in ('offset', 'scale'):
                found = described['normalizer'][key]
                if not isinstance(found, list) or len(found) != len(channels) or not {*map(type, found)} <= {int, float}:
                    raise ValueError(f'normalizer.{key} must be {len(channels)} numbers, one a channel, got {shown(found)}')
            normalizer = Normalizer.from_dict(described['normalizer'])
            goal = _words(described['goal'])
            channels.indices(goal)
            checkpoint = cls(
                weights, from_mapping(UNetConfig, described['model'], f'{where}: model'),
                from_mapping(DiffusionConfig, described['diffusion'], f'{where}: diffusion'), normalizer, channels,
                int(described['horizon']), float(described['step_dt']), goal,
                described['provenance'], _value(stored, described, where), _aim(described))
            if checkpoint.value is not None:
                checkpoint.value.network(len(channels), checkpoint.horizon)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
            raise CheckpointError(f'{where}: {one_line(error.args[0] if error.args else error)}') from error
        if not 2 <= checkpoint.horizon <= MOST_STEPS or not 0.0 < checkpoint.step_dt < math.inf:
            raise CheckpointError(f'{where}: horizon must be 2 to {MOST_STEPS} and step_dt positive, got {checkpoint.horizon} '
                                  f'and {checkpoint.step_dt}')
        return checkpoint


def _words(values: Iterable[object]) -> tuple[str, ...]:
    words = []
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f'names of channels and units are words, got {shown(value)}')
        words.append(value)
    return tuple(words)


def _weights(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    try:
        weights = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f'{path} is not a safetensors file: {one_line(error)}') from error
    for name, numbers in weights.items():
        if not numbers.is_floating_point() or not bool(torch.isfinite(numbers).all()):
            raise CheckpointError(f'{path} is damaged: {shown(name)} holds something else than finite numbers')
    return weights


def _value(stored: Mapping[str, torch.Tensor], described: Mapping[str, Any], where: str) -> TrainedValue | None:
    weights = {k.removeprefix(VALUE): v for k, v in stored.items() if k.startswith(VALUE)}
    if 'value' not in described:
        if weights:
            raise ValueError(f'{WEIGHTS} holds a return predictor that value does not describe')
        return None
    return TrainedValue.from_description(weights, described['value'], where)


def _aim(described: Mapping[str, Any]) -> float | None:
    aim = described.get('aim')
    if aim is not None and (type(aim) not in (int, float) or not math.isfinite(aim)):
        raise ValueError(f'aim must be a finite number, got {shown(aim)}')
    return aim if aim is None else float(aim)


def _description(path: Path) -> dict[str, Any]:
    try:
        described = parse_yaml(path.read_text(encoding='utf-8'))
    except (ConfigError, UnicodeDecodeError) as error:
        raise CheckpointError(f'{path} is damaged: not valid YAML') from error
    if not isinstance(described, dict) or described.get('format') != FORMAT:
        found = described.get('format') if isinstance(described, dict) else None
        raise CheckpointError(f'{path}: format must be {FORMAT}, got {shown(found)}')
    needed = ('weights_sha256', 'channels', 'actions', 'goal', 'horizon', 'step_dt', 'model', 'diffusion',
              'normalizer', 'provenance')
    missing = [key for key in needed if key not in described]
    if missing:
        raise CheckpointError(f'{path}: missing {", ".join(missing)}')
    for key, kind in (('channels', list), ('goal', list), ('model', dict),
                      ('diffusion', dict), ('normalizer', dict), ('provenance', dict)):
        if not isinstance(described[key], kind):
            raise CheckpointError(f'{path}: {key} must be a {kind.__name__}, got {shown(described[key])}')
    return described
