"""Guides: objectives that bend plans while they are drawn (paper, section 3.2).

A guide values whole trajectories in physical units and is differentiable. Guides add (`a + b`) and scale (`0.5 * a`), and are
chosen at every call: none of them is trained together with the planner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from diffuser_core.normalize import Normalizer

__all__ = ['Constant', 'Guide', 'GuideError', 'deferred_checks', 'normal_gradient']

_deferred: ContextVar[list[torch.Tensor] | None] = ContextVar('_deferred', default=None)


class GuideError(ValueError):
    """A guide that returned something unusable; the message names the guide."""


@contextmanager
def deferred_checks() -> Iterator[list[torch.Tensor]]:
    """Whether a guide's numbers are finite is not asked here, where the host would wait for the device: the answers, boolean
    tensors of shape (), are collected in the list that is handed out."""
    answers: list[torch.Tensor] = []
    token = _deferred.set(answers)
    try:
        yield answers
    finally:
        _deferred.reset(token)


def _check_finite(numbers: torch.Tensor, complaint: str) -> None:
    finite = torch.isfinite(numbers).all()
    answers = _deferred.get()
    if answers is not None:
        answers.append(finite)
    elif not bool(finite):
        raise GuideError(complaint)


class Constant:
    """Numbers that a guide computes with, copied once to every device, and converted once to every floating-point type, that asks
    for them. Whole numbers, for indices, stay whole."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers
        self._copies: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers on the device of `x`, in its type."""
        key = x.device, x.dtype if self.numbers.is_floating_point() else self.numbers.dtype
        if key not in self._copies:
            self._copies[key] = self.numbers.to(*key)
        return self._copies[key]


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
        _check_finite(gradients, f'the guide {self.name!r} has a gradient that is not finite')
        return values.detach(), gradients

    def key(self) -> Hashable:
        """Guides with equal keys compute the same: this one only equals itself, sums and multiples of it those of the same."""
        return id(self)

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
        _check_finite(values, f'the guide {self.name!r} returned a value that is not finite')

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

    def key(self) -> Hashable:
        return 'sum', *(part.key() for part in self.parts)


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

    def key(self) -> Hashable:
        return 'scaled', self.factor, self.guide.key()


def normal_gradient(guide: Guide, normalizer: Normalizer) -> Callable[[torch.Tensor, int | None],
                                                                      tuple[torch.Tensor, torch.Tensor]]:
    """The guide's value and gradient as functions of trajectories in normal units, for the sampler."""
    def gradient(normal: torch.Tensor, i: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        values, gradients = guide.gradient(normalizer.denormalize(normal), i)
        return values, gradients * normalizer.scale
    return gradient
