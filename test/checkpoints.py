"""Small untrained checkpoints for tests."""

import torch

from diffuser_core.checkpoint import Checkpoint, DiffusionConfig
from diffuser_core.normalize import Normalizer
from diffuser_core.trajectory import Channels
from diffuser_core.unet import TemporalUNet, UNetConfig


def untrained(channels: Channels, goal: tuple[str, ...] = (), horizon: int = 16, step_dt: float = 0.1,
              reach: float = 3.0, context: int = 0) -> Checkpoint:
    """Random weights, always the same; the normal range is +-`reach` in every channel."""
    torch.manual_seed(0)
    model = UNetConfig(8, (1, 2), context)
    size = len(channels)
    return Checkpoint(TemporalUNet(size, model).state_dict(), model, DiffusionConfig(levels=16),
                      Normalizer('limits', torch.zeros(size), torch.full((size,), reach)), channels, horizon, step_dt, goal,
                      provenance={'made': 'by a test'})


def untrained_stacking(horizon: int = 16) -> Checkpoint:
    """An untrained checkpoint with the channels of the stacking robot."""
    from diffuser_core.envs.stacking_features import FEATURES, PLACES, UNITS
    return untrained(Channels(FEATURES, UNITS), PLACES, horizon, 1 / 12)


def untrained_maze(horizon: int = 16) -> Checkpoint:
    """An untrained checkpoint with the channels of the ball in a maze."""
    from diffuser_core.envs.maze_layout import CHANNELS, FORCES, UNITS
    return untrained(Channels((*FORCES, *CHANNELS), ('1', '1', *UNITS), len(FORCES)), CHANNELS, horizon, 0.04, reach=12.0)
