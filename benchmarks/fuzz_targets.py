"""What is fuzzed: the places where the project reads what others may have written.

`TARGETS` is the registry: an entry makes its valid inputs, says how to change them, how to read one, and which errors are clean.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import torch
import yaml
from diffuser_msgs.msg import PlannerStats
from fuzz_mutations import Mutation, mutated_hdf5, mutated_log, mutated_safetensors, mutated_text, spliced
from minari.data_collector import EpisodeBuffer

from diffuser_core.checkpoint import DESCRIPTION, WEIGHTS, Checkpoint, CheckpointError, DiffusionConfig
from diffuser_core.config import ConfigError, load_config
from diffuser_core.data.demonstrations import load_segments
from diffuser_core.data.episodes import datasets_path, load_episodes
from diffuser_core.envs import MAZE_IDS
from diffuser_core.envs.stacking import CHANNELS as STACKING
from diffuser_core.normalize import Normalizer
from diffuser_core.train.config import TrainConfig
from diffuser_core.trajectory import Channels, Plan
from diffuser_core.unet import TemporalUNet, UNetConfig
from diffuser_ros.bridges.gym_robot import EnvError, parse_kwargs
from diffuser_ros.run_log import RunLog, RunLogError
from diffuser_ros.run_reader import parse_run
from diffuser_ros.run_setup import Setup

__all__ = ['TARGETS', 'Target']

CONFIGS = Path(__file__).parents[1] / 'config'
LONGEST = 1000
"""Characters of the longest message that can still be read."""


@dataclass(frozen=True)
class Target:
    """One reader of untrusted input.

    share   of all inputs that it gets
    seeds   makes valid inputs in an empty folder
    mutate  changes one of them
    read    reads an input, for which there is the empty folder that `seeds` has been given
    clean   the error that bad input may raise; its message is one line of at most `LONGEST` characters
    names   what the message must hold, e.g. the name of the file
    """

    name: str
    share: float
    seeds: Callable[[Path], Sequence[bytes]]
    mutate: Mutation
    read: Callable[[bytes, Path], object]
    clean: type[Exception]
    names: str = ''

    def input(self, seed: int, number: int, seeds: Sequence[bytes]) -> bytes:
        """Input `number` of the sequence that belongs to `seed`; the first ones are the valid inputs themselves."""
        if number < len(seeds):
            return seeds[number]
        rng = random.Random(f'{seed} {self.name} {number}')
        return spliced(rng, seeds) if rng.random() < 0.03 else self.mutate(rng, rng.choice(seeds))

    def why_unclean(self, error: BaseException) -> str:
        """What is wrong with an error that reading has raised; empty if nothing is."""
        if not isinstance(error, self.clean):
            return type(error).__name__
        message = str(error)
        if not message.strip() or '\n' in message or len(message) > LONGEST:
            return f'{type(error).__name__} whose message is not a readable line'
        return '' if self.names in message else f'{type(error).__name__} that does not name {self.names}'


def _checkpoint(folder: Path, config: UNetConfig) -> tuple[bytes, bytes]:
    """Weights and description of a tiny checkpoint."""
    torch.manual_seed(0)
    channels = Channels(('push', 'a.x', 'b.x'), ('N', 'm', 'm'), actions=1)
    network = TemporalUNet(3, config, channels.things(config.pointers))
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        Checkpoint(network.state_dict(), config, DiffusionConfig(levels=4), Normalizer('limits', torch.zeros(3), torch.ones(3)),
                   channels, 8, 0.1, ('a.x',), {'made': 'to be broken', 'losses': [0.5, 0.25]}).save(Path(inner) / 'checkpoint')
        return tuple((Path(inner) / 'checkpoint' / name).read_bytes() for name in (WEIGHTS, DESCRIPTION))  # type: ignore[return-value]


PLAIN, WITH_POINTERS = UNetConfig(8, (1, 2)), UNetConfig(8, (1,), context=8, attention=True, pointers=('x',), norm='step')


def _weights(folder: Path) -> list[bytes]:
    weights, description = _checkpoint(folder, PLAIN)
    (folder / DESCRIPTION).write_bytes(description)
    return [weights]


def _descriptions(folder: Path) -> list[bytes]:
    weights, description = _checkpoint(folder, WITH_POINTERS)
    (folder / WEIGHTS).write_bytes(weights)
    return [description]


def _read_weights(data: bytes, folder: Path) -> None:
    """With the digest of the changed weights: otherwise that alone would be found to be wrong."""
    described = yaml.load((folder / DESCRIPTION).read_bytes(), yaml.CSafeLoader)
    described['weights_sha256'] = hashlib.sha256(data).hexdigest()
    (folder / DESCRIPTION).write_text(yaml.dump(described, Dumper=yaml.CSafeDumper, sort_keys=False))
    (folder / WEIGHTS).write_bytes(data)
    Checkpoint.load(folder).network()


def _read_description(data: bytes, folder: Path) -> None:
    (folder / DESCRIPTION).write_bytes(data)
    checkpoint = Checkpoint.load(folder)
    checkpoint.network()
    checkpoint.describe()


def _configurations(folder: Path) -> list[bytes]:
    return [(CONFIGS / name).read_bytes() for name in ('kuka_stack.yaml', 'maze2d_umaze.yaml')]


def _read_configuration(data: bytes, folder: Path) -> None:
    (folder / 'train.yaml').write_bytes(data)
    load_config(TrainConfig, folder / 'train.yaml')


def _overrides(folder: Path) -> list[bytes]:
    (folder / 'train.yaml').write_bytes((CONFIGS / 'maze2d_umaze.yaml').read_bytes())
    return [b'optimizer.steps=10', b'model.multipliers=[1, 2, 4]', b'data.jitter={x: 0.1}', b'name=a']


def _read_override(data: bytes, folder: Path) -> None:
    load_config(TrainConfig, folder / 'train.yaml', [data.decode('utf-8', 'surrogateescape')])


def _demonstrations(folder: Path) -> list[bytes]:
    """Two episodes of one demonstration each, which consists of two segments."""
    rng = np.random.default_rng(0)
    with h5py.File(folder / 'main_data.hdf5', 'w') as file:
        for number in range(2):
            episode = file.create_group(f'episode_{number}')
            episode.attrs['id'], episode.attrs['total_steps'] = number, 6
            episode['observations'] = rng.normal(size=(7, len(STACKING)))
            episode['actions'], episode['rewards'] = rng.normal(size=(6, 8)), np.zeros(6)
            episode['truncations'] = np.arange(6) == 5
            for name, values in (('demonstration', [number] * 7), ('segment', [0, 0, 0, 1, 1, 1, 1]), ('upper', [0] * 7),
                                 ('lower', [1] * 7)):
                episode[f'infos/{name}'] = np.array(values)
    return [(folder / 'main_data.hdf5').read_bytes()]


def _read_demonstrations(data: bytes, folder: Path) -> None:
    (folder / 'main_data.hdf5').write_bytes(data)
    load_segments(folder / 'main_data.hdf5')


EPISODES = Path('diffuser/maze2d-umaze/fuzz-v0')


def _data_set(folder: Path) -> None:
    """A Minari data set of the small maze with two episodes."""
    rng = np.random.default_rng(0)
    buffers = [EpisodeBuffer(id=number, observations=rng.normal(size=(6, 4)), rewards=np.zeros(5),
                             actions=rng.uniform(-1, 1, (5, 2)).astype(np.float32), terminations=np.zeros(5, dtype=bool),
                             truncations=np.arange(5) == 4, infos={'journey': np.array([0, 0, 0, 1, 1, 1])})
               for number in range(2)]
    with datasets_path(folder), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        minari.create_dataset_from_buffers(str(EPISODES), buffers, data_format='hdf5',
                                           env=gymnasium.spec(MAZE_IDS['umaze', True]))


def _by_file(name: str, mutate: Mutation) -> tuple[Callable[[Path], list[bytes]], Mutation, Callable[[bytes, Path], None]]:
    """How one of a data set's two files is made, changed and read."""
    def seeds(folder: Path) -> list[bytes]:
        _data_set(folder)
        return [(folder / EPISODES / 'data' / name).read_bytes()]

    def read(data: bytes, folder: Path) -> None:
        (folder / EPISODES / 'data' / name).write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            load_episodes(folder)

    return seeds, mutate, read


