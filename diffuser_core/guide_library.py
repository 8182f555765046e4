"""Guides to use and to add up: rewards, learned returns, classifiers, goals, obstacles, limits, contacts.

All judge trajectories (batch, horizon, channels) in physical units; channels are named when a guide is made, and unknown ones are
refused with the known ones listed (KeyError). Steps outside the horizon are refused when plans are judged (ValueError).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from diffuser_core.guides import Constant, Guide
from diffuser_core.normalize import Normalizer
from diffuser_core.trajectory import Channels

__all__ = ['ClassifierGuide', 'ContactGuide', 'GoalGuide', 'LimitsGuide', 'ObstacleGuide', 'RewardGuide', 'ValueGuide']

ValueGradient = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _columns(channels: Channels, names: Sequence[str]) -> Constant:
    if not names:
        raise ValueError('this guide needs at least one channel')
    return _indices(channels.indices(names).tolist())


def _indices(numbers: Sequence[int]) -> Constant:
    return Constant(torch.tensor(list(numbers), dtype=torch.int64))


def _finite(numbers: Sequence[float], what: str) -> torch.Tensor:
    tensor = torch.tensor([float(n) for n in numbers])
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f'{what} must be finite numbers, got {list(numbers)}')
    return tensor


def _at(steps: Constant, trajectories: torch.Tensor, guide: Guide) -> torch.Tensor:
    horizon = trajectories.shape[1]
    outside = [t for t in steps.numbers.tolist() if not -horizon <= t < horizon]
    if outside:
        raise ValueError(f'the guide {guide.name!r} looks at step {outside[0]}, which does not fit a horizon of {horizon} steps')
    return trajectories[:, steps.like(trajectories)]


class RewardGuide(Guide):
    """A user's reward f(states, actions) of tensors (batch, horizon, observations) and (batch, horizon, actions).

    It returns (batch, horizon), summed with `discount` from step to step, or (batch,).
    """

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], channels: Channels, *,
                 name: str = 'reward', discount: float = 1.0) -> None:
        if not 0.0 < discount <= 1.0:
            raise ValueError(f'a discount lies in (0, 1], got {discount}')
        self.function, self.channels, self.name, self.discount = function, channels, name, discount

    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        actions = self.channels.actions
        rewards = self.function(trajectories[..., actions:], trajectories[..., :actions])
        if isinstance(rewards, torch.Tensor) and rewards.shape == trajectories.shape[:2]:
            steps = self.discount ** torch.arange(trajectories.shape[1], dtype=trajectories.dtype, device=trajectories.device)
            return (rewards * steps).sum(1)
        return rewards


class ValueGuide(Guide):
    """A learned return J of noised trajectories (paper, section 3.2); for the rules 'score', 'algorithm1' and 'released'.

    network   a ValueNetwork: (noisy trajectories in normal units, level (1,)) -> (batch,)
    gradient  the same with its gradient, from `backends.value_gradient`; faster than automatic differentiation

    Clean trajectories are valued as those of level 0.
    """

    def __init__(self, network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], normalizer: Normalizer, *,
                 gradient: ValueGradient | None = None, name: str = 'return') -> None:
        self.network, self.normalizer, self.name = network, normalizer, name
        self._gradient = gradient

    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        return self.network(self.normalizer.normalize(trajectories), self._level(trajectories, i))

    def gradient(self, trajectories: torch.Tensor, i: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        if self._gradient is None:
            return super().gradient(trajectories, i)
        values, gradients = self._gradient(self.normalizer.normalize(trajectories), self._level(trajectories, i))
        self._check_values(values, len(trajectories))
        return values, gradients / self.normalizer.scale

    @staticmethod
    def _level(trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        return torch.full((1,), i or 0, device=trajectories.device)


class ClassifierGuide(Guide):
    """Log-odds of properties of single states, summed over the `properties` and averaged over the steps from `first_step` on.

    network     a StepClassifier: (states in normal units (batch, steps, channels), level) -> logits (batch, steps, classes)
    properties  which of the classes shall hold; in the paper's block stacking 'i on j', over the second half of the
                plan (appendix B)
    """

    def __init__(self, network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], normalizer: Normalizer,
                 properties: Sequence[int], *, first_step: int = 0, name: str = 'classifier') -> None:
        if not properties or min(properties) < 0:
            raise ValueError(f'a classifier guide needs the numbers of the properties that shall hold, got {list(properties)}')
        self.network, self.normalizer, self.name = network, normalizer, name
        self.properties, self.first_step = _indices(properties), first_step

    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        states = self.normalizer.normalize(trajectories[:, self.first_step:])
        if states.shape[1] == 0:
            raise ValueError(f'the guide {self.name!r} looks at steps from {self.first_step} on, the horizon is '
                             f'{trajectories.shape[1]}')
        logits = self.network(states, torch.full((1,), i or 0, device=states.device))
        return logits[..., self.properties.like(logits)].sum(-1).mean(1)


class GoalGuide(Guide):
    """Minus the squared distance of named channels to a target, each in units of `scale` (default 1 of the channel's unit).

    steps  which planning steps are to be there (negative: from the end); default the last. Averaged over them.
    """

    def __init__(self, target: Mapping[str, float], channels: Channels, *, steps: Sequence[int] = (-1,),
                 scale: Mapping[str, float] | None = None, name: str = 'goal') -> None:
        self.columns = _columns(channels, list(target))
        self.target = Constant(_finite(list(target.values()), 'the target of a goal guide'))
        if not steps:
            raise ValueError('a goal guide needs at least one step')
        scales = [(scale or {}).get(n, 1.0) for n in target]
        if not all(0.0 < s < float('inf') for s in scales):
            raise ValueError(f'scales of a goal guide must be positive, got {scales}')
        self.scale, self.steps, self.name = Constant(torch.tensor(scales)), _indices(steps), name

    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        there = _at(self.steps, trajectories, self)[..., self.columns.like(trajectories)]
        away = (there - self.target.like(there)) / self.scale.like(there)
        return -away.square().sum(-1).mean(1)


class ObstacleGuide(Guide):
    """Minus the squared depth [m^2] to which a point enters obstacles, summed over obstacles and over the plan.

    position  names of the point's coordinates, two or three
    spheres   rows (centre ..., radius) [m]
    boxes     rows (low ..., high ...) [m], axis-aligned
    margin    distance to keep from them [m]
    between   points looked at between two steps, so that no plan jumps through a thin obstacle
    """

    def __init__(self, position: Sequence[str], channels: Channels, *, spheres: Sequence[Sequence[float]] = (),
                 boxes: Sequence[Sequence[float]] = (), margin: float = 0.0, between: int = 3, name: str = 'obstacles') -> None:
        self.columns = _columns(channels, position)
        size = len(position)
        if any(len(s) != size + 1 or not s[-1] > 0.0 for s in spheres):
            raise ValueError(f'spheres need {size} coordinates of the centre and a positive radius, got {list(spheres)}')
        if any(len(b) != 2 * size or any(not low < high for low, high in zip(b[:size], b[size:])) for b in boxes):
            raise ValueError(f'boxes need {size} low and {size} high coordinates, low below high, got {list(boxes)}')
        if not (len(spheres) or len(boxes)) or not margin >= 0.0 or between < 0:
            raise ValueError('an obstacle guide needs obstacles, no negative margin and no negative number of points between, '
                             f'got {len(spheres) + len(boxes)} obstacles, {margin} and {between}')
        self.spheres = Constant(torch.stack([torch.zeros(size + 1), *(_finite(s, 'a sphere') for s in spheres)])[1:])
        self.boxes = Constant(torch.stack([torch.zeros(2 * size), *(_finite(b, 'a box') for b in boxes)])[1:])
        self.margin, self.between, self.name, self._size = margin, between, name, size

    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        points = trajectories[..., self.columns.like(trajectories)]
        shares = torch.arange(self.between + 1, dtype=points.dtype, device=points.device) / (self.between + 1)
        before, after = points[:, :-1, None], points[:, 1:, None]
        points = torch.cat([(before + shares[:, None] * (after - before)).flatten(1, 2), points[:, -1:]], dim=1)
        return -self.depths(points).square().sum((1, 2)) / (self.between + 1)

    def depths(self, points: torch.Tensor) -> torch.Tensor:
        """How deep points (..., coordinates) lie in each obstacle grown by the margin [m], 0 outside; (..., obstacles)."""
        size, points = self._size, points.unsqueeze(-2)
        spheres, boxes = self.spheres.like(points), self.boxes.like(points)
        away = (points - spheres[:, :size]).square().sum(-1).clamp_min(1e-12).sqrt()
        in_spheres = (spheres[:, size] + self.margin - away).clamp_min(0.0)
        sides = torch.minimum(points - (boxes[:, :size] - self.margin), boxes[:, size:] + self.margin - points)
        return torch.cat([in_spheres, sides.amin(-1).clamp_min(0.0)], dim=-1)


class LimitsGuide(Guide):
    """Minus the squared excess of named channels over their limits, in shares of the allowed range, averaged over the plan.

    limits   channel -> (low, high), physical units; with `step_dt` [s] limits of its rate of change, per second
    """

    def __init__(self, limits: Mapping[str, tuple[float, float]], channels: Channels, *, step_dt: float | None = None,
                 name: str = 'limits') -> None:
        self.columns = _columns(channels, list(limits))
        for channel, (low, high) in limits.items():
            if not low < high:
                raise ValueError(f'the lower limit of {channel} must be below the upper one, got {low} and {high}')
        if step_dt is not None and not step_dt > 0.0:
            raise ValueError(f'step_dt must be positive, got {step_dt} s')
        self.low, self.high = (Constant(_finite([pair[n] for pair in limits.values()], 'limits')) for n in (0, 1))
        self.step_dt, self.name = step_dt, name

    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        x = trajectories[..., self.columns.like(trajectories)]
        if self.step_dt is not None:
            x = x.diff(dim=1) / self.step_dt
        low, high = self.low.like(x), self.high.like(x)
        excess = ((low - x).clamp_min(0.0) + (x - high).clamp_min(0.0)) / (high - low)
        return -excess.square().mean((1, 2))


class ContactGuide(Guide):
    """Minus the squared difference of contact channels from wanted ones (0 open, 1 in contact), averaged over `steps`.

    With `near`, contact is also only right where it is possible: (names of a point, names of another, reach [m]) adds minus the
    squared contact entry times the squared excess of their distance over `reach`, in shares of it.
    """

    def __init__(self, wanted: Mapping[str, float], channels: Channels, *, steps: Sequence[int] | None = None,
                 near: tuple[Sequence[str], Sequence[str], float] | None = None, name: str = 'contact') -> None:
        self.columns = _columns(channels, list(wanted))
        self.wanted = Constant(_finite(list(wanted.values()), 'wanted contacts'))
        if not all(0.0 <= contact <= 1.0 for contact in wanted.values()):
            raise ValueError(f'a wanted contact lies between 0 (open) and 1 (in contact), got {dict(wanted)}')
        if steps is not None and not steps:
            raise ValueError('a contact guide needs at least one step')
        self.steps, self.name = None if steps is None else _indices(steps), name
        self.near: tuple[Constant, Constant, float] | None = None
        if near is not None:
            first, second, reach = near
            if len(first) != len(second) or not reach > 0.0:
                raise ValueError(f'near needs two points of as many coordinates and a positive reach, got {near}')
            self.near = (_columns(channels, first), _columns(channels, second), reach)

    def value(self, trajectories: torch.Tensor, i: int | None) -> torch.Tensor:
        x = trajectories if self.steps is None else _at(self.steps, trajectories, self)
        contact = x[..., self.columns.like(x)]
        value = -(contact - self.wanted.like(x)).square().sum(-1).mean(1)
        if self.near is not None:
            first, second, reach = self.near
            away = (x[..., first.like(x)] - x[..., second.like(x)]).square().sum(-1).clamp_min(1e-12).sqrt()
            excess = (away / reach - 1.0).clamp_min(0.0)
            value = value - (contact.square().sum(-1) * excess.square()).mean(1)
        return value
