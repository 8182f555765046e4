"""Guides: objectives that bend plans while they are drawn (paper, section 3.2).

A guide values whole trajectories in physical units and is differentiable. Guides add (`a + b`) and scale (`0.5 * a`), and are
chosen at every call: none of them is trained together with the planner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from diffuser_core.normalize import Normalizer

__all__ = ['Guide', 'GuideError', 'normal_gradient']


class GuideError(ValueError):
    """A guide that returned something unusable; the message names the guide."""


class Guide(ABC):
    """An objective J of trajectories; larger is better."""

    name = 'guide'

    @abstractmethod
    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        """J of `trajectories` (batch, horizon, channels), physical units, noised to level `i` (None: clean) -> (batch,).

        Must be differentiable unless `gradient` is overridden. Most guides judge clean trajectories and ignore `i`.
        """

    def gradient(self, trajectories: torch.Tensor, i: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """J (batch,) and its gradient (batch, horizon, channels), per unit; GuideError if they are unusable."""
        with torch.enable_grad():
            source = trajectories.detach().requires_grad_()
            values = self.value(source, i)
            self._check_values(values, len(trajectories))
            if not values.requires_grad:
                raise GuideError(f'the guide {self.name!r} does not depend on the trajectory in a differentiable way')
            (gradients,) = torch.autograd.grad(values.sum(), source)
        if not bool(torch.isfinite(gradients).all()):
            raise GuideError(f'the guide {self.name!r} has a gradient that is not finite')
        return values.detach(), gradients

    def score(self, trajectories: torch.Tensor) -> torch.Tensor:
        """J of clean trajectories without a gradient, checked; (batch,)."""
        with torch.no_grad():
            values = self.value(trajectories, None)
        self._check_values(values, len(trajectories))
        return values

    def _check_values(self, values: torch.Tensor, batch: int) -> None:
        if not isinstance(values, torch.Tensor) or values.shape != (batch,):
            got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise GuideError(f'the guide {self.name!r} must return one value a trajectory, shape ({batch},), got {got}')
        if not bool(torch.isfinite(values).all()):
            raise GuideError(f'the guide {self.name!r} returned a value that is not finite')

    def __add__(self, other: Guide) -> Guide:
        if not isinstance(other, Guide):
            return NotImplemented
        return _Sum(self, other)

    def __mul__(self, factor: float) -> Guide:
        return _Scaled(self, factor)

    __rmul__ = __mul__

    def __neg__(self) -> Guide:
        return _Scaled(self, -1.0)


class _Sum(Guide):
    """J = sum of the parts' J; every part is checked under its own name."""

    def __init__(self, first: Guide, second: Guide) -> None:
        self.parts = (first, second)
        self.name = f'{first.name} + {second.name}'

    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        values = [part.value(trajectories, i) for part in self.parts]
        for part, value in zip(self.parts, values):
            part._check_values(value, len(trajectories))
        return values[0] + values[1]

    def gradient(self, trajectories: torch.Tensor, i: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        (value, gradient), (other_value, other_gradient) = (part.gradient(trajectories, i) for part in self.parts)
        return value + other_value, gradient + other_gradient


class _Scaled(Guide):
    """J = factor times another guide's J."""

    def __init__(self, guide: Guide, factor: float) -> None:
        if not abs(factor) < float('inf'):
            raise ValueError(f'a guide is scaled by a finite number, got {factor}')
        self.guide, self.factor = guide, float(factor)
        self.name = guide.name

    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        value = self.guide.value(trajectories, i)
        self.guide._check_values(value, len(trajectories))
        return self.factor * value

    def gradient(self, trajectories: torch.Tensor, i: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = self.guide.gradient(trajectories, i)
        return self.factor * value, self.factor * gradient


def normal_gradient(guide: Guide, normalizer: Normalizer) -> Callable[[torch.Tensor, int | None],
                                                                      tuple[torch.Tensor, torch.Tensor]]:
    """The guide's value and gradient as functions of trajectories in normal units, for the sampler."""
    def gradient(normal: torch.Tensor, i: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        values, gradients = guide.gradient(normalizer.denormalize(normal), i)
        return values, gradients * normalizer.scale
    return gradient
