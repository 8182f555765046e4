"""The temporal U-Net: a denoiser that is convolutional along time, so the horizon is chosen when planning.

Architecture of Janner et al. (2022), appendix C: residual blocks of two (convolution of width 5, group norm, Mish) with
the embedded denoising level added between them, halving the time axis on the way down and doubling it on the way up.

With `context` the blocks are also told, at every step, what is known of the first and the last one: the paper leaves it to
the convolutions to carry the inpainted start and goal along the whole horizon, which was learnt more slowly here. Where
several objects are alike, the context also says from where to where the one goes that the goal moves farthest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ['TemporalUNet', 'UNetConfig']

KERNEL = 5
GROUPS = 8


@dataclass(frozen=True)
class UNetConfig:
    """Size of the network: `width` channels at full time resolution, times each of `multipliers` going down.

    context    features of the known first and last step that scale and shift every block; 0 is the paper's network
    attention  linear attention along time after every pair of blocks, as the released code has for Kuka and HalfCheetah
    """

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    context: int = 0
    attention: bool = False

    def __post_init__(self) -> None:
        if self.width < GROUPS or self.width % GROUPS:
            raise ValueError(f'model.width must be a positive multiple of {GROUPS}, got {self.width}')
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f'model.multipliers must be positive whole numbers, got {self.multipliers}')
        if self.context < 0:
            raise ValueError(f'model.context must not be negative, got {self.context}')

    @property
    def horizon_multiple(self) -> int:
        """Horizons must be a multiple of this, so that every halving of the time axis is exact."""
        return 2 ** (len(self.multipliers) - 1)


class ContextEncoder(nn.Module):
    """Features of what is known of the first and last step: (batch, horizon, channels) values and mask -> (batch, size).

    objects  (objects, fields) columns that hold the places of objects that are alike; may be empty
    """

    objects: torch.Tensor

    def __init__(self, channels: int, hidden: int, objects: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.register_buffer('objects', torch.tensor([list(o) for o in objects], dtype=torch.int64), persistent=False)
        raw = 4 * channels + (2 * len(objects[0]) if objects else 0)
        self.mlp = nn.Sequential(nn.Linear(raw, hidden), nn.Mish(), nn.Linear(hidden, hidden), nn.Mish())
        self.size = raw + hidden

    def forward(self, known: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shown = _ends(mask).to(known.dtype)
        values = _ends(known) * shown
        parts = [values.flatten(1), shown.flatten(1)]
        if len(self.objects):
            places = values[:, :, self.objects]  # (batch, first / last, objects, fields)
            farthest = (places[:, 1] - places[:, 0]).square().sum(-1).argmax(-1)
            moved = places[torch.arange(len(places), device=places.device), :, farthest]
            goal_known = shown[:, 1, self.objects].amin((1, 2))
            parts.append(moved.flatten(1) * goal_known[:, None])
        raw = torch.cat(parts, dim=1)
        return torch.cat([self.mlp(raw), raw], dim=1)


def _ends(x: torch.Tensor) -> torch.Tensor:
    """First and last step: (batch, horizon, channels) -> (batch, 2, channels)."""
    return torch.stack([x[:, 0], x[:, -1]], dim=1)  # x[:, [0, -1]] would copy its index to the device


class LevelEmbedding(nn.Module):
    """Sinusoidal features of the denoising level followed by a two-layer perceptron; (batch,) -> (batch, width)."""

    frequencies: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.register_buffer('frequencies', torch.exp(-math.log(10000) / (half - 1) * torch.arange(half)), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        angles = i.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, group norm, Mish: (batch, inputs, horizon) -> (batch, outputs, horizon)."""
    return nn.Sequential(nn.Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2), nn.GroupNorm(GROUPS, outputs), nn.Mish())


