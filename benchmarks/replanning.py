"""Does replanning lose the goal? The same planner, in one plan and replanned, with every new plan taken or only better ones.

    python benchmarks/replanning.py config/checkpoints/maze2d_umaze [more checkpoints] [--episodes 20] [--seed-start 0]

A planner whose training windows were cut anywhere, as in the paper, arrives exactly at its plan's end: made anew at every tick,
that end recedes. To see it, train one first:

    python -m diffuser_core collect maze2d_umaze --d4rl-controller --out runs/collect/maze2d_umaze_d4rl
    python -m diffuser_core train config/maze2d_umaze.yaml name=maze2d_umaze_cut data.path=runs/collect/maze2d_umaze_d4rl \\
        data.whole_episodes=true data.horizon=32 optimizer.steps=10000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from diffuser_core.envs.maze_policy import MazePolicy
from diffuser_core.envs.point_maze import PointMazeEnv
from diffuser_core.evaluate.maze_policies import run_maze_episode
from diffuser_core.evaluate.statistics import mean_interval
from diffuser_core.planner import Planner

WAYS = {'one plan, unit-gain PD (paper)': ('paper', None), 'replanned, every plan taken': ('states', -1.0),
        'replanned, better plans taken': ('states', MazePolicy.OFF_PLAN)}
"""Name -> execution, and how far the ball must be from a plan for that to be dropped [m]; below 0: always."""


def main() -> None:
    """Run the episodes and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('checkpoints', type=Path, nargs='+')
    parser.add_argument('--episodes', type=int, default=20)
    parser.add_argument('--seed-start', type=int, default=0)
    parser.add_argument('--replan-every', type=int, default=5, help='control ticks')
    options = parser.parse_args()
    torch.set_num_threads(1)
    for folder in options.checkpoints:
        planner = Planner.from_checkpoint(folder)
        maze = MazePolicy.maze_of(planner)
        env = PointMazeEnv(maze.name)
        for name, (execution, off_plan) in WAYS.items():
            policy = MazePolicy(planner, maze, execution=execution, candidates=1)
            if off_plan is not None:
                policy.OFF_PLAN = off_plan  # type: ignore[misc]
            records = [run_maze_episode(policy, env, maze.name, seed, replan_every=options.replan_every)
                       for seed in range(options.seed_start, options.seed_start + options.episodes)]
            scores = np.array([record['score'] for record in records])
            low, high = mean_interval(scores)
            ends = sum(record['failure'] is None for record in records)
            print(f'{folder}  {name:<32} score {scores.mean():6.1f} ({low:.1f} - {high:.1f}), in the goal at the end {ends} of '
                  f'{len(records)}', flush=True)


if __name__ == '__main__':
    main()
