"""Behaviour policies of the locomotion robots: small tanh-Gaussian actors, evaluated in numpy.

They were trained with soft actor-critic (`train_behaviour.py`), and snapshots taken on the way are shipped, so that data of all
qualities are made again without training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from diffuser_core.shipped import config_folder

__all__ = ['Actor', 'actors_file', 'load_actors', 'save_actors']

LAYERS = ('hidden.0', 'hidden.1', 'mean', 'log_std')
LOG_STD_RANGE = (-20.0, 2.0)


@dataclass(frozen=True)
class Actor:
    """Two hidden layers of rectified units, then mean and log deviation of a Gaussian whose draws are squashed by tanh.

    weights, biases  of each of `LAYERS`: (inputs, outputs) and (outputs,)
    """

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]

    def __post_init__(self) -> None:
        if len(self.weights) != len(LAYERS) or len(self.biases) != len(LAYERS):
            raise ValueError(f'an actor has {len(LAYERS)} layers, got {len(self.weights)} weights and {len(self.biases)} biases')
        first, second, mean, spread = (w.shape for w in self.weights)
        chained = [len(shape) for shape in (first, second, mean, spread)] == [2] * 4 and first[1] == second[0] \
            and second[1] == mean[0] and mean == spread
        if not chained or any(b.shape != w.shape[1:] for w, b in zip(self.weights, self.biases)):
            raise ValueError(f'the layers of an actor do not go together: {", ".join(map(str, (first, second, mean, spread)))}')
        if not all(np.isfinite(part).all() for part in (*self.weights, *self.biases)):
            raise ValueError('an actor has weights that are not finite')

    @property
    def observations(self) -> int:
        """How many numbers it observes."""
        return self.weights[0].shape[0]

    @property
    def actions(self) -> int:
        """How many numbers it gives."""
        return self.weights[2].shape[1]

    def act(self, observation: NDArray[np.float64], rng: np.random.Generator | None = None) -> NDArray[np.float32]:
        """The action (actions,) in (-1, 1) for an observation (observations,): drawn with `rng`, else the squashed mean."""
        x = observation.astype(np.float32)
        for layer in range(2):
            x = np.maximum(x @ self.weights[layer] + self.biases[layer], 0.0)
        mean = x @ self.weights[2] + self.biases[2]
        if rng is not None:
            log_std = np.clip(x @ self.weights[3] + self.biases[3], *LOG_STD_RANGE)
            mean = mean + np.exp(log_std) * rng.standard_normal(len(mean), dtype=np.float32)
        return np.tanh(mean)


def actors_file(robot: str) -> Path:
    """The shipped snapshots of a robot's behaviour policy."""
    return config_folder() / 'behaviour' / f'{robot}.safetensors'


def save_actors(path: Path, actors: dict[int, Actor], medium: int, metadata: dict[str, str]) -> None:
    """Write actors, by the training steps they had, in half precision, and which of them is called medium."""
    tensors = {}
    for steps, actor in actors.items():
        for layer, weights, biases in zip(LAYERS, actor.weights, actor.biases):
            tensors[f'{steps}.{layer}.weight'] = weights.astype(np.float16)
            tensors[f'{steps}.{layer}.bias'] = biases.astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save(tensors, {**metadata, 'medium': str(medium)}))


def load_actors(path: str | Path) -> tuple[dict[int, Actor], int]:
    """Actors by the training steps they had, fewest first, and which of them is called medium.

    FileNotFoundError if there is no such file; ValueError, naming it, if it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no behaviour policies at {path}')
    try:
        with safe_open(path, 'numpy') as opened:
            medium = int((opened.metadata() or {})['medium'])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        found = sorted({int(name.partition('.')[0]) for name in tensors})
        actors = {steps: Actor(*(tuple(tensors[f'{steps}.{layer}.{part}'].astype(np.float32) for layer in LAYERS)
                                 for part in ('weight', 'bias'))) for steps in found}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f'{path} does not hold behaviour policies: {error}') from error
    except KeyError as error:
        raise ValueError(f'{path} does not hold behaviour policies: {error.args[0]} is missing') from error
    if medium not in actors:
        raise ValueError(f'{path} does not hold behaviour policies: that of {medium} training steps is missing')
    return actors, medium
