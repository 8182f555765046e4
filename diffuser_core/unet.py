"""The temporal U-Net: a denoiser that is convolutional along time, so the horizon is chosen when planning.

Architecture of Janner et al. (2022), appendix C: residual blocks of two (convolution of width 5, group norm, Mish) with
the embedded denoising level added between them, halving the time axis on the way down and doubling it on the way up.

With `context` the blocks are also told, at every step, what is known of the first and the last one: the paper leaves it to
the convolutions to carry the inpainted start and goal along the whole horizon, which was learnt more slowly here.

With `pointers` the network need not compute a place that is known already: see `PointerHead`.

With `norm` 'step' features are normalised at every step on its own. The paper's group norm takes its mean and deviation over the
whole window, so that each step is told something of all others, however narrow the convolutions: such a network judges windows as
wholes, and does not compose pieces of what it was shown (docs/properties.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ['NORMS', 'TemporalUNet', 'UNetConfig']

KERNEL = 5
GROUPS = 8
NORMS = ('window', 'step')
MOST_LEVELS = 16
"""Of the network: time is halved from each to the next."""


@dataclass(frozen=True)
class UNetConfig:
    """Size of the network: `width` channels at full time resolution, times each of `multipliers` going down.

    context    features of the known first and last step that scale and shift every block; 0 is the paper's network
    attention  linear attention along time after every pair of blocks, as the released code has for Kuka and HalfCheetah
    pointers   fields of places that several things have, e.g. azimuth, radius, z: they are predicted as mixtures of the things'
               known places plus a remainder; needs context. Empty: nothing is
    norm       what features are normalised over: 'window', groups of channels over all steps (the paper's group norm), or 'step',
               all channels of one step
    """

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    context: int = 0
    attention: bool = False
    pointers: tuple[str, ...] = ()
    norm: str = 'window'

    def __post_init__(self) -> None:
        if self.width < GROUPS or self.width % GROUPS:
            raise ValueError(f'model.width must be a positive multiple of {GROUPS}, got {self.width}')
        if not 1 <= len(self.multipliers) <= MOST_LEVELS or min(self.multipliers) < 1:
            raise ValueError(f'model.multipliers must be 1 to {MOST_LEVELS} positive whole numbers, got {self.multipliers}')
        if self.context < 0:
            raise ValueError(f'model.context must not be negative, got {self.context}')
        if self.pointers and not self.context:
            raise ValueError('model.pointers needs a model.context of at least 1')
        if self.norm not in NORMS:
            raise ValueError(f'model.norm must be one of {", ".join(NORMS)}, got {self.norm!r}')

    @property
    def horizon_multiple(self) -> int:
        """Horizons must be a multiple of this, so that every halving of the time axis is exact."""
        return 2 ** (len(self.multipliers) - 1)


class ContextEncoder(nn.Module):
    """Features of what is known of the first and last step: (batch, horizon, channels) values and mask -> (batch, size).

    They end with the known values and their mask themselves, 2 x 2 x channels numbers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4 * channels, hidden), nn.Mish(), nn.Linear(hidden, hidden), nn.Mish())
        self.size = hidden + 4 * channels

    def forward(self, known: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shown = _ends(mask).to(known.dtype)
        raw = torch.cat([(_ends(known) * shown).flatten(1), shown.flatten(1)], dim=1)
        return torch.cat([self.mlp(raw), raw], dim=1)


def _ends(x: torch.Tensor) -> torch.Tensor:
    """First and last step: (batch, horizon, channels) -> (batch, 2, channels)."""
    return x[:, ::max(x.shape[1] - 1, 1)]  # a view; x[:, [0, -1]] would copy its index to the device


class PointerHead(nn.Module):
    """Places as mixtures of known places: features (batch, width, horizon) and the known first and last step -> (batch,
    channels, horizon).

    At every step, each field of each thing (the x of the red block, of the tip, ...) is the average of that field over the known
    first and last places of all things, weighted by a softmax that the features give. A hand that rests on a block then has
    exactly that block's place, however seldom such a place was seen in training. Channels that belong to no thing get zeros.

    things  (things, fields) columns; one field must have the same normal units for all things
    """

    order: torch.Tensor
    columns: torch.Tensor

    def __init__(self, width: int, channels: int, things: Sequence[Sequence[int]]) -> None:
        super().__init__()
        columns = torch.tensor([list(t) for t in things], dtype=torch.int64)
        self.shape = (*columns.shape, 2 * len(columns))
        order = torch.full((channels,), columns.numel(), dtype=torch.int64)
        order[columns.flatten()] = torch.arange(columns.numel())
        self.register_buffer('columns', columns, persistent=False)
        self.register_buffer('order', order, persistent=False)
        self.logits = nn.Conv1d(width, columns.numel() * 2 * len(columns), 1)

    def forward(self, x: torch.Tensor, values: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """`values` and `shown` (batch or 1, 2, channels): the first and last step, and which of it is known (1) or not (0)."""
        things, fields, sources = self.shape
        logits = self.logits(x).float().unflatten(1, (things, fields, sources))
        known = shown[:, :, self.columns].flatten(1, 2).transpose(1, 2)[:, None, :, :, None]  # (batch, 1, fields, sources, 1)
        places = values[:, :, self.columns].flatten(1, 2).transpose(1, 2)[:, None, :, :, None]
        weights = (logits + (known - 1.0) * 1e4).softmax(dim=3) * known
        mixed = (weights * places).sum(3).flatten(1, 2)
        return torch.cat([mixed, torch.zeros_like(mixed[:, :1])], dim=1)[:, self.order]


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


class StepNorm(nn.LayerNorm):
    """Layer norm over the channels of each step alone, (batch, width, horizon)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def conv_block(inputs: int, outputs: int, norm: str = 'window') -> nn.Sequential:
    """Convolution, norm, Mish: (batch, inputs, horizon) -> (batch, outputs, horizon)."""
    normed = nn.GroupNorm(GROUPS, outputs) if norm == 'window' else StepNorm(outputs)
    return nn.Sequential(nn.Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2), normed, nn.Mish())


class ResidualBlock(nn.Module):
    """Two convolution blocks around the level embedding (and the context's scale and shift), plus a skip path."""

    def __init__(self, inputs: int, outputs: int, embedding: int, context: int, norm: str = 'window') -> None:
        super().__init__()
        self.first = conv_block(inputs, outputs, norm)
        self.second = conv_block(outputs, outputs, norm)
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

    def __init__(self, inputs: int, outputs: int, embedding: int, context: int = 0, attention: bool = False,
                 norm: str = 'window') -> None:
        blocks: list[nn.Module] = [ResidualBlock(a, outputs, embedding, context, norm) for a in (inputs, outputs)]
        super().__init__([*blocks, LinearAttention(outputs)] if attention else blocks)

    def forward(self, x: torch.Tensor, embedded: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, LinearAttention) else layer(x, embedded, context)
        return x


class TemporalUNet(nn.Module):
    """Denoiser: noisy trajectories (batch, horizon, channels) and levels (batch,) -> prediction of the same shape.

    things  for pointers: columns of the places that are measured alike, (things, fields)

    A network with context also needs what `encode` makes of the known values, for the batch or for one that all share.
    """

    def __init__(self, channels: int, config: UNetConfig, things: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        if config.pointers and not things:
            raise ValueError(f'model.pointers: nothing has all the fields {", ".join(config.pointers)}')
        self.channels = channels
        self.config = config
        widths = [config.width * m for m in config.multipliers]
        self.embedding: nn.Module = LevelEmbedding(config.width)
        self.context = ContextEncoder(channels, config.context) if config.context else None
        context = self.context.size if self.context is not None else 0

        def pair(inputs: int, outputs: int) -> BlockPair:
            return BlockPair(inputs, outputs, config.width, context, config.attention, config.norm)

        self.down = nn.ModuleList(pair(a, b) for a, b in zip([channels, *widths[:-1]], widths))
        self.shrink = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        falling = list(zip(widths[:0:-1], widths[-2::-1]))
        self.up = nn.ModuleList(pair(2 * a, b) for a, b in falling)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(b, b, 4, stride=2, padding=1) for _, b in falling)
        self.head = nn.Sequential(conv_block(config.width, config.width, config.norm),
                                  nn.Conv1d(config.width, channels, 1))
        self.pointers = PointerHead(config.width, channels, things) if config.pointers else None

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
        features = self.head[0](x)
        out = self.head[1](features)
        if self.pointers is not None and context is not None:
            ends = context[:, -4 * self.channels:].unflatten(1, (2, 2, self.channels))
            out = out + self.pointers(features, ends[:, 0], ends[:, 1])
        return out.transpose(1, 2)
