"""Train a Decision Transformer (d3rlpy) on the data of a locomotion robot, and score it on the suite's episodes.

    python benchmarks/baselines/decision_transformer.py --task hopper_medium-expert --steps 5000

Runs from the project's root in an environment made of `requirements.txt`; see docs/baselines.md. A policy that looks back over
twenty states, torques and returns to go is no network from an observation to torques, which `diffuser_core evaluate` takes; so it
is scored here, on the same environments and seeds. Writes to `--out`: model.pt and progress.json, from which an interrupted run
goes on, summary.json, episodes.jsonl and score.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import d3rlpy
import gymnasium
import numpy as np
import torch
from d3rlpy.dataset import TrajectoryMiniBatch
from d3rlpy.models import VectorEncoderFactory
from d3rlpy.preprocessing import MultiplyRewardScaler, StandardObservationScaler
from train import Method, arguments, reported, train

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diffuser_core.envs.locomotion import Robot, robot_of, score
from diffuser_core.evaluate.baselines.locomotion import load_locomotion_episodes
from diffuser_core.evaluate.locomotion_policies import failure_of
from diffuser_core.evaluate.statistics import mean_interval

NAME = 'dt'
CONTEXT = 20
"""Steps that it looks back over, d3rlpy's and the paper's (Chen et al. 2021)."""
BATCH = 64
HIDDEN = [128]
"""Widths of the layers that observations are embedded by; the last is the transformer's, as in the paper."""
TIME_LIMIT = 1000


class Trajectories:
    """Steps of whole episodes, back to back, with the return from each on; those that the collection cut off are left out.

    best  the largest return of an episode
    """

    def __init__(self, path: Path) -> None:
        episodes, self.fingerprint = load_locomotion_episodes(path)
        episodes = [e for e in episodes if e.terminated or len(e.actions) >= TIME_LIMIT]
        if not episodes:
            raise ValueError(f'{path} holds no episode that came to its end')
        self.observations = np.concatenate([e.observations[:-1] for e in episodes])
        self.actions = np.concatenate([e.actions for e in episodes])
        self.rewards = np.concatenate([e.rewards for e in episodes])[:, None]
        self.returns = np.concatenate([e.rewards[::-1].cumsum()[::-1] for e in episodes])[:, None].astype(np.float32)
        self.times = np.concatenate([np.arange(1, len(e.actions) + 1) for e in episodes]).astype(np.float32)  # 0 is padding's
        self.best = float(max(e.rewards.sum() for e in episodes))

    def __len__(self) -> int:
        return len(self.actions)


def build(name: str, data: Trajectories, device: str) -> Any:
    """The transformer with d3rlpy's settings, which are the paper's, and normalised observations."""
    mean, std = data.observations.mean(axis=0), data.observations.std(axis=0)
    config = d3rlpy.algos.DecisionTransformerConfig(
        batch_size=BATCH, context_size=CONTEXT, max_timestep=TIME_LIMIT,
        encoder_factory=VectorEncoderFactory(hidden_units=HIDDEN), reward_scaler=MultiplyRewardScaler(0.001),
        observation_scaler=StandardObservationScaler(mean=mean, std=np.maximum(std, 1e-3)))
    algorithm = config.create(device=device)
    algorithm.create_impl(data.observations.shape[1:], data.actions.shape[1])
    return algorithm


def draw(data: Trajectories, count: int, rng: np.random.Generator) -> TrajectoryMiniBatch:
    """`count` pieces of `CONTEXT` steps that end anywhere, with zeros before an episode's beginning."""
    rows = rng.integers(0, len(data), count)[:, None] + np.arange(1 - CONTEXT, 1)
    times = data.times[rows[:, -1]][:, None] + np.arange(1 - CONTEXT, 1)
    masks = (times >= 1).astype(np.float32)
    rows = np.where(times >= 1, rows, 0)

    def piece(column: np.ndarray) -> np.ndarray:
        return column[rows] * masks[..., None]

    return TrajectoryMiniBatch(
        observations=piece(data.observations), actions=piece(data.actions), rewards=piece(data.rewards),
        returns_to_go=piece(data.returns), terminals=np.zeros((count, CONTEXT, 1), dtype=np.float32),
        timesteps=(times * masks).astype(np.float32), masks=masks, length=CONTEXT)


def episode(algorithm: Any, robot: Robot, seed: int, target: float) -> dict[str, Any]:
    """The record of a seeded episode in which `target` is asked for."""
    torch.manual_seed(seed)
    env = gymnasium.make(robot.env_id)
    actor = algorithm.as_stateful_wrapper(target_return=target)
    state, _ = env.reset(seed=seed)
    reward, returned, ticks, fell, over = 0.0, 0.0, 0, False, False
    speeds: list[float] = []
    while not over:
        torques = np.clip(actor.predict(state.astype(np.float32), reward), -1.0, 1.0)
        state, step, fell, cut, info = env.step(torques)
        reward = float(step)
        speeds.append(float(info['x_velocity']))
        returned, ticks, over = returned + reward, ticks + 1, fell or cut
    env.close()
    return {'seed': seed, 'return': returned, 'score': score(robot, returned), 'ticks': ticks,
            'failure': failure_of(fell, speeds)}


def evaluate(out: Path, data: Trajectories, robot: Robot, options: argparse.Namespace) -> dict[str, Any]:
    """Score what `out` holds; writes episodes.jsonl and score.json."""
    algorithm = build(NAME, data, options.device)
    algorithm.load_model(str(out / 'model.pt'))
    target = data.best if options.target is None else options.target
    records = []
    with open(out / 'episodes.jsonl', 'w', encoding='utf-8') as lines:
        for seed in range(options.seed_start, options.seed_start + options.episodes):
            records.append(episode(algorithm, robot, seed, target))
            lines.write(json.dumps(records[-1]) + '\n')
    scores = np.array([record['score'] for record in records])
    found = {'task': options.task, 'policy': NAME, 'target': target, 'score': float(scores.mean()),
             'ci95': list(mean_interval(scores)), 'episodes': len(records), 'seed_start': options.seed_start,
             'failed': sum(record['failure'] is not None for record in records)}
    (out / 'score.json').write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train, then score."""
    if options.episodes < 1:
        raise ValueError(f'at least one episode is needed, got {options.episodes}')
    robot = robot_of(options.task.partition('_')[0])
    data = Trajectories(options.data or Path('runs/collect') / options.task)
    out = options.out or Path('runs/baselines') / f'{options.task}_{NAME}'
    method = Method(build, draw, lambda algorithm, folder: None, BATCH, HIDDEN)
    train(NAME, method, data, options.steps, out, seed=options.seed, device=options.device,
          command=' '.join(['python', *sys.argv]))
    return evaluate(out, data, robot, options)


def main() -> int:
    """The command line."""
    parser = arguments(__doc__ or '')
    parser.add_argument('--task', required=True, help='hopper_medium-expert, walker2d_medium, ...')
    parser.add_argument('--target', type=float, default=None, help='return to ask for; default: of the best episode in the data')
    parser.add_argument('--episodes', type=int, default=15)
    parser.add_argument('--seed-start', type=int, default=100)
    return reported('decision_transformer', parser.parse_args(), run)


if __name__ == '__main__':
    sys.exit(main())
