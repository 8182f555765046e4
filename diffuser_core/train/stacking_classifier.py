"""Training of the classifier that guides block stacking (paper, appendix B), on noised states of the demonstrations."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from diffuser_core import __version__
from diffuser_core.checkpoint import Checkpoint
from diffuser_core.config import to_mapping
from diffuser_core.data.demonstrations import SegmentData
from diffuser_core.data.windows import Symmetries
from diffuser_core.envs.stacking_classifier import CLASSES, labels
from diffuser_core.envs.stacking_features import FEATURES, OTHERS
from diffuser_core.schedule import NoiseSchedule
from diffuser_core.train.judges import train_classifier
from diffuser_core.value_network import StepClassifier

__all__ = ['ClassifierConfig', 'train_stacking_classifier']

HELD_OUT = 0.02


@dataclass(frozen=True)
class ClassifierConfig:
    """A training run of the classifier.

    data        folder written by `collect`
    checkpoint  the planner that it shall guide: same channels, normaliser and noise levels
    width       units of each of the three hidden layers
    out         file to write; others there are replaced
    """

    data: str
    checkpoint: str
    out: str
    width: int = 128
    steps: int = 10_000
    batch: int = 256
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 2 or self.steps < 1 or self.batch < 1 or not self.learning_rate > 0.0:
            raise ValueError(f'width must be even and at least 4, steps, batch and learning_rate positive, got {self.width}, '
                             f'{self.steps}, {self.batch} and {self.learning_rate}')


def train_stacking_classifier(config: ClassifierConfig, data: SegmentData, command: str) -> dict[str, Any]:
    """Train, write `config.out` and return a summary with the accuracy on held-out states, a noise level in eight each."""
    planner = Checkpoint.load(Path(config.checkpoint))
    if planner.channels.names != FEATURES:
        raise ValueError(f'{config.checkpoint} is not a stacking planner: its channels are {", ".join(planner.channels.names)}')
    rows = torch.from_numpy(data.observations)
    wanted = torch.from_numpy(labels(data.observations)).float()
    held_out = max(1, round(HELD_OUT * len(rows)))
    normal = planner.normalizer.normalize(rows)
    symmetries = Symmetries.of(planner.channels, OTHERS, ('*.azimuth',))
    rearranged = symmetries.permutations[:, [FEATURES.index(f'{name}.z') for name in OTHERS]]
    heights = {FEATURES.index(f'{name}.z'): n for n, name in enumerate(OTHERS)}
    classes = torch.tensor([[heights[int(c)] for c in row] + [3] for row in rearranged])

    def sample(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(0, len(rows) - held_out, (config.batch,), generator=generator)
        order = torch.randint(0, len(classes), (config.batch,), generator=generator)
        mirrored = torch.rand(config.batch, 1, generator=generator) < 0.5
        states = normal[chosen].gather(1, symmetries.permutations[order])
        return torch.where(mirrored, states * symmetries.mirror, states), wanted[chosen].gather(1, classes[order])

    torch.manual_seed(config.seed)
    network = StepClassifier(len(FEATURES), len(CLASSES), config.width)
    schedule = NoiseSchedule.cosine(planner.diffusion.levels)
    losses = train_classifier(network, sample, schedule, steps=config.steps, learning_rate=config.learning_rate, seed=config.seed)
    accuracy = _accuracy(network, normal[-held_out:], wanted[-held_out:], schedule)
    summary = {'command': command, 'version': __version__, 'config': to_mapping(config), 'data_fingerprint': data.fingerprint,
               'steps': config.steps, 'loss': float(np.mean(losses[-100:])), 'accuracy_by_level': accuracy,
               'date': datetime.date.today().isoformat()}
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + '.part')
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, part,
              metadata={'classes': json.dumps(CLASSES), 'width': str(config.width), 'made': json.dumps(summary)})
    part.replace(out)
    return summary


def _accuracy(network: StepClassifier, states: torch.Tensor, wanted: torch.Tensor, schedule: NoiseSchedule) -> dict[str, float]:
    """Noise level -> share of held-out states whose four answers are all right."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    with torch.no_grad():
        for i in range(0, schedule.levels, schedule.levels // 8):
            signal, spread = schedule.signal_and_noise(i)
            noise = torch.randn(states.shape, generator=generator)
            answers = network(signal * states + spread * noise, torch.tensor([i])) > 0.0
            found[str(i)] = float((answers == (wanted > 0.5)).all(1).float().mean())
    return found
