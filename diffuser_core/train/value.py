"""Training of the return predictor J that guides a planner (paper, section 3.2), and how well it is calibrated."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffuser_core import __version__
from diffuser_core.checkpoint import Checkpoint
from diffuser_core.config import to_mapping
from diffuser_core.data.episodes import EpisodeData
from diffuser_core.data.windows import Symmetries, Windows
from diffuser_core.diffusion import noised
from diffuser_core.schedule import NoiseSchedule
from diffuser_core.train.data_sets import latest_starts
from diffuser_core.train.judges import train_value
from diffuser_core.train.returns import returns_to_go
from diffuser_core.trained_value import TrainedValue
from diffuser_core.trajectory import RETURN
from diffuser_core.value_network import ValueConfig, ValueNetwork

__all__ = ['ValueTrainConfig', 'calibration', 'train_return_predictor']

HELD_OUT = 0.02
CALIBRATION_WINDOWS = 2048
LEVEL_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the noise levels at which the predictor is judged."""


@dataclass(frozen=True)
class ValueTrainConfig:
    """A training run of the return predictor.

    data        folder written by `collect`, or minari:<id>
    checkpoint  the planner that it shall guide: same channels, normaliser, horizon and noise levels
    out         folder of a checkpoint to write: that planner and the predictor
    discount    from one step to the next
    termination_penalty  takes the place of the last reward of an episode that came to its own end (the released code: -100)
    continuing  whether an episode that was cut off is taken to go on with its last rewards' mean; else nothing follows (the
                released code)
    """

    data: str
    checkpoint: str
    out: str
    network: ValueConfig = field(default_factory=ValueConfig)
    discount: float = 0.99
    termination_penalty: float | None = None
    continuing: bool = True
    steps: int = 10_000
    batch: int = 64
    learning_rate: float = 2e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.learning_rate > 0.0 or not 0.0 < self.discount < 1.0:
            raise ValueError(f'steps, batch and learning_rate must be positive and discount in (0, 1), got {self.steps}, '
                             f'{self.batch}, {self.learning_rate} and {self.discount}')


