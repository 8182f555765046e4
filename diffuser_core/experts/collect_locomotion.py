"""Collection of locomotion data by D4RL's protocol (Fu et al. 2020, appendix) into 'diffuser/<robot>/<quality>-v0'.

'medium' is driven by a snapshot of the behaviour policy with about a third of the best one's return, 'medium-replay' by all
snapshots up to that one in turn, 'medium-expert' half by it and half by the best, 'expert' by the best; actions are drawn, not
the mean. D4RL's medium-replay is what a learner's buffer held: ours is made again from its snapshots, with as many steps each.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_core.envs.locomotion import Robot, robot_of, score
from diffuser_core.experts.behaviour import actors_file, load_actors
from diffuser_core.experts.shards import Recipe, collect_shards

__all__ = ['QUALITIES', 'STEPS', 'collect_locomotion', 'snapshots_of']

QUALITIES = ('medium', 'medium-replay', 'medium-expert', 'expert')
STEPS = {'medium': 1_000_000, 'medium-expert': 2_000_000, 'expert': 1_000_000}
"""Steps of D4RL's data sets; of medium-replay see `REPLAY_STEPS`."""
REPLAY_STEPS = {'hopper': 402_000, 'walker2d': 302_000, 'halfcheetah': 202_000}
RECIPE = 1
"""Counts changes of what a seed gives."""
STRETCH = 10_000
"""Steps that one seed gives: whole episodes, the last of which is cut off."""


def snapshots_of(found: list[int], medium: int, quality: str) -> list[int]:
    """Which of the snapshots `found` (training steps, in order) drive for a quality, where `medium` is that of 'medium'."""
    if quality not in QUALITIES:
        raise ValueError(f'there is no quality {quality!r}; there are {", ".join(QUALITIES)}')
    if medium not in found:
        raise ValueError(f'there is no snapshot of {medium} training steps; there are {", ".join(map(str, found))}')
    return {'medium': [medium], 'expert': [found[-1]], 'medium-expert': [medium, found[-1]],
            'medium-replay': [steps for steps in found if steps <= medium]}[quality]


def collect_locomotion(out: str | Path, robot: str, quality: str, seed_start: int, workers: int | None = None, *,
                       steps: int | None = None, actors: str | Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Drive `robot` for `steps` steps and return a summary.

    steps   default: as many as D4RL; rounded up to whole stretches of 10,000
    actors  file of snapshots in place of the shipped ones

    A run that was interrupted continues when called again with the same arguments; ValueError if `out` holds something else.
    """
    kind = robot_of(robot)
    if steps is not None and steps < 1 or seed_start < 0:
        raise ValueError(f'steps must be at least 1 and seed_start 0, got {steps} and {seed_start}')
    path = actors_file(robot) if actors is None else Path(actors)
    found, medium = load_actors(path)
    drivers = snapshots_of(list(found), medium, quality)
    steps = steps or (REPLAY_STEPS[robot] if quality == 'medium-replay' else STEPS[quality])
    stretch = min(STRETCH, -(-steps // len(drivers)))
    stretches = -(-steps // stretch)
    stretches += -stretches % len(drivers)
    recipe = Recipe(
        dataset_id=f'diffuser/{robot}/{quality}-v0', env_id=kind.env_id, infos=('snapshot',),
        algorithm='soft actor-critic, drawn actions',
        description=f'{kind.env_id}, {quality}: a behaviour policy after {", ".join(map(str, drivers))} steps of training.',
        settings={'recipe': RECIPE, 'robot': robot, 'quality': quality, 'stretches': stretches, 'stretch': stretch,
                  'seed_start': seed_start, 'actors_sha256': hashlib.sha256(path.read_bytes()).hexdigest()},
        unit='stretch', record=partial(drive, kind, path, drivers, stretch, seed_start),
        reference_scores=(kind.random_score, kind.expert_score))
    began = time.monotonic()
    cpu_seconds = collect_shards(Path(out), recipe, range(seed_start, seed_start + stretches), 1, workers, progress)
    return {'path': str(Path(out) / recipe.dataset_id), 'snapshots': drivers, **_returns(Path(out), kind),
            'cpu_seconds': round(cpu_seconds, 2), 'wall_seconds': round(time.monotonic() - began, 2)}


def drive(robot: Robot, actors: Path, drivers: list[int], steps: int, seed_start: int, seeds: range,
          stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """`steps` steps for every seed, episode after episode, by the drivers in turn.

    Columns as `shards.Recipe` wants them, with the info 'snapshot': training steps of the driver. None if it was stopped.
    """
    import gymnasium

    found, _ = load_actors(actors)
    env = gymnasium.make(robot.env_id)
    columns: dict[str, list[Any]] = {name: [] for name in ('observations', 'actions', 'rewards', 'terminations', 'truncations',
                                                           'snapshot', 'last_observations')}
    for seed in seeds:
        if stopped():
            return None
        driver = drivers[(seed - seed_start) % len(drivers)]
        rng = np.random.default_rng(seed)
        observation, _ = env.reset(seed=seed)
        for step in range(steps):
            action = found[driver].act(observation, rng)
            after, reward, terminated, truncated, _ = env.step(action)
            truncated = truncated or step == steps - 1 and not terminated
            for name, value in zip(columns, (observation, action, reward, terminated, truncated, driver)):
                columns[name].append(value)
            observation = after
            if terminated or truncated:
                columns['last_observations'].append(after)
                observation, _ = env.reset()
    env.close()
    return {name: np.array(values) for name, values in columns.items()}


def _returns(out: Path, robot: Robot) -> dict[str, Any]:
    """What the data hold."""
    from diffuser_core.data.episodes import load_episodes

    data = load_episodes(out, whole=True)
    assert data.terminated is not None
    lengths, returns = data.lengths, data.returns
    return {'steps': int(lengths.sum()), 'episodes': len(data), 'fell': int(data.terminated.sum()),
            'return_mean': float(returns.mean()), 'score_mean': score(robot, float(returns.mean())),
            'length_mean': float(lengths.mean()), 'fingerprint': data.fingerprint}
