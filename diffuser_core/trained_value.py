"""A trained return predictor as a checkpoint stores it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from diffuser_core.backends import value_gradient, value_only
from diffuser_core.config import from_mapping, to_mapping
from diffuser_core.guide_library import ValueGuide
from diffuser_core.normalize import Normalizer
from diffuser_core.value_network import ValueConfig, ValueNetwork

__all__ = ['TrainedValue']


@dataclass(frozen=True)
class TrainedValue:
    """J = offset + scale * network(noised trajectory, level), the discounted return from a window's first step on.

    weights     of the network
    offset, scale  mean and deviation of the returns it was trained on [unit of the reward]
    discount    from one planning step to the next
    provenance  how it was trained, for people
    """

    weights: Mapping[str, torch.Tensor]
    config: ValueConfig
    offset: float
    scale: float
    discount: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.offset) or not 0.0 < self.scale < math.inf or not 0.0 < self.discount <= 1.0:
            raise ValueError(f'value needs a finite offset, a positive scale and a discount in (0, 1], got {self.offset}, '
                             f'{self.scale} and {self.discount}')

    def network(self, channels: int, horizon: int) -> ValueNetwork:
        """The predictor with these weights, on the CPU; ValueError if they do not fit it."""
        network = ValueNetwork(channels, self.config, horizon)
        try:
            network.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            raise ValueError('the weights of the return predictor do not fit the network described by value: '
                             f'{" ".join(str(error).split())[:300]}') from error
        return network.eval().requires_grad_(False)

    def guide(self, normalizer: Normalizer, horizon: int, *, backend: str = 'traced', levels: int | None = None) -> ValueGuide:
        """J as a guide; `normalizer` is on the device where it shall work, `levels` as for `backends.value_gradient`."""
        device = normalizer.offset.device
        network = self.network(len(normalizer.offset), horizon).to(device)
        with_gradient = value_gradient(network, backend, device, levels=levels)
        alone = value_only(network, backend, device, levels=levels)

        def value(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
            judge = network if torch.is_grad_enabled() and x.requires_grad else alone
            return self.offset + self.scale * judge(x, i)

        def gradient(x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values, gradients = with_gradient(x, i)
            return self.offset + self.scale * values, self.scale * gradients

        return ValueGuide(value, normalizer, gradient=gradient)

    def described(self) -> dict[str, Any]:
        """All but the weights, as plain values; inverse of `from_description`."""
        return {'network': to_mapping(self.config), 'offset': self.offset, 'scale': self.scale, 'discount': self.discount,
                'provenance': dict(self.provenance)}

    @classmethod
    def from_description(cls, weights: Mapping[str, torch.Tensor], described: Any, where: str) -> TrainedValue:
        """From what `described` gave; ConfigError or ValueError, naming `where`, if something is wrong with it."""
        if not isinstance(described, dict) or not isinstance(described.get('network'), dict):
            raise ValueError('value must hold network, offset, scale, discount and provenance')
        missing = [key for key in ('offset', 'scale', 'discount', 'provenance') if key not in described]
        if missing:
            raise ValueError(f'value lacks {", ".join(missing)}')
        network = from_mapping(ValueConfig, described['network'], f'{where}: value.network')
        offset, scale, discount = (float(described[key]) for key in ('offset', 'scale', 'discount'))
        return cls(weights, network, offset, scale, discount, described['provenance'])
