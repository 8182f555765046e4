"""Small behaviour policies, data sets and planners of the hopper for tests."""

from pathlib import Path

import numpy as np
import torch

from diffuser_core.checkpoint import Checkpoint, DiffusionConfig
from diffuser_core.experts.behaviour import Actor, save_actors
from diffuser_core.normalize import Normalizer
from diffuser_core.trained_value import TrainedValue
from diffuser_core.trajectory import RETURN, Channels
from diffuser_core.unet import TemporalUNet, UNetConfig
from diffuser_core.value_network import ValueConfig, ValueNetwork

HOPPER = Channels((*(f'action.{n}' for n in range(3)), *(f'obs.{n}' for n in range(11))), ('1',) * 14, 3)


def actor(seed: int = 0, observations: int = 11, actions: int = 3, hidden: int = 4) -> Actor:
    """Random weights."""
    rng = np.random.default_rng(seed)
    sizes = ((observations, hidden), (hidden, hidden), (hidden, actions), (hidden, actions))
    return Actor(tuple(rng.normal(0.0, 0.5, size).astype(np.float32) for size in sizes),
                 tuple(rng.normal(0.0, 0.5, size[1]).astype(np.float32) for size in sizes))


def actors(path: Path) -> Path:
    """A file of three snapshots, of 10, 20 and 30 steps; 20 is medium."""
    save_actors(path, {steps: actor(steps) for steps in (10, 20, 30)}, 20, {})
    return path


def told_hopper() -> Checkpoint:
    """An untrained planner of the hopper that is told the return: 100 in the mean of the data, with a deviation of 20."""
    torch.manual_seed(0)
    model, channels = UNetConfig(8, (1, 2), context=8), Channels((*HOPPER.names, RETURN), ('1',) * 15, 3)
    scales = Normalizer('gaussian', torch.tensor([*[0.0] * 14, 100.0]), torch.tensor([*[2.0] * 14, 20.0]))
    return Checkpoint(TemporalUNet(15, model).state_dict(), model, DiffusionConfig(levels=8, clip=False), scales, channels, 8,
                      0.008, provenance={'made': 'by a test'})


def hopper(horizon: int = 8, value: bool = True) -> Checkpoint:
    """An untrained planner of the hopper, with an untrained return predictor."""
    torch.manual_seed(0)
    model, judge = UNetConfig(8, (1, 2)), ValueConfig(8, (1, 8), 'flat')
    trained = TrainedValue(ValueNetwork(14, judge, horizon).state_dict(), judge, 10.0, 4.0, 0.99, {'made': 'by a test'})
    return Checkpoint(TemporalUNet(14, model).state_dict(), model, DiffusionConfig(levels=8, clip=False),
                      Normalizer('gaussian', torch.zeros(14), torch.full((14,), 2.0)), HOPPER, horizon, 0.008,
                      provenance={'made': 'by a test'}, value=trained if value else None)
