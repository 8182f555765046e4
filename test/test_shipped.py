"""The checkpoint that comes with the package: what it says of itself, and that its plans make sense."""

import datetime
import re
import warnings

import numpy as np
import pytest

from diffuser_core.envs.kuka_stack import REACH_RADIUS, KukaStackEnv
from diffuser_core.envs.policies import make_policy
from diffuser_core.envs.policy_settings import PolicySettings
from diffuser_core.envs.stacking import HORIZONTAL_TOLERANCE, SLAB_HEIGHT
from diffuser_core.envs.stacking_features import ATTACHED, PLACES, cartesian, features
from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.envs.stacking_tasks import TASKS
from diffuser_core.evaluate.episode import run_episode
from diffuser_core.planner import Planner
from diffuser_core.shipped import checkpoint_folder

SEEDS = range(6000, 6012)


@pytest.fixture(scope='module')
def planner():
    return Planner.from_checkpoint(checkpoint_folder('kuka_stack'))


def test_it_is_small_and_says_where_it_came_from(planner):
    folder = checkpoint_folder('kuka_stack')
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    made = planner.checkpoint.provenance
    assert made['command'].startswith('python -m diffuser_core train config/kuka_stack.yaml')
    assert re.fullmatch('[0-9a-f]{64}', made['data_fingerprint'])
    assert made['steps'] > 10_000 and made['held_out_loss'] < 0.01
    datetime.date.fromisoformat(made['date'])


def test_its_plans_pick_up_the_block_and_put_it_where_it_shall_be(planner):
    """Plans from pure noise, over seeded layouts: red on green."""
    env = KukaStackEnv()
    tip, moved, first = (planner.channels.indices([f'{thing}.{field}' for field in ('azimuth', 'radius', 'z')])
                         for thing in ('tip', 'moved', 'first'))
    attached = planner.channels.names.index(ATTACHED)
    pick_error, place_error = [], []
    for seed in SEEDS:
        state = features(env.reset(seed=seed)[0], 0)
        places = dict(zip(PLACES, state[planner.channels.indices(PLACES)]))
        places |= dict(zip(PLACES[:3], state[first] + (0.0, 0.0, SLAB_HEIGHT)))
        plan = planner.plan(state, planner.conditions().known(-1, planner.channels, places)).values
        held = np.flatnonzero(plan[:, attached] > 0.5)
        assert len(held) > 4
        for error, t, target in ((pick_error, held[0], state[moved]), (place_error, held[-1], state[first])):
            error.append(np.linalg.norm(cartesian(plan[t, tip])[:2] - cartesian(target)[:2]))
    env.close()
    assert max(pick_error) < REACH_RADIUS and max(place_error) < HORIZONTAL_TOLERANCE


def test_it_builds_towers_and_rearranges_them():
    """The seeds 6000 and 6001 of every task, whole episodes; results are on other seeds."""
    policy, env = StackingPolicy(Planner.from_checkpoint(checkpoint_folder('kuka_stack'))), KukaStackEnv()
    scores = {(task, seed): run_episode(policy, env, task, seed)['score'] for task in TASKS for seed in (6000, 6001)}
    env.close()
    assert np.mean(list(scores.values())) > 90.0, scores


def test_getting_ready_for_the_robot_warns_of_nothing():
    """The planner warns once of states outside its training data; the node must not spend that on its warm-up."""
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        policy = make_policy(PolicySettings())
    assert policy.replans == 0 and policy.goal is None
