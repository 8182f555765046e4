"""The shipped planners of the running robots, and the shipped behaviour policies."""

import json

import gymnasium
import numpy as np
import pytest
from test_gym_planner import launch

from diffuser_core.envs.locomotion import ROBOTS, robot_of
from diffuser_core.envs.locomotion_policy import LocomotionPolicy, LocomotionSettings
from diffuser_core.experts.behaviour import actors_file, load_actors
from diffuser_core.experts.train_behaviour import returns_of
from diffuser_core.planner import Planner
from diffuser_core.shipped import checkpoint_folder

LEAST = {'hopper': 450.0, 'walker2d': 400.0, 'halfcheetah': 400.0}
"""Returns of 200 ticks that need running: standing still for so long is worth 200, 200 and 0."""


def ticks_of(robot, planner, aim, ticks=200):
    """The return of the first ticks of an episode, and whether it fell."""
    env, policy = gymnasium.make(robot.env_id), LocomotionPolicy(planner, LocomotionSettings(aim=aim))
    dt = env.unwrapped.dt
    state, _ = env.reset(seed=5002)
    policy.reset(5002)
    returned, fell = 0.0, False
    for tick in range(ticks):
        seen = {f'obs.{n}': float(x) for n, x in enumerate(state)}
        state, reward, fell, _, _ = env.step(policy.act(seen, dt * tick).actions[0].astype(np.float32))
        returned += float(reward)
        if fell:
            break
    env.close()
    return returned, fell


@pytest.mark.parametrize('name', list(ROBOTS))
def test_it_runs_and_for_less_if_less_is_aimed_at(name):
    planner = Planner.from_checkpoint(checkpoint_folder(f'{name}_medium_expert'))
    returned, fell = ticks_of(robot_of(name), planner, 1.0)
    assert returned > LEAST[name] and not fell
    assert ticks_of(robot_of(name), planner, -1.5)[0] < returned - 100.0


def test_the_half_cheetah_runs_by_the_clock_behind_its_bridge(tmp_path):
    """20 ticks a second, as its planner steps."""
    output = launch(tmp_path, 'mujoco.launch.py', 'env:=HalfCheetah-v5', 'driver:=planner', 'kwargs:={max_episode_steps: 60}')
    assert 'planning at 20 Hz' in output
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['ticks'] == 60 and summary['driver'] == 'planner'
    assert summary['wall_s'] >= 60 * 0.05
    assert summary['returns'][0] > 50.0


@pytest.mark.parametrize(('name', 'least', 'between'), [
    ('hopper', 3000.0, (800.0, 2000.0)), ('walker2d', 3000.0, (1000.0, 2800.0)), ('halfcheetah', 7000.0, (4000.0, 5200.0))])
def test_the_best_behaviour_policy_runs_better_than_the_medium_one(name, least, between):
    actors, medium = load_actors(actors_file(name))
    (best,) = returns_of(robot_of(name), actors[max(actors)], [20_000])
    (third,) = returns_of(robot_of(name), actors[medium], [20_000])
    assert best > least and between[0] < third < between[1]
