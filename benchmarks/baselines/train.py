"""Train a baseline (behaviour cloning, AWAC, BCQ, CQL or IQL of d3rlpy) on the data of a task.

Runs from the project's root in an environment made of `requirements.txt`; see docs/baselines.md. Writes to `--out`:
policy.pt (TorchScript: observation to action, for `diffuser_core evaluate ... --policy`), summary.json, and model.pt with
progress.json, from which an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.dataset import TransitionMiniBatch
from d3rlpy.models import VectorEncoderFactory
from d3rlpy.preprocessing import MultiplyRewardScaler, StandardObservationScaler
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffuser_core.evaluate.baselines.encoding import Transitions, load_transitions
from diffuser_core.evaluate.baselines.locomotion import load_locomotion_transitions
from diffuser_core.evaluate.baselines.mazes import load_maze_transitions

BATCH = {'bc': 256, 'awac': 256, 'bcq': 100, 'cql': 100, 'iql': 256}
"""Transitions of a gradient step. BCQ and CQL also draw 10 actions for each of them, so theirs are smaller."""
ACTION_SAMPLES = 10
HIDDEN = [256, 256]
"""Widths of the hidden layers of every network."""
RETURN_SPAN = 1000.0
"""Rewards of IQL and AWAC, whose weights are exponentials of advantages, are scaled so that the returns of a locomotion robot's
episodes span so much, as IQL's authors do (Kostrikov et al. 2021); else one transition of a batch has all the weight."""
SAVE_EVERY = 5000
"""Gradient steps between two saves."""


def build(name: str, data: Transitions, device: str) -> Any:
    """The algorithm `name`, one of `BATCH`, with d3rlpy's settings but for batch size, samples and normalised observations."""
    mean, std = data.observations.mean(axis=0), data.observations.std(axis=0)
    encoder = VectorEncoderFactory(hidden_units=HIDDEN)
    scaler = None if not data.return_span else MultiplyRewardScaler(RETURN_SPAN / data.return_span)
    common = {'batch_size': BATCH[name], 'observation_scaler': StandardObservationScaler(mean=mean, std=np.maximum(std, 1e-3))}
    if name == 'bc':
        config: Any = d3rlpy.algos.BCConfig(learning_rate=3e-4, encoder_factory=encoder, **common)
    elif name == 'iql':
        config = d3rlpy.algos.IQLConfig(actor_encoder_factory=encoder, critic_encoder_factory=encoder, gamma=0.99,
                                        value_encoder_factory=encoder, reward_scaler=scaler, **common)
    elif name == 'awac':
        config = d3rlpy.algos.AWACConfig(actor_encoder_factory=encoder, critic_encoder_factory=encoder, gamma=0.99,
                                         reward_scaler=scaler, **common)
    else:
        common |= {'actor_encoder_factory': encoder, 'critic_encoder_factory': encoder, 'gamma': 0.99,
                   'n_action_samples': ACTION_SAMPLES}
        if name == 'bcq':
            config = d3rlpy.algos.BCQConfig(imitator_encoder_factory=encoder, **common)
        else:
            config = d3rlpy.algos.CQLConfig(**common)
    algorithm = config.create(device=device)
    algorithm.create_impl(data.observations.shape[1:], data.actions.shape[1])
    return algorithm


def draw(data: Transitions, count: int, rng: np.random.Generator) -> TransitionMiniBatch:
    """`count` transitions, drawn uniformly in one piece: d3rlpy's own buffer picks them one by one in Python."""
    rows = rng.integers(0, len(data), count)
    after = np.minimum(rows + 1, len(data) - 1)  # what follows a terminal transition is never looked at
    return TransitionMiniBatch(
        observations=data.observations[rows], actions=data.actions[rows], rewards=data.rewards[rows, None],
        next_observations=data.next_observations[rows], next_actions=data.actions[after], terminals=data.terminals[rows, None],
        intervals=np.ones((count, 1), dtype=np.float32), transitions=())


