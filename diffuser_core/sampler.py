"""The reverse process: from noise, or from a noised earlier plan, to trajectories.

One loop serves every case. Each level does the same four things: estimate the clean trajectory, let guidance and soft
conditions shift that estimate, move to the next level with a solver, write the known entries in.

Solvers: 'ddim' (Song et al. 2021, eq. 12), deterministic with `eta` 0 and DDPM, the paper's sampler, with `eta` 1; and 'dpm++',
DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), of second order and deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffuser_core.budget import Pace
from diffuser_core.diffusion import clean_estimate, noised
from diffuser_core.sampling import RULES, SHIFTING, SOLVERS
from diffuser_core.schedule import NoiseSchedule

__all__ = ['Denoised', 'Denoiser', 'Guidance', 'SoftKnown', 'denoise', 'noised_start']

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Encoder = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]
Gradient = Callable[[torch.Tensor, int | None], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Denoiser:
    """A network with what is needed to read its output: `prediction` 'x0', 'epsilon' or 'v', and whether estimates are clipped.

    encode  what the network is told of the known values beforehand; None if it is told nothing
    """

    network: Network
    schedule: NoiseSchedule
    prediction: str = 'x0'
    clip: bool = True
    encode: Encoder | None = None

    def estimate(self, noisy: torch.Tensor, i: int, level: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """Clean estimate of `noisy` (batch, horizon, channels) at level `i`, given the context of what is known; `level` (1,) is
        the same number for the network."""
        clean = clean_estimate(self.prediction, self.network(noisy, level, context), noisy, i, self.schedule)
        return clean.clamp(-1.0, 1.0) if self.clip else clean


@dataclass(frozen=True)
class Guidance:
    """How an objective J bends the sampling.

    gradient    (trajectories, i) -> values (batch,) and dJ / dtrajectories; all in normal units, `i` None for clean estimates
    rule        where the gradient is taken and what it shifts; alpha_bar is written a:
                'clean'      at the clean estimate, which moves by (1 - a) grad J: no derivative of the network, for guides
                             that judge clean trajectories
                'posterior'  the same J, differentiated through the network: the estimate moves by
                             (1 - a) / sqrt(a) d J(estimate(x)) / dx; exact for linear J (Chung et al. 2023)
                'score'      at the noisy trajectory, for guides that know levels: the estimate moves by
                             (1 - a) / sqrt(a) grad J_i(x); exact if J_i(x) = log E[exp J | x]
                'algorithm1' the paper's Algorithm 1: the next level's mean moves by Sigma grad J(mean)
                'released'   the released code: the noisy trajectory itself moves by Sigma grad J_i(x) before denoising
    steps       gradient steps a level ('released' and 'algorithm1')
    stop_level  no guidance below this level
    limit       farthest that a level's guidance may move an entry of the clean estimate, normal units: beyond it, the
                trajectory's whole shift is scaled down, which keeps steep objectives from running away (the first three
                rules); None: no limit
    """

    gradient: Gradient
    rule: str = 'clean'
    steps: int = 1
    stop_level: int = 0
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f'unknown guidance rule {self.rule!r}; there are {", ".join(RULES)}')
        if self.steps < 1 or self.stop_level < 0 or self.limit is not None and not self.limit > 0.0:
            raise ValueError(f'guidance needs at least one step, no negative stop level and a positive limit, got {self.steps}, '
                             f'{self.stop_level} and {self.limit}')

    def limited(self, shift: torch.Tensor) -> torch.Tensor:
        """`shift` (batch, horizon, channels), scaled down a trajectory to the limit."""
        if self.limit is None:
            return shift
        largest = shift.abs().amax((1, 2), keepdim=True)
        return shift * (self.limit / largest.clamp_min(self.limit))


@dataclass(frozen=True)
class SoftKnown:
    """Values that are wanted, not known: `values` and `weights` in [0, 1], both (horizon, channels), normal units.

    Each clean estimate is drawn towards `values` by its weight; with `through` the pull goes through the network's derivative
    (pseudo-inverse guidance of Song et al. 2023, as real-time chunking uses it, arXiv 2506.07339, eq. 2) with its
    factor 1 / sqrt(alpha_bar) held to at most `clip`.
    """

    values: torch.Tensor
    weights: torch.Tensor
    through: bool = False
    clip: float = 5.0


@dataclass(frozen=True)
class Denoised:
    """What came out: `clean` (batch, horizon, channels), the levels that were `visited`, fewer than asked for if the time ran
    out, and the guide's `values` (batch,) when it was last asked, or None."""

    clean: torch.Tensor
    visited: list[int]
    values: torch.Tensor | None


