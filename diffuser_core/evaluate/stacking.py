"""Score a checkpoint on block stacking, in lock-step and without ROS."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from diffuser_core import __version__
from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_UPPER
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import BLOCKS, CHANNELS, conditional_score, format_relation, tower_relations
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.evaluate.statistics import mean_interval
from diffuser_core.planner import Planner, Sampling
from diffuser_core.shipped import checkpoint_folder

__all__ = ['PAPER', 'episode_goal', 'evaluate', 'format_rows', 'run_episode']

PAPER = {'stack': 58.7, 'relations': 45.6}
"""Table 3 of the paper, Diffuser: unconditional and conditional stacking."""


def episode_goal(task: str, seed: int) -> tuple[StackingGoal, list[int]]:
    """The goal of a seeded episode and, for 'relations', the tower's order bottom to top: a permutation drawn from `seed`."""
    if task == 'stack':
        return StackingGoal('stack'), []
    order = [int(n) for n in np.random.default_rng(seed).permutation(len(BLOCKS))]
    return StackingGoal.parse('relations', [format_relation(pair) for pair in tower_relations(order)]), order


def run_episode(policy: StackingPolicy, env: KukaStackEnv, task: str, seed: int) -> dict[str, Any]:
    """One episode to its time limit; the score is that of the final state (0 to 100)."""
    goal, order = episode_goal(task, seed)
    observation, _ = env.reset(seed=seed)
    names = CHANNELS
    policy.reset(seed)
    policy.set_goal(goal, dict(zip(names, observation)))
    best, reached_at, latencies = 0.0, None, []
    info: dict[str, Any] = {}
    done = False
    tick = 0
    while not done:
        began = time.perf_counter()
        decision = policy.act(dict(zip(names, observation)), tick * policy.tick_dt)
        latencies.append(1e3 * (time.perf_counter() - began))
        if decision.reached and reached_at is None:
            reached_at = tick
        action = np.append(np.clip(decision.joints[0], JOINT_LOWER, JOINT_UPPER), float(decision.gripper[0]))
        observation, _, _, done, info = env.step(action)
        best = max(best, info['score'])
        tick += 1
    standing = env.relations()
    score = info['score'] if task == 'stack' else conditional_score(standing, order)
    failure = None
    if score < 100.0:
        if best > info['score']:
            failure = 'collapsed tower'
        elif info['held'] is not None:
            failure = 'still holding'
        else:
            failure = 'time out' if best > 0.0 else 'nothing built'
    return {'task': task, 'seed': seed, 'score': score, 'legacy_score': info['legacy_score'], 'reached_at': reached_at,
            'failure': failure, 'ticks': tick, 'replans': policy.replans,
            'latency_ms': {'p50': float(np.percentile(latencies, 50)), 'p99': float(np.percentile(latencies, 99))},
            'relations': sorted(map(format_relation, standing))}


_worker: dict[str, Any] = {}


def _start_worker(checkpoint: str, sampling: Mapping[str, Any], commit: int) -> None:
    torch.set_num_threads(1)
    _worker['policy'] = StackingPolicy(Planner.from_checkpoint(checkpoint), sampling=Sampling(**sampling), commit=commit)
    _worker['env'] = KukaStackEnv()


def _run_job(job: tuple[str, int]) -> dict[str, Any]:
    return run_episode(_worker['policy'], _worker['env'], *job)


def evaluate(checkpoint: Path | None, *, tasks: Sequence[str], episodes: int, seed_start: int, workers: int | None,
             sampling: Sampling, commit: int, out: Path, command: str) -> dict[str, Any]:
    """Run `episodes` seeds of every task and write `episodes.jsonl` and `summary.json` to `out`."""
    folder = checkpoint_folder('kuka_stack') if checkpoint is None else checkpoint
    Planner.from_checkpoint(folder)
    if episodes < 1:
        raise ValueError(f'at least one episode is needed, got {episodes}')
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(task, seed) for task in tasks for seed in range(seed_start, seed_start + episodes)]
    began = time.monotonic()
    count = min(len(jobs), workers or os.cpu_count() or 1)
    records: list[dict[str, Any]] = []
    with multiprocessing.get_context('spawn').Pool(count, _start_worker, (str(folder), asdict(sampling), commit)) as pool, \
            open(out / 'episodes.jsonl', 'w', encoding='utf-8') as log:
        for record in tqdm(pool.imap_unordered(_run_job, jobs), total=len(jobs), unit='episode'):
            log.write(json.dumps(record) + '\n')
            log.flush()
            records.append(record)
    rows = [_row(task, [r for r in records if r['task'] == task]) for task in tasks]
    summary = {'command': command, 'version': __version__, 'seed_start': seed_start, 'episodes': episodes, 'device': 'cpu',
               'wall_s': round(time.monotonic() - began, 1), 'checkpoint': str(folder), 'sampling': asdict(sampling),
               'commit': commit, 'rows': rows}
    (out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n', encoding='utf-8')
    return summary


def _row(task: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = np.array([r['score'] for r in records])
    failures = [r['failure'] for r in records if r['failure'] is not None]
    finished = [r['reached_at'] for r in records if r['reached_at'] is not None]
    return {'task': task, 'score': float(scores.mean()), 'ci95': list(mean_interval(scores)), 'episodes': len(records),
            'paper': PAPER[task], 'legacy_score': float(np.mean([r['legacy_score'] for r in records])),
            'failures': {name: failures.count(name) for name in sorted(set(failures))},
            'reached_at_median': float(np.median(finished)) if finished else None,
            'latency_ms': {q: float(np.median([r['latency_ms'][q] for r in records])) for q in ('p50', 'p99')}}


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table for people."""
    lines = [f'{"task":<12}{"score":>7}{"95 % interval":>18}{"paper":>8}{"legacy":>8}{"episodes":>10}  failures']
    for row in rows:
        low, high = row['ci95']
        failures = ', '.join(f'{count} {name}' for name, count in row['failures'].items()) or 'none'
        lines.append(f'{row["task"]:<12}{row["score"]:>7.1f}{f"{low:.1f} - {high:.1f}":>18}{row["paper"]:>8.1f}'
                     f'{row["legacy_score"]:>8.1f}{row["episodes"]:>10}  {failures}')
    return '\n'.join(lines)