def _kwargs(folder: Path) -> list[bytes]:
    return [b'{max_episode_steps: 300}', b'reset_noise_scale: 0.1\nframe_skip: 4\n', b'']


def _read_kwargs(data: bytes, folder: Path) -> None:
    parse_kwargs(data.decode('utf-8', 'replace'))


def _logs(folder: Path) -> list[bytes]:
    """A short run: a goal, plans, ticks, a hold."""
    folder = folder / 'checkpoint'
    folder.mkdir()
    (folder / 'config.yaml').write_bytes(b'{}')
    path = folder / 'run.mcap'
    log = RunLog(path, on_end=print)
    log.start(Setup({'seed': 0}, folder, 'traced', 0, 'gym', ('force.x', 'force.y')))
    state = {'x': 1.0, 'y': 1.0}
    log.goal({'task': 'state', 'channels': ['x', 'y'], 'values': [1.0, 2.0], 'relations': []}, state)
    for n in range(3):
        plan = Plan(np.zeros((4, 2)), Channels(('x', 'y'), ('m', 'm')), 0.1 * n, 0.1, {})
        motion = log.replan(state, 0.1 * n, plan, pace=[True], began=0.0)
        log.tick(state, 0.1 * n, motion if n else 0, [0.1, 0.2], 0, 'on the way', adopted=motion)
        log.stats(PlannerStats(tick=n))
    log.clear()
    log.close()
    return [path.read_bytes()]


def _read_log(data: bytes, folder: Path) -> None:
    parse_run(data)


TARGETS = (
    Target('checkpoint weights', 0.15, _weights, mutated_safetensors, _read_weights, CheckpointError),
    Target('checkpoint description', 0.25, _descriptions, mutated_text, _read_description, CheckpointError, DESCRIPTION),
    Target('training configuration', 0.2, _configurations, mutated_text, _read_configuration, ConfigError, 'train.yaml'),
    Target('configuration override', 0.1, _overrides, mutated_text, _read_override, ConfigError),
    Target('run log', 0.1, _logs, mutated_log, _read_log, RunLogError),
    Target('environment arguments', 0.1, _kwargs, mutated_text, _read_kwargs, EnvError),
    Target('demonstrations', 0.12, _demonstrations, mutated_hdf5, _read_demonstrations, ValueError, 'main_data.hdf5'),
    Target('episodes, arrays', 0.04, *_by_file('main_data.hdf5', mutated_hdf5), ValueError, 'fuzz-v0'),
    Target('episodes, metadata', 0.04, *_by_file('metadata.json', mutated_text), ValueError, 'fuzz-v0'),
)
