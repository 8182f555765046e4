"""Returns from every step of a data set on: what the return predictor learns, and what planners can be told to wish for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from diffuser_core.data.episodes import EpisodeData
from diffuser_core.train.judges import discounted_returns
from diffuser_core.trajectory import RETURN

__all__ = ['returns_to_go', 'with_returns']

LAST_STEPS = 100
"""An episode that was cut off is taken to go on as it did over so many steps."""


def returns_to_go(data: EpisodeData, discount: float, *, termination_penalty: float | None = None,
                  continuing: bool = True) -> NDArray[np.float64]:
    """Discounted return from every row on, (rows,); that of an episode's last row is that of the row before it.

    termination_penalty, continuing  see `ValueTrainConfig`
    """
    assert data.rewards is not None and data.terminated is not None
    returns = np.empty(len(data.rewards))
    for (first, end), terminated in zip(data.bounds, data.terminated):
        rewards = data.rewards[first:end - 1]
        after = float(rewards[-LAST_STEPS:].mean()) / (1.0 - discount) if continuing else 0.0
        found = discounted_returns(torch.from_numpy(rewards), discount, bool(terminated), termination_penalty, after)
        returns[first:end - 1] = found.numpy()
        returns[end - 1] = returns[end - 2]
    return returns


def with_returns(data: EpisodeData, discount: float) -> EpisodeData:
    """The data with the discounted return from every row on as a last channel, `RETURN`."""
    column = returns_to_go(data, discount).astype(np.float32)[:, None]
    return replace(data, observations=np.hstack([data.observations, column]), channels=(*data.channels, RETURN),
                   units=(*data.units, '1'))