def export(algorithm: Any, path: Path) -> None:
    """Write the policy as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', torch.jit.TracerWarning)  # of d3rlpy's own checks of shapes, which are fixed here
        algorithm.save_policy(str(path / 'policy.pt'))


@dataclass(frozen=True)
class Method:
    """How one kind of algorithm is built (name, data, device), fed (data, count, rng) and written (algorithm, folder)."""

    build: Callable[[str, Any, str], Any]
    draw: Callable[[Any, int, np.random.Generator], Any]
    export: Callable[[Any, Path], None]
    batch: int
    hidden: Sequence[int]


def train(name: str, method: Method, data: Any, steps: int, out: Path, *, seed: int, device: str,
          command: str) -> dict[str, Any]:
    """Train up to `steps` gradient steps, going on from what `out` holds; returns what summary.json says.

    data  what `method` is built for and fed with; has a length and a `fingerprint`

    ValueError if `out` holds another algorithm's run, or one on other data or with another seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    d3rlpy.seed(seed)
    algorithm = method.build(name, data, device)
    run = {'algorithm': name, 'seed': seed, 'data': data.fingerprint}
    progress: dict[str, Any] = {**run, 'steps': 0, 'cpu_seconds': 0.0, 'wall_seconds': 0.0}
    if (out / 'progress.json').exists():
        progress = json.loads((out / 'progress.json').read_text(encoding='utf-8'))
        differing = [key for key in run if progress[key] != run[key]]
        if differing:
            raise ValueError(f'{out} holds a run with another {differing[0]} ({progress[differing[0]]}); name another --out')
        algorithm.load_model(str(out / 'model.pt'))
    cpu, wall = time.process_time() - progress['cpu_seconds'], time.monotonic() - progress['wall_seconds']
    losses: list[dict[str, float]] = []
    with tqdm(total=steps, initial=progress['steps'], unit='step', desc=name) as bar:
        while progress['steps'] < steps:
            losses.append(algorithm.update(method.draw(data, method.batch, np.random.default_rng([seed, progress['steps']]))))
            progress['steps'] += 1
            bar.update()
            if progress['steps'] % SAVE_EVERY == 0 or progress['steps'] == steps:
                means = {key: float(np.mean([loss[key] for loss in losses if key in loss])) for key in losses[-1]}
                if not np.isfinite(list(means.values())).all():
                    raise FloatingPointError(f'{name} diverged before step {progress["steps"]}: {means}')
                bar.set_postfix({key: f'{mean:.4g}' for key, mean in means.items()})
                losses = []
                progress |= {'losses': means, 'cpu_seconds': time.process_time() - cpu, 'wall_seconds': time.monotonic() - wall}
                algorithm.save_model(str(out / 'model.tmp'))
                os.replace(out / 'model.tmp', out / 'model.pt')
                (out / 'progress.json').write_text(json.dumps(progress, indent=2) + '\n', encoding='utf-8')
    exported = method.build(name, data, 'cpu')  # an export names its device: one from a GPU would not run without
    exported.load_model(str(out / 'model.pt'))
    method.export(exported, out)
    summary = {**progress, 'batch': method.batch, 'hidden': method.hidden, 'transitions': len(data), 'd3rlpy': d3rlpy.__version__,
               'torch': torch.__version__, 'threads': torch.get_num_threads(), 'device': device, 'command': command}
    (out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n', encoding='utf-8')
    return summary


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that trainings share."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument('--data', type=Path, default=None, help='what `collect` wrote; default: runs/collect/<task>')
    parser.add_argument('--steps', type=int, required=True, help='gradient steps in all')
    parser.add_argument('--out', type=Path, default=None, help='default: runs/baselines/<algorithm> or <task>_<algorithm>')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads')
    return parser


def reported(program: str, options: argparse.Namespace, run: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    """Run and print what it found; the exit code: 2 after a mistake of the user's, said in one line; 130 after an interrupt."""
    torch.set_num_threads(options.threads)
    try:
        if options.steps < 1:
            raise ValueError(f'at least one step is needed, got {options.steps}')
        found = run(options)
    except KeyboardInterrupt:
        print('interrupted; the same command continues where it last saved', file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f'{program}: {error}', file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train what was asked for."""
    stacking = options.task == 'kuka_stack'
    load = load_transitions if stacking else load_maze_transitions if options.task.startswith('maze2d') \
        else load_locomotion_transitions
    data = options.data or Path('runs/collect') / options.task
    name = options.algorithm if stacking else f'{options.task}_{options.algorithm}'
    method = Method(build, draw, export, BATCH[options.algorithm], HIDDEN)
    return train(options.algorithm, method, load(data), options.steps, options.out or Path('runs/baselines') / name,
                 seed=options.seed, device=options.device, command=' '.join(['python', *sys.argv]))


def main() -> int:
    """The command line."""
    parser = arguments(__doc__ or '')
    parser.add_argument('algorithm', choices=list(BATCH))
    parser.add_argument('--task', default='kuka_stack', help='kuka_stack, maze2d_umaze, ..., or hopper_medium-expert, ...')
    return reported('train', parser.parse_args(), run)


if __name__ == '__main__':
    sys.exit(main())
