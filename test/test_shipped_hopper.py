"""The shipped planner of the hopper, its return predictor, and the shipped behaviour policies."""

import gymnasium
import numpy as np
import pytest
import torch

from diffuser_core.envs.locomotion import robot_of
from diffuser_core.envs.locomotion_policy import LocomotionPolicy, LocomotionSettings
from diffuser_core.experts.behaviour import actors_file, load_actors
from diffuser_core.experts.train_behaviour import returns_of
from diffuser_core.planner import Planner
from diffuser_core.shipped import checkpoint_folder


@pytest.fixture(scope='module')
def planner():
    return Planner.from_checkpoint(checkpoint_folder('hopper_medium_expert'))


def test_the_planner_hops_for_longer_than_chance(planner):
    """Random torques fall after about 20 ticks, with a return of about 15."""
    env, policy = gymnasium.make('Hopper-v5'), LocomotionPolicy(planner, LocomotionSettings(candidates=1))
    state, _ = env.reset(seed=5002)
    policy.reset(5002)
    returned = 0.0
    for tick in range(150):
        seen = {f'obs.{n}': float(x) for n, x in enumerate(state)}
        state, reward, terminated, _, _ = env.step(policy.act(seen, 0.008 * tick).actions[0].astype(np.float32))
        returned += float(reward)
        assert not terminated
    assert returned > 300.0
    env.close()


def test_the_return_predictor_tells_a_running_robot_from_a_falling_one(planner):
    """States of the medium policy ten ticks before it falls, and 100 ticks before that."""
    actors, medium = load_actors(actors_file('hopper'))
    env, guide = gymnasium.make('Hopper-v5'), planner.value_guide()
    running, falling = [], []
    for seed in range(5000, 5004):
        state, _ = env.reset(seed=seed)
        seen, terminated = [state], False
        while not terminated:
            state, _, terminated, _, _ = env.step(actors[medium].act(state))
            seen.append(state)
        for values, ticks in ((running, 110), (falling, 10)):
            plan = planner.plan(seen[-ticks])
            values.append(float(guide.score(torch.from_numpy(plan.values[None]).float())))
    env.close()
    assert np.mean(running) > np.mean(falling) + 50.0


def test_the_best_behaviour_policy_runs_to_the_end():
    actors, medium = load_actors(actors_file('hopper'))
    (best,) = returns_of(robot_of('hopper'), actors[max(actors)], [5000])
    (third,) = returns_of(robot_of('hopper'), actors[medium], [5000])
    assert best > 3000.0 > 2000.0 > third > 800.0
