"""Training of the behaviour policies with soft actor-critic or TQC; only whoever wants other ones needs it.

    pip install 'diffuser-ros[behaviour]'
    python -m diffuser_core.experts.train_behaviour hopper --steps 1000000
    python -m diffuser_core.experts.train_behaviour hopper --pack

The first writes to `runs/behaviour/<robot>` a snapshot of the actor every 10,000 steps with the returns of five episodes, and the
state from which an interrupted training goes on; the second chooses those to ship, for `config/behaviour/<robot>.safetensors`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from diffuser_core.envs.locomotion import ROBOTS, Robot, robot_of, score
from diffuser_core.experts.behaviour import Actor, actors_file, load_actors, save_actors

__all__ = ['main', 'pack', 'returns_of', 'train']

HIDDEN = (128, 128)
ALGORITHMS = ('tqc', 'sac')
DROPPED = {'hopper': 5, 'walker2d': 2, 'halfcheetah': 0}
"""Quantiles that TQC leaves out against overestimation (Kuznetsov et al. 2020, appendix)."""
CHUNK = 10_000
"""Steps between two snapshots."""
SAVE_EVERY = 5
"""Snapshots between two saves of the replay and of the optimiser."""
REPLAY = 10
"""Snapshots below medium that are shipped, for medium-replay."""
EVALUATION_SEEDS = range(20_000, 20_005)


def returns_of(robot: Robot, actor: Actor, seeds: Sequence[int]) -> list[float]:
    """Returns of whole episodes with the mean action."""
    env = gymnasium.make(robot.env_id)
    returns = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(actor.act(observation))
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def train(robot: Robot, steps: int, out: Path, seed: int = 0, algorithm: str = 'tqc', learning_rate: float = 7e-4) -> None:
    """Train until `steps`, going on from what `out` holds."""
    from sbx import SAC, TQC
    from stable_baselines3.common.env_util import make_vec_env

    (out / 'snapshots').mkdir(parents=True, exist_ok=True)
    env = make_vec_env(robot.env_id, n_envs=4, seed=seed)
    model, replay = out / 'model.zip', out / 'replay.pkl'
    if model.exists():
        learner = (TQC if algorithm == 'tqc' else SAC).load(model, env=env)
        learner.load_replay_buffer(replay)
    else:
        common: dict[str, Any] = {
            'policy_kwargs': {'net_arch': list(HIDDEN)}, 'train_freq': 16, 'gradient_steps': 64, 'learning_starts': 10_000,
            'batch_size': 128, 'policy_delay': 2, 'learning_rate': learning_rate, 'gamma': 0.99, 'buffer_size': 1_000_000,
            'seed': seed}
        if algorithm == 'tqc':
            learner = TQC('MlpPolicy', env, top_quantiles_to_drop_per_net=DROPPED[robot.name], **common)
        else:
            learner = SAC('MlpPolicy', env, **common)
    while learner.num_timesteps < steps:
        learner.learn(CHUNK, reset_num_timesteps=False)
        done = learner.num_timesteps
        snapshot = out / 'snapshots' / f'{done:08d}.safetensors'
        save_actors(snapshot, {done: _actor(learner.policy.actor_state.params['params'])}, done, {'robot': robot.name})
        returns = returns_of(robot, load_actors(snapshot)[0][done], EVALUATION_SEEDS)
        line = {'steps': done, 'return': float(np.mean(returns)), 'score': score(robot, float(np.mean(returns))),
                'returns': returns}
        with open(out / 'evaluations.jsonl', 'a', encoding='utf-8') as lines:
            lines.write(json.dumps(line) + '\n')
        print(f'{robot.name} {done:>9,} steps: return {line["return"]:8.1f}, score {line["score"]:6.1f}', flush=True)
        if done // CHUNK % SAVE_EVERY == 0 or done >= steps:
            learner.save(model)
            learner.save_replay_buffer(replay)
    env.close()


def pack(robot: Robot, folder: Path, out: Path, medium: int | None = None) -> dict[str, Any]:
    """Write the snapshots that data are made with to `out`, and return what they scored.

    These are the best, `medium` (default: the first with a third of the best one's return), and up to `REPLAY` evenly spaced ones
    before that. ValueError if there is no snapshot `medium`.
    """
    lines = (folder / 'evaluations.jsonl').read_text(encoding='utf-8').splitlines()
    scored = {line['steps']: line for line in map(json.loads, lines)}
    best = max(scored, key=lambda steps: scored[steps]['return'])
    if medium is None:
        medium = next(steps for steps in sorted(scored) if scored[steps]['return'] >= scored[best]['return'] / 3)
    if medium not in scored:
        raise ValueError(f'{folder} has no snapshot of {medium} steps; it has those of {", ".join(map(str, sorted(scored)))}')
    before = [steps for steps in sorted(scored) if steps < medium]
    chosen = {before[n] for n in np.linspace(0, len(before) - 1, min(REPLAY, len(before))).astype(int)} | {medium, best}
    actors = {steps: load_actors(folder / 'snapshots' / f'{steps:08d}.safetensors')[0][steps] for steps in sorted(chosen)}
    save_actors(out, actors, medium, {'robot': robot.name, 'trained': f'{max(scored)} steps of {robot.env_id}'})
    return {'medium': medium, 'best': best, 'scores': {steps: scored[steps]['score'] for steps in sorted(chosen)}}


def _actor(parameters: dict[str, dict[str, np.ndarray]]) -> Actor:
    layers = [parameters[f'Dense_{n}'] for n in range(4)]
    return Actor(tuple(np.asarray(layer['kernel']) for layer in layers), tuple(np.asarray(layer['bias']) for layer in layers))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('robot', choices=list(ROBOTS))
    parser.add_argument('--steps', type=int, default=1_000_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--algorithm', choices=ALGORITHMS, default='tqc')
    parser.add_argument('--learning-rate', type=float, default=7e-4)
    parser.add_argument('--out', type=Path, default=None, help='default: runs/behaviour/<robot>')
    parser.add_argument('--pack', action='store_true', help='write the snapshots to ship, in place of training')
    parser.add_argument('--medium', type=int, default=None, help="with --pack: steps of the snapshot for 'medium'")
    options = parser.parse_args(argv)
    robot, out = robot_of(options.robot), options.out or Path('runs/behaviour') / options.robot
    if options.pack:
        print(json.dumps(pack(robot, out, actors_file(robot.name), options.medium), indent=2))
    else:
        train(robot, options.steps, out, options.seed, options.algorithm, options.learning_rate)


if __name__ == '__main__':
    main()
