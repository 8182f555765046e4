"""The diffusion model as no more than a model of the dynamics, inside a conventional planner (paper, section 5.3).

Model predictive path integral control (Williams et al. 2017): sequences of torques are drawn around the last one, their states
predicted, and the sequences averaged by their predicted returns. What the model knows of good torques is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from diffuser_core.envs.locomotion_motion import LocomotionDecision
from diffuser_core.planner import Planner

__all__ = ['MppiPolicy', 'MppiSettings']


@dataclass(frozen=True)
class MppiSettings:
    """How torques are chosen.

    samples      sequences drawn
    spread       standard deviation of the torques around the last sequence's, shares of the largest torque
    temperature  of the average, in deviations of the samples' returns
    steps        denoising steps of a prediction
    """

    samples: int = 64
    spread: float = 0.3
    temperature: float = 0.3
    steps: int = 3

    def __post_init__(self) -> None:
        if self.samples < 2 or self.steps < 1 or not self.spread > 0.0 or not self.temperature > 0.0:
            raise ValueError(f'MPPI needs 2 samples, a denoising step, and a positive spread and temperature, got '
                             f'{self.samples}, {self.steps}, {self.spread} and {self.temperature}')


class MppiPolicy:
    """Torques by MPPI with the planner's model and return predictor; the interface of `LocomotionPolicy`."""

    def __init__(self, planner: Planner, settings: MppiSettings | None = None) -> None:
        self.planner, self.settings = planner, MppiSettings() if settings is None else settings
        self._judge = planner.value_guide()
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed."""
        self.replans = 0
        self.planner.reseed(seed)
        self._rng = np.random.default_rng(seed)
        self._torques = np.zeros((self.planner.checkpoint.horizon, self.planner.channels.actions))
        self._since = 0.0

    def replan(self, observation: Mapping[str, float], now: float, delay: float = 0.0) -> None:
        """Choose the next sequence of torques, which is followed at once; there is no plan to hand out."""
        settings, state = self.settings, self.planner.channels.vector(observation)
        passed = min(round((now - self._since) / self.planner.step_dt), len(self._torques)) if self.replans else 0
        last = np.concatenate([self._torques[passed:], np.zeros((passed, self._torques.shape[1]))])
        drawn = last + settings.spread * self._rng.standard_normal((settings.samples, *last.shape))
        drawn[0] = last
        drawn = drawn.clip(-1.0, 1.0)
        predicted = self.planner.predict(state, drawn, steps=settings.steps)
        returns = self._judge.score(torch.from_numpy(predicted).float().to(self.planner.device)).double().cpu().numpy()
        weights = np.exp((returns - returns.max()) / (settings.temperature * max(returns.std(), 1e-9)))
        self._torques = np.einsum('s,sta->ta', weights / weights.sum(), drawn)
        self._since = now
        self.replans += 1

    def command(self, observation: Mapping[str, float], now: float) -> LocomotionDecision:
        """The torques for now."""
        row = min(max(0, round((now - self._since) / self.planner.step_dt)), len(self._torques) - 1)
        return LocomotionDecision(self._torques[row:row + 1], None)