def noised_start(plan: torch.Tensor, i: int, schedule: NoiseSchedule, noise: torch.Tensor) -> torch.Tensor:
    """An earlier plan brought to level `i` (paper, section 5.4); all (batch, horizon, channels)."""
    return noised(plan, i, noise, schedule)


def denoise(denoiser: Denoiser, start: torch.Tensor, levels: Sequence[int], known: torch.Tensor, mask: torch.Tensor,
            generator: torch.Generator, eta: float = 0.0, *, solver: str = 'ddim', guidance: Guidance | None = None,
            soft: SoftKnown | None = None, resample: int = 0, budget: Pace | None = None,
            watch: Callable[[int, torch.Tensor], None] | None = None) -> Denoised:
    """Clean trajectories from `start` (batch, horizon, channels) at level `levels[0]`, visiting `levels` downwards.

    `known` and `mask` (horizon, channels) are written in before every network call and at the end. `eta` 0 adds no noise on the
    way. `resample` times a level, the result is noised back and the level repeated, which reconciles known and sampled entries
    (Lugmayr et al. 2022). With a `budget`, the level that would overrun it is not begun and the last estimate is returned.
    `watch` is called with every level i and the trajectories there, and at the end with -1 and the clean ones.
    """
    if solver not in SOLVERS:
        raise ValueError(f'unknown solver {solver!r}; there are {", ".join(SOLVERS)}')
    if solver == 'dpm++' and (eta or guidance is not None and guidance.rule == 'algorithm1'):
        raise ValueError("the solver 'dpm++' is deterministic: it takes neither eta nor the guidance rule 'algorithm1'")
    loop = _Loop(denoiser, levels, known, mask, generator, eta, solver, guidance, soft)
    x = torch.where(mask, known, start)
    for n, i in enumerate(levels):
        last = n + 1 == len(levels)
        for repeat in range(1 if last else resample + 1):
            if watch is not None:
                watch(i, x)
            clean, x = loop.estimate(x, n)
            if last or budget is not None and not budget.another():
                if watch is not None:
                    watch(-1, clean)
                return Denoised(clean, list(levels[:n + 1]), loop.values)
            lower = loop.step(x, clean, n)
            x = lower if repeat == resample else loop.noised_back(lower, n)
        loop.earlier = (clean, i)
    raise ValueError('denoising needs at least one level')


