"""What a network makes of the denoising level alone, computed once for the whole schedule.

The embedding of the level and what every residual block makes of it depend on neither trajectory nor context, and a schedule
has a fixed number of levels. When planning, two matrix products and an activation a level and block become one row of a table.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from diffuser_core.unet import ResidualBlock, TemporalUNet
from diffuser_core.value_network import ValueNetwork

__all__ = ['with_level_tables']

LevelNetwork = TypeVar('LevelNetwork', TemporalUNet, ValueNetwork)


class LevelTable(nn.Module):
    """Rows (levels, width) by level: (batch,) -> (batch, width)."""

    rows: torch.Tensor

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer('rows', rows, persistent=False)

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(i, self.rows)


def with_level_tables(network: LevelNetwork, levels: int) -> LevelNetwork:
    """A copy of `network` for planning with levels 0 to `levels - 1`, which shares its weights and looks up what it makes of one.

    The tables are of the weights as they are now, in their precision: after further training, make a new copy. ValueError
    unless there is at least one level.
    """
    if levels < 1:
        raise ValueError(f'tables over denoising levels need at least 1 level, got {levels}')
    weights = [*network.parameters(), *network.buffers()]
    planning = copy.deepcopy(network, {id(tensor): tensor for tensor in weights})
    with torch.no_grad():
        embedded = network.embedding(torch.arange(levels, device=weights[0].device))
        for block in planning.modules():
            if isinstance(block, ResidualBlock):
                block.level = LevelTable(block.level(embedded))
        planning.embedding = nn.Identity()  # from here on the level itself goes to every block
        if isinstance(planning, ValueNetwork):
            planning.level = LevelTable(embedded)
    return planning
