"""Evaluation tasks: functions of the seed, rearrangements that ask for something and can be made in time."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import (
    AZIMUTH_RANGE,
    AZIMUTH_SEPARATION,
    CIRCLE_RADIUS,
    GROUND,
    SLAB_HEIGHT,
    standing_relations,
    tower_relations,
)
from diffuser_core.envs.stacking_tasks import LARGEST_OFFSET, TASKS, draw_task, moves_to

SEEDS = range(300)


def start_of(task):
    centres = np.array(task.reset['blocks'])[:, :3]
    return centres, standing_relations(centres, np.zeros(4), np.zeros(4))


@pytest.mark.parametrize('name', TASKS)
def test_a_task_is_a_function_of_its_seed(name):
    drawn = [draw_task(name, seed) for seed in range(20)]
    assert drawn == [draw_task(name, seed) for seed in range(20)]
    assert len({str(task) for task in drawn}) == 1 if name == 'unconditional' else len({str(task) for task in drawn}) > 10


def test_the_tasks_of_a_seed_ask_for_and_score_different_things():
    standing = {(1, 0), (3, 2)}
    assert draw_task('unconditional', 3).score(standing) == pytest.approx(100 / 3)
    order = np.random.default_rng(3).permutation(4).tolist()
    conditional = draw_task('conditional', 3)
    assert conditional.goal.relations == tower_relations(order) and conditional.reset is None
    assert conditional.score(tower_relations(order)) == 100.0
    assert conditional.score(tower_relations(order[1:])) == pytest.approx(200 / 3)
    assert conditional.score(tower_relations(order[::-1])) == 0.0
    rearrangement = draw_task('rearrangement', 3)
    for count in range(len(rearrangement.goal.relations) + 1):
        assert rearrangement.score(rearrangement.goal.relations[:count]) == pytest.approx(
            100 * count / len(rearrangement.goal.relations))


def test_nothing_of_a_rearrangement_stands_at_its_start_and_one_to_three_moves_make_it():
    counts, apart = set(), 0
    for seed in SEEDS:
        task = draw_task('rearrangement', seed)
        centres, standing = start_of(task)
        assert 1 <= len(task.goal.relations) <= 3 and standing and standing.isdisjoint(task.goal.relations)
        moves = moves_to(task.goal.relations, centres)
        assert moves is not None
        counts.add(len(moves))
        apart += any(upper == moved for upper, _ in standing for moved, _ in moves)
    assert counts == {1, 2, 3}
    assert 0.8 < apart / len(SEEDS) < 1.0


def test_moves_are_counted_by_hand_for_some_arrangements():
    feet = np.array([[0.6, 0.0], [0.0, 0.6], [0.0, -0.6]])

    def centres_of(*stacks):
        centres = np.zeros((4, 3))
        for foot, stack in zip(feet, stacks):
            for level, block in enumerate(stack):
                centres[block] = [*foot, SLAB_HEIGHT * (level + 0.5)]
        return centres

    assert moves_to([(0, 1)], centres_of([0], [1], [2, 3])) == [(0, 1)]
    assert moves_to([(3, 2)], centres_of([0], [1], [2, 3])) == []
    assert moves_to([(0, 1)], centres_of([0, 2], [1, 3])) == [(2, GROUND), (3, GROUND), (0, 1)]
    assert moves_to([(0, 1)], centres_of([0, 2], [1, 3]), most=2) is None
    assert moves_to([(2, 3), (1, 2), (0, 1)], centres_of([0, 1, 2], [3])) == [(2, 3), (1, 2), (0, 1)]


def test_stacks_of_a_start_have_room_around_them_and_are_built_askew():
    offsets = []
    for seed in SEEDS:
        centres, standing = start_of(draw_task('rearrangement', seed))
        feet = centres[centres[:, 2] < SLAB_HEIGHT]
        assert np.hypot(feet[:, 0], feet[:, 1]) == pytest.approx(CIRCLE_RADIUS)
        azimuths = np.sort(np.arctan2(feet[:, 1], feet[:, 0]))
        assert azimuths.min() >= AZIMUTH_RANGE[0] and azimuths.max() <= AZIMUTH_RANGE[1]
        assert np.diff(azimuths).min() >= AZIMUTH_SEPARATION - 1e-9
        assert len(feet) + len(standing) == 4
        offsets += [centres[upper, :2] - centres[lower, :2] for upper, lower in standing]
    assert 0.013 < np.std(offsets) < 0.017 and np.abs(offsets).max() <= LARGEST_OFFSET + 1e-9


def test_starts_stand_still_in_the_simulator():
    env = KukaStackEnv()
    try:
        for seed in range(20):
            task = draw_task('rearrangement', seed)
            centres, standing = start_of(task)
            observation, _ = env.reset(seed=seed, options=task.reset)
            home = np.append(observation[:7], 0.0)
            for _ in range(36):
                observation, *_ = env.step(home)
            assert env.relations() == standing
            assert np.abs(observation[7:].reshape(4, 8)[:, :3] - centres).max() < 0.005
    finally:
        env.close()


def test_orders_of_conditional_towers_vary():
    assert {draw_task('conditional', seed).goal.relations for seed in SEEDS} == set(
        map(tower_relations, itertools.permutations(range(4))))


@pytest.mark.parametrize(('task', 'seed', 'message'), [
    ('stack', 0, "unknown task 'stack'; the evaluation tasks are unconditional, conditional, rearrangement"),
    ('conditional', -1, 'the seed must be 0 or greater, got -1'),
])
def test_a_wrong_task_or_seed_is_named(task, seed, message):
    with pytest.raises(ValueError, match=message):
        draw_task(task, seed)


def test_tasks_load_neither_torch_nor_a_simulator():
    code = "import sys, diffuser_core.envs.stacking_tasks; print({'torch', 'pybullet'} & set(sys.modules))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'
