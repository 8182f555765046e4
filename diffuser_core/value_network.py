"""Networks that judge noised trajectories: the return predictor J (paper, section 3.2) and a classifier of single states.

Both are trained on noised inputs together with their level (`train/value.py`), so that they can guide every denoising step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from diffuser_core.unet import GROUPS, BlockPair, LevelEmbedding, ResidualBlock

__all__ = ['HEADS', 'StepClassifier', 'ValueConfig', 'ValueNetwork']

HEADS = ('pooled', 'flat')


@dataclass(frozen=True)
class ValueConfig:
    """Size of the return predictor: `width` channels at full time resolution, times each of `multipliers` going down.

    head  'flat' reads all features of the shortened trajectory and fixes the horizon (the paper's); 'pooled' reads their mean and
          largest value over time and takes any horizon (our default)
    """

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    head: str = 'pooled'

    def __post_init__(self) -> None:
        if self.width < GROUPS or self.width % GROUPS:
            raise ValueError(f'value.width must be a positive multiple of {GROUPS}, got {self.width}')
        if not self.multipliers or min(self.multipliers) < 1 or self.width * self.multipliers[-1] % (8 * GROUPS):
            raise ValueError(f'value.multipliers must be positive, and width times the last one a multiple of {8 * GROUPS}, got '
                             f'{self.multipliers} and width {self.width}')
        if self.head not in HEADS:
            raise ValueError(f'value.head must be one of {", ".join(HEADS)}, got {self.head!r}')


class ValueNetwork(nn.Module):
    """J: noisy trajectories (batch, horizon, channels) in normal units and levels (batch,) or (1,) -> (batch,).

    The encoder half of the U-Net, halving the time axis at every width, two more blocks at a half and a quarter of the last
    width, then a perceptron on the features joined with the embedded level. ValueError for a horizon that is not the one that a
    'flat' head was made for.
    """

    def __init__(self, channels: int, config: ValueConfig, horizon: int) -> None:
        super().__init__()
        self.channels, self.config, self.horizon = channels, config, horizon
        if horizon < 1:
            raise ValueError(f'a return predictor needs a horizon of at least 1 step, got {horizon}')
        widths = [config.width * m for m in config.multipliers]
        last = widths[-1]
        self.embedding: nn.Module = LevelEmbedding(config.width)
        self.level: nn.Module = nn.Identity()  # what the head sees of the embedded level
        self.down = nn.ModuleList(BlockPair(a, b, config.width) for a, b in zip([channels, *widths[:-1]], widths))
        self.narrow = nn.ModuleList(ResidualBlock(a, b, config.width, 0) for a, b in ((last, last // 2), (last // 2, last // 4)))
        self.shrink = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in (*widths, last // 2, last // 4))
        features = 2 * (last // 4) if config.head == 'pooled' else last // 4 * _halved(horizon, len(widths) + 2)
        joined = features + config.width
        self.head = nn.Sequential(nn.Linear(joined, joined // 2), nn.Mish(), nn.Linear(joined // 2, 1))

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        if self.config.head == 'flat' and x.shape[1] != self.horizon:
            raise ValueError(f"this return predictor has a 'flat' head for a horizon of {self.horizon}, got {x.shape[1]}")
        embedded = self.embedding(i)
        x = x.transpose(1, 2)
        for layer, shrink in zip((*self.down, *self.narrow), self.shrink):
            x = shrink(layer(x, embedded, None))
        features = torch.cat([x.mean(-1), x.amax(-1)], dim=-1) if self.config.head == 'pooled' else x.flatten(1)
        return self.head(torch.cat([features, self.level(embedded).expand(x.shape[0], -1)], dim=-1)).squeeze(-1)


def _halved(horizon: int, times: int) -> int:
    """Length of the time axis after so many convolutions of stride 2."""
    for _ in range(times):
        horizon = (horizon + 1) // 2
    return horizon


class StepClassifier(nn.Module):
    """Logits of properties of single states: noisy states (..., channels) in normal units and levels -> (..., classes).

    Three hidden layers of `width` units, told the level (the Kuka guide of the paper, appendix B: 128 units, twelve properties
    'i on j').
    """

    def __init__(self, channels: int, classes: int, width: int = 128) -> None:
        super().__init__()
        self.channels, self.classes, self.width = channels, classes, width
        self.embedding = LevelEmbedding(width)
        sizes = [channels + width, width, width, width]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.out = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(i)
        embedded = embedded.reshape(-1, *[1] * (x.dim() - 2), self.width).expand(*x.shape[:-1], self.width)
        x = torch.cat([x, embedded], dim=-1)
        for layer in self.hidden:
            x = nn.functional.mish(layer(x))
        return self.out(x)