class _Sampler:
    """Windows in normal units with their standardised returns, from some of the episodes."""

    def __init__(self, planner: Checkpoint, data: EpisodeData, returns: torch.Tensor, chosen: slice) -> None:
        columns = [data.channels.index(name) for name in planner.channels.names]
        stride = round(planner.step_dt / data.tick_dt)
        latest = latest_starts(data, planner.horizon, stride)
        self._windows = Windows(
            torch.from_numpy(data.observations[:, columns]), (torch.from_numpy(data.bounds) - torch.tensor([0, 1]))[chosen],
            horizon=planner.horizon, stride=stride, goal=(), goal_share=0.0,
            symmetries=Symmetries.of(planner.channels, (), ()), jitter=torch.zeros(len(columns)), latest=latest[chosen])
        self._normalizer, self._returns = planner.normalizer, returns

    def __call__(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        windows, _, starts = self._windows.sample_with_starts(count, generator)
        return self._normalizer.normalize(windows), self._returns[starts]


def train_return_predictor(config: ValueTrainConfig, data: EpisodeData, command: str) -> dict[str, Any]:
    """Train, write `config.out` with `calibration.png` beside it, and return a summary with the calibration on held-out episodes.

    ValueError if planner and data do not go together.
    """
    planner = Checkpoint.load(Path(config.checkpoint))
    if RETURN in planner.channels.names:
        raise ValueError(f'the planner {config.checkpoint} is told which return to reach and needs no predictor; train one with '
                         'data.returns=null')
    missing = [name for name in planner.channels.names if name not in data.channels]
    if missing:
        raise ValueError(f'the data set {config.data} lacks the channel {", ".join(missing)} of the planner {config.checkpoint}')
    held_out = max(1, round(HELD_OUT * len(data)))
    if len(data) <= held_out:
        raise ValueError(f'training needs at least 2 episodes, the data set {config.data} has {len(data)}')
    returns = returns_to_go(data, config.discount, termination_penalty=config.termination_penalty, continuing=config.continuing)
    offset, scale = float(returns.mean()), max(float(returns.std()), 1e-6)
    standard = torch.from_numpy((returns - offset) / scale).float()
    train = _Sampler(planner, data, standard, slice(None, -held_out))
    schedule = NoiseSchedule.cosine(planner.diffusion.levels)
    torch.manual_seed(config.seed)
    network = ValueNetwork(len(planner.channels), config.network, planner.horizon)
    losses = train_value(network, lambda generator: train(config.batch, generator), schedule, steps=config.steps,
                         learning_rate=config.learning_rate, seed=config.seed, progress=True)
    judged = calibration(network, _Sampler(planner, data, standard, slice(-held_out, None)), schedule, offset, scale)
    table = {f'level {i}': {'explained': judged[i][2], 'correlation': judged[i][3]} for i in judged}
    value = TrainedValue(network.state_dict(), config.network, offset, scale, config.discount, {
        'command': command, 'config': to_mapping(config), 'data_fingerprint': data.fingerprint, 'steps': config.steps,
        'loss': float(np.mean(losses[-200:])), 'held_out': table, 'date': datetime.date.today().isoformat(),
        'version': __version__})
    out = Path(config.out)
    replace(planner, value=value).save(out)
    _draw(judged, out.parent / 'calibration.png')
    summary = {'command': command, 'version': __version__, 'checkpoint': str(out), 'steps': config.steps,
               'loss': value.provenance['loss'], 'returns': {'mean': offset, 'deviation': scale}, 'held_out': table}
    (out.parent / 'value_summary.json').write_text(json.dumps(summary, indent=2) + '\n', encoding='utf-8')
    return summary


Calibration = dict[int, tuple[NDArray[np.float64], NDArray[np.float64], float, float]]


@torch.no_grad()
def calibration(network: ValueNetwork, sample: _Sampler, schedule: NoiseSchedule, offset: float, scale: float) -> Calibration:
    """At some noise levels: returns predicted and realised (windows,), the share of their variance that is explained, and their
    correlation."""
    generator = torch.Generator().manual_seed(1)
    clean, wanted = sample(CALIBRATION_WINDOWS, generator)
    found: Calibration = {}
    for i in sorted({round(share * (schedule.levels - 1)) for share in LEVEL_SHARES}):
        levels = torch.full((len(clean),), i)
        noisy = noised(clean, levels, torch.randn(clean.shape, generator=generator), schedule)
        predicted = torch.cat([network(part, torch.tensor([i])) for part in noisy.split(256)])
        error, spread = (predicted - wanted).square().mean(), wanted.var(unbiased=False).clamp_min(1e-12)
        both = torch.stack([predicted, wanted])
        correlation = float(torch.corrcoef(both)[0, 1].nan_to_num(0.0))
        physical = (offset + scale * both).double().numpy()
        found[i] = physical[0], physical[1], float(1.0 - error / spread), correlation
    return found


def _draw(judged: Calibration, path: Path) -> None:
    """Predicted over realised returns, a picture each level: means and quartiles of the predictions in ten equal groups."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(judged), 3.2), layout='constrained')
    FigureCanvasAgg(figure)
    for n, (i, (predicted, realised, explained, _)) in enumerate(judged.items()):
        axes = figure.add_subplot(1, len(judged), n + 1)
        groups = np.array_split(np.argsort(realised), 10)
        centre = [realised[g].mean() for g in groups]
        low, middle, high = np.array([np.percentile(predicted[g], (25, 50, 75)) for g in groups]).T
        ends = [realised.min(), realised.max()]
        axes.plot(ends, ends, color='0.7', linewidth=1)
        axes.fill_between(centre, low, high, alpha=0.3)
        axes.plot(centre, middle, marker='o', markersize=3)
        axes.set_title(f'level {i}: explains {100 * explained:.0f} %', fontsize=9)
        axes.set_xlabel('realised return')
        if n == 0:
            axes.set_ylabel('predicted return J')
    figure.savefig(path, dpi=100)