class ResidualBlock(nn.Module):
    """Two convolution blocks around the level embedding (and the context's scale and shift), plus a skip path."""

    def __init__(self, inputs: int, outputs: int, embedding: int, context: int) -> None:
        super().__init__()
        self.first = conv_block(inputs, outputs)
        self.second = conv_block(outputs, outputs)
        self.level: nn.Module = nn.Sequential(nn.Mish(), nn.Linear(embedding, outputs))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)
        self.context = nn.Linear(context, 2 * outputs) if context else None

    def forward(self, x: torch.Tensor, embedded: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        hidden = self.first(x) + self.level(embedded)[:, :, None]
        if self.context is not None:
            scale, shift = self.context(context)[:, :, None].chunk(2, dim=1)
            hidden = hidden * (1.0 + scale) + shift
        return self.second(hidden) + self.skip(x)


class LinearAttention(nn.Module):
    """Attention along time at a cost linear in the horizon (Shen et al. 2021), added to its input: (batch, width, horizon).

    Keys are normalised over time instead of scores over keys, so that one (size x size) summary a head serves all queries.
    """

    HEADS, SIZE = 4, 32

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = self.HEADS * self.SIZE
        self.norm = nn.LayerNorm(width)
        self.parts = nn.Conv1d(width, 3 * inner, 1, bias=False)
        self.out = nn.Conv1d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.parts(self.norm(x.transpose(1, 2)).transpose(1, 2))
        queries, keys, values = parts.unflatten(1, (3, self.HEADS, self.SIZE)).unbind(1)
        summary = keys.softmax(dim=-1) @ values.transpose(-1, -2)  # (batch, heads, size of a key, size of a value)
        attended = summary.transpose(-1, -2) @ (queries * self.SIZE ** -0.5)
        return x + self.out(attended.flatten(1, 2))


class BlockPair(nn.ModuleList):
    """Two residual blocks, one after the other, and attention if asked for."""

    def __init__(self, inputs: int, outputs: int, embedding: int, context: int = 0, attention: bool = False) -> None:
        blocks: list[nn.Module] = [ResidualBlock(a, outputs, embedding, context) for a in (inputs, outputs)]
        super().__init__([*blocks, LinearAttention(outputs)] if attention else blocks)

    def forward(self, x: torch.Tensor, embedded: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, LinearAttention) else layer(x, embedded, context)
        return x


class TemporalUNet(nn.Module):
    """Denoiser: noisy trajectories (batch, horizon, channels) and levels (batch,) -> prediction of the same shape.

    objects  for the context: columns of the places of objects that are alike, (objects, fields)

    A network with context also needs what `encode` makes of the known values, for the batch or for one that all share.
    """

    def __init__(self, channels: int, config: UNetConfig, objects: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.channels = channels
        self.config = config
        widths = [config.width * m for m in config.multipliers]
        self.embedding: nn.Module = LevelEmbedding(config.width)
        self.context = ContextEncoder(channels, config.context, objects) if config.context else None
        context = self.context.size if self.context is not None else 0

        def pair(inputs: int, outputs: int) -> BlockPair:
            return BlockPair(inputs, outputs, config.width, context, config.attention)

        self.down = nn.ModuleList(pair(a, b) for a, b in zip([channels, *widths[:-1]], widths))
        self.shrink = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        falling = list(zip(widths[:0:-1], widths[-2::-1]))
        self.up = nn.ModuleList(pair(2 * a, b) for a, b in falling)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(b, b, 4, stride=2, padding=1) for _, b in falling)
        self.head = nn.Sequential(conv_block(config.width, config.width), nn.Conv1d(config.width, channels, 1))

    def encode(self, known: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """The context of known values and their mask, (batch, horizon, channels); None if the network takes none."""
        return None if self.context is None else self.context(known, mask)

    def forward(self, x: torch.Tensor, i: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        multiple = self.config.horizon_multiple
        if x.shape[1] % multiple:
            raise ValueError(f'the horizon must be a multiple of {multiple} for this network, got {x.shape[1]}')
        embedded = self.embedding(i)
        if (self.context is None) != (context is None):
            raise ValueError('this network needs a context' if context is None else 'this network takes no context')
        x = x.transpose(1, 2)
        kept = []
        for n, pair in enumerate(self.down):
            x = pair(x, embedded, context)
            kept.append(x)
            if n < len(self.shrink):
                x = self.shrink[n](x)
        x = self.middle(x, embedded, context)
        for pair, grow in zip(self.up, self.grow, strict=True):
            x = grow(pair(torch.cat([x, kept.pop()], dim=1), embedded, context))
        return self.head(x).transpose(1, 2)
