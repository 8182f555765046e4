"""How a plan is drawn: the options of sampling, which needs no PyTorch to be spoken of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ['DEFAULT_SAMPLING', 'RULES', 'SHIFTING', 'SOLVERS', 'Sampling']

SOLVERS = ('ddim', 'dpm++')
SHIFTING = ('clean', 'posterior', 'score')
RULES = (*SHIFTING, 'algorithm1', 'released')
"""The rules of guidance, first those that shift the clean estimate."""


@dataclass(frozen=True)
class Sampling:
    """How a plan is drawn. sampler.py has the mathematics of each option.

    steps       network calls a plan made from pure noise
    warm_steps  network calls a plan made from an earlier one
    warm_level  share of the denoising levels that the earlier plan is noised up to, in (0, 1]
    eta         noise added on the way: 0 none (DDIM), 1 as DDPM
    solver      'ddim' or 'dpm++'
    rule        how a guide bends the plan: 'clean', 'posterior', 'score', 'algorithm1' or 'released'
    guide_steps gradient steps a level, for the last two rules
    stop_level  no guidance below this level
    guide_limit farthest that a guide may move an entry of the clean estimate at one level, in shares of half the data's range;
                None for no limit
    resample    times that a level is repeated to reconcile known and sampled entries
    through     whether wanted values act through the network's derivative (slower) or directly
    """

    steps: int = 6
    warm_steps: int = 3
    warm_level: float = 0.5
    eta: float = 0.0
    solver: str = 'ddim'
    rule: str = 'clean'
    guide_steps: int = 1
    stop_level: int = 0
    guide_limit: float | None = 0.3
    resample: int = 0
    through: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warm_steps < 1:
            raise ValueError(f'a plan needs at least one denoising step, got {self.steps} cold and {self.warm_steps} warm')
        if not 0.0 < self.warm_level <= 1.0 or not 0.0 <= self.eta <= 1.0:
            raise ValueError(f'warm_level lies in (0, 1] and eta in [0, 1], got {self.warm_level} and {self.eta}')
        if self.solver not in SOLVERS or self.rule not in RULES:
            raise ValueError(f'solver is one of {", ".join(SOLVERS)} and rule one of {", ".join(RULES)}, got {self.solver!r} and '
                             f'{self.rule!r}')
        if self.solver == 'dpm++' and (self.eta or self.rule == 'algorithm1'):
            raise ValueError("the solver 'dpm++' is deterministic: it takes neither eta nor the rule 'algorithm1'")
        if self.guide_limit is not None and not self.guide_limit > 0.0:
            raise ValueError(f'guide_limit must be positive, or None for no limit, got {self.guide_limit}')
        if self.guide_steps < 1 or self.stop_level < 0 or self.resample < 0:
            raise ValueError(f'guide_steps is at least 1, stop_level and resample at least 0, got {self.guide_steps}, '
                             f'{self.stop_level} and {self.resample}')


DEFAULT_SAMPLING = Sampling()
