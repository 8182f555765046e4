"""The checkpoint that comes with the package: what it says of itself, and that its plans make sense."""

import datetime
import re

import numpy as np
import pytest

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_NAMES, JOINT_UPPER, forward_kinematics
from diffuser_core.envs.kuka_stack import REACH_RADIUS, KukaStackEnv
from diffuser_core.envs.stacking import BLOCKS, HORIZONTAL_TOLERANCE, SLAB_HEIGHT
from diffuser_core.envs.stacking_features import ATTACHED, PLACES, cartesian, features
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


def test_its_plans_pick_up_the_right_block_and_put_it_where_it_shall_be(planner):
    """Plans from pure noise, over seeded layouts: red on green."""
    env = KukaStackEnv()
    places = planner.channels.indices(PLACES).reshape(4, 3)
    attached = planner.channels.indices(ATTACHED)
    joints = planner.channels.indices(JOINT_NAMES)
    right_block, pick_error, place_error = [], [], []
    for seed in SEEDS:
        state = features(env.reset(seed=seed)[0])
        red, green = state[places[0]], state[places[1]]
        end = {f'{block}.{field}': value for block, place in zip(BLOCKS, state[places], strict=True)
               for field, value in zip(('azimuth', 'radius', 'z'), place, strict=True)}
        end |= {'red.azimuth': green[0], 'red.radius': green[1], 'red.z': green[2] + SLAB_HEIGHT}
        plan = planner.plan(state, planner.conditions().known(-1, planner.channels, end)).values
        assert (plan[:, joints] >= JOINT_LOWER).all() and (plan[:, joints] <= JOINT_UPPER).all()
        held = plan[:, attached] > 0.5
        right_block.append(held[:, 0].any() and not held[:, 1:].any())
        if right_block[-1]:
            first, last = np.flatnonzero(held[:, 0])[[0, -1]]
            for error, t, target in ((pick_error, first, red), (place_error, last, green)):
                error.append(np.linalg.norm(forward_kinematics(plan[t, joints])[0][:2] - cartesian(target)[:2]))
    env.close()
    assert np.mean(right_block) > 0.8
    assert np.median(pick_error) < REACH_RADIUS and np.median(place_error) < HORIZONTAL_TOLERANCE