class _Loop:
    """What the levels of one sampling share.

    Everything that depends on the level alone is a Python number, and nothing here reads a tensor's contents on the host: the
    device never waits for Python, and the loop can be captured as a CUDA graph.
    """

    def __init__(self, denoiser: Denoiser, levels: Sequence[int], known: torch.Tensor, mask: torch.Tensor,
                 generator: torch.Generator, eta: float, solver: str, guidance: Guidance | None, soft: SoftKnown | None) -> None:
        self.denoiser, self.known, self.mask, self.generator = denoiser, known, mask, generator
        self.eta, self.solver, self.guidance, self.soft = eta, solver, guidance, soft
        self.levels = levels
        self.alpha_bar = denoiser.schedule.shares
        self.context = denoiser.encode(known[None], mask[None]) if denoiser.encode else None
        self.values: torch.Tensor | None = None
        self.earlier: tuple[torch.Tensor, int] | None = None

    def estimate(self, x: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean estimate of `x` at level `levels[n]`, guided, with what is known; and `x`, which guidance may have moved."""
        i = self.levels[n]
        a = self.alpha_bar[i]
        guidance = self.guidance if self.guidance is not None and i >= self.guidance.stop_level else None
        rule = guidance.rule if guidance is not None else None
        if guidance is not None and rule == 'released':
            for _ in range(guidance.steps):
                x = self._inpainted(x + self._variance(n) * self._gradient(guidance, x, i))
        through_soft = self.soft is not None and self.soft.through
        if rule == 'posterior' or through_soft:
            with torch.enable_grad():
                source = x.detach().requires_grad_()
                estimated = self._estimate(source, i)
            clean = estimated.detach()
            pulls: list[torch.Tensor] = []
            if self.soft is not None and through_soft:
                pulls.append(min(1.0 / math.sqrt(a), self.soft.clip) * self.soft.weights * (self.soft.values - clean))
            if guidance is not None and rule == 'posterior':
                pulls.append((1.0 - a) / math.sqrt(a) * self._gradient(guidance, clean, None))
            (shift,) = torch.autograd.grad(estimated, source, torch.stack(pulls).sum(0))
            clean = clean + (guidance.limited(shift) if guidance is not None and rule == 'posterior' else shift)
        else:
            clean = self._estimate(x, i)
        if guidance is not None and rule == 'clean':
            clean = clean + guidance.limited((1.0 - a) * self._gradient(guidance, clean, None))
        elif guidance is not None and rule == 'score':
            clean = clean + guidance.limited((1.0 - a) / math.sqrt(a) * self._gradient(guidance, x, i))
        if self.soft is not None and not through_soft:
            clean = torch.lerp(clean, self.soft.values.expand_as(clean), self.soft.weights.expand_as(clean))
        if self.soft is None and rule not in SHIFTING:
            return clean, x
        return self._inpainted(clean.clamp(-1.0, 1.0) if self.denoiser.clip else clean), x

    def step(self, x: torch.Tensor, clean: torch.Tensor, n: int) -> torch.Tensor:
        """From level `levels[n]` to the next."""
        here, there = self.alpha_bar[self.levels[n]], self.alpha_bar[self.levels[n + 1]]
        if self.solver == 'dpm++':
            return self._inpainted(self._second_order(x, clean, n))
        variance = self._variance(n)
        spread = self.eta * math.sqrt(variance)
        epsilon = (x - math.sqrt(here) * clean) / math.sqrt(1.0 - here)
        x = math.sqrt(there) * clean + math.sqrt(max(1.0 - there - spread ** 2, 0.0)) * epsilon
        i = self.levels[n]
        if self.guidance is not None and self.guidance.rule == 'algorithm1' and i >= self.guidance.stop_level:
            for _ in range(self.guidance.steps):
                x = x + variance * self._gradient(self.guidance, x, self.levels[n + 1])
        return self._inpainted(x + spread * self._noise(x) if spread else x)

    def noised_back(self, x: torch.Tensor, n: int) -> torch.Tensor:
        """From the next level back to `levels[n]`."""
        share = self.alpha_bar[self.levels[n]] / self.alpha_bar[self.levels[n + 1]]
        return self._inpainted(math.sqrt(share) * x + math.sqrt(1.0 - share) * self._noise(x))

    def _second_order(self, x: torch.Tensor, clean: torch.Tensor, n: int) -> torch.Tensor:
        here, there = self.alpha_bar[self.levels[n]], self.alpha_bar[self.levels[n + 1]]
        stride = _log_snr(there) - _log_snr(here)
        data = clean
        if self.earlier is not None:
            ratio = (_log_snr(here) - _log_snr(self.alpha_bar[self.earlier[1]])) / stride
            data = clean + (clean - self.earlier[0]) / (2.0 * ratio)
        return math.sqrt((1.0 - there) / (1.0 - here)) * x - math.sqrt(there) * math.expm1(-stride) * data

    def _variance(self, n: int) -> float:
        """Variance of the posterior q(next level | this level, clean); 0 at the last level."""
        if n + 1 == len(self.levels):
            return 0.0
        here, there = self.alpha_bar[self.levels[n]], self.alpha_bar[self.levels[n + 1]]
        return (1.0 - there) / (1.0 - here) * (1.0 - here / there)

    def _gradient(self, guidance: Guidance, x: torch.Tensor, i: int | None) -> torch.Tensor:
        self.values, gradient = guidance.gradient(x, i)
        return gradient.masked_fill(self.mask, 0.0)

    def _estimate(self, x: torch.Tensor, i: int) -> torch.Tensor:
        level = self.denoiser.schedule.level(i, x.device)
        return self._inpainted(self.denoiser.estimate(x, i, level, self.context))

    def _inpainted(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, self.known, x)

    def _noise(self, x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)


def _log_snr(alpha_bar: float) -> float:
    """Half the logarithm of the signal-to-noise ratio, lambda of DPM-Solver."""
    return 0.5 * math.log(alpha_bar / (1.0 - alpha_bar))
