"""The four properties of the paper's section 4 hold for the small models that come with the project (docs/properties.md)."""

import numpy as np
import properties
import pytest

from diffuser_core import Planner, Sampling
from diffuser_core.shipped import checkpoint_folder

SEEDS = range(1000, 1010)


@pytest.fixture(scope='module')
def wall():
    return properties.planner_of('wall')


@pytest.mark.parametrize('name', properties.RECIPES)
def test_the_models_are_small_and_say_where_they_came_from(name):
    folder = checkpoint_folder(f'properties_{name}')
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2.2e6
    checkpoint = Planner.from_checkpoint(folder).checkpoint
    made, recipe = checkpoint.provenance, properties.RECIPES[name]
    assert made['command'] == 'python examples/properties.py train'
    assert (made['steps'], made['windows']) == (recipe.steps, list(recipe.horizons)) and checkpoint.model == recipe.model


def test_what_a_valid_way_is():
    """The measure that the other tests rely on."""
    t = np.linspace(0.0, 1.0, 30)[:, None]
    over = np.array([-0.6, 0.5]) + t * [1.2, 0.0]
    under = np.array([-0.6, -0.8]) + t * [1.2, 0.0]
    jump = np.concatenate([under[:5], under[-5:]])
    assert [properties.valid(way) for way in (over, under, jump)] == [False, True, False]
    assert properties.hits_wall(over[[0, -1]])


def test_long_horizon_plans_find_the_passage_where_random_ways_do_not(wall):
    plans, ours, shooting = properties.long_horizon(wall, SEEDS, shots=1000)
    assert ours >= 0.8 and shooting <= 0.3
    assert all(path[0, 0] * path[-1, 0] < 0.0 for path in plans)


def test_lines_are_composed_to_a_v_only_by_a_network_that_looks_at_pieces():
    """No demonstration turns. Both networks saw the same windows; they differ in what features are normalised over."""
    _, pieces = properties.composition(properties.planner_of('lines'), SEEDS)
    assert pieces.share >= 0.75 and pieces.along.mean() > 0.6
    _, wholes = properties.composition(properties.planner_of('lines_window'), SEEDS)
    assert wholes.share == 0.0


def test_plans_of_any_length_are_valid_and_take_smaller_steps_the_longer_they_are(wall):
    shown = wall.checkpoint.provenance['windows']
    found = properties.lengths(wall, (24, 48, 127), SEEDS)
    assert min(found) < min(shown) and max(found) > max(shown)
    assert min(share for share, _ in found.values()) >= 0.8
    steps = [mean for _, mean in found.values()]
    assert steps[0] > 1.3 * steps[1] > 1.3 * steps[2]


def test_two_guides_that_training_did_not_know_do_both_their_work(wall):
    found = properties.composed(wall, SEEDS)
    missed, entered = ({name: numbers[n] for name, numbers in found.items()} for n in (0, 1))
    assert missed['aim'] < 0.6 * missed['none'] and missed['both'] < 0.6 * missed['none']
    assert missed['avoid'] > 0.8 * missed['none']
    assert entered['avoid'] <= 0.1 and entered['both'] <= 0.25 and entered['aim'] >= 0.4


def test_a_kept_prefix_makes_the_seam_smoother(wall):
    free, kept = (np.median(properties.seams(wall, SEEDS, commit, fade, Sampling())) for commit, fade in ((0, 0), (2, 6)))
    assert kept < 0.8 * free


def test_replanning_twenty_times_keeps_plans_valid(wall):
    assert properties.replanned(wall, SEEDS, Sampling()) >= 0.8
