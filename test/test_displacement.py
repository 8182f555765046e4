"""Blocks knocked away in the middle of an episode: which, when, and where they land."""

import math

import numpy as np
import pytest

from diffuser_core.envs.kuka_stack import EPISODE_STEPS, KukaStackEnv
from diffuser_core.envs.stacking import BLOCKS, SLAB_HEIGHT
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.envs.stacking_moves import ROOM, room_at
from diffuser_core.evaluate.displacement import Displacement, draw_shift

SPREAD = np.array([[0.6, 0.0], [0.0, 0.6], [0.0, -0.6], [-0.45, 0.4]])


@pytest.fixture(scope='module')
def env():
    env = KukaStackEnv()
    yield env
    env.close()


def layout(*stacks):
    """Reset option 'blocks' with each stack, bottom to top, on one of the feet."""
    rows = np.zeros((4, 4))
    for foot, stack in zip(SPREAD, stacks):
        for level, block in enumerate(stack):
            rows[block] = [*foot, SLAB_HEIGHT * (level + 0.5), 0.0]
    return rows


def displaced_at(env, displacement, observation):
    ticks = [tick for tick in range(EPISODE_STEPS) if displacement.happens(env, observation, tick)]
    assert len(ticks) <= 1
    return ticks[0] if ticks else None


def test_one_block_of_the_goal_is_moved_by_the_distance_in_the_middle_third(env):
    goal = StackingGoal.parse('relations', ['red on blue'])
    seen, ticks, directions = set(), [], []
    for seed in range(30):
        before, _ = env.reset(seed=seed)
        displacement = Displacement(0.1, goal, seed, EPISODE_STEPS)
        tick = displaced_at(env, displacement, before)
        assert displacement.done == {'block': displacement.done['block'], 'tick': tick}
        shift = (env.observe() - before)[7:].reshape(4, 8)[:, :3]
        (moved,) = np.flatnonzero(np.abs(shift).max(axis=1) > 1e-9)
        assert BLOCKS[moved] == displacement.done['block'] and shift[moved, 2] == pytest.approx(0.0, abs=1e-9)
        assert math.hypot(*shift[moved, :2]) == pytest.approx(0.1)
        centres = env.observe()[7:].reshape(4, 8)[:, :3]
        assert room_at(centres[moved, :2], centres, moved) >= ROOM and 0.45 <= math.hypot(*centres[moved, :2]) <= 0.72
        seen.add(BLOCKS[moved])
        ticks.append(tick)
        directions.append(math.atan2(shift[moved, 1], shift[moved, 0]))
    assert seen == {'red', 'blue'}
    assert EPISODE_STEPS // 3 <= min(ticks) and max(ticks) < 2 * EPISODE_STEPS // 3 and len(set(ticks)) > 15
    assert np.ptp(directions) > 4.0


def test_displacements_are_functions_of_the_seed(env):
    ends = []
    for _ in range(2):
        start, _ = env.reset(seed=4)
        displacement = Displacement(0.1, StackingGoal('stack'), 4, EPISODE_STEPS)
        displaced_at(env, displacement, start)
        ends.append((displacement.done, env.observe().tolist()))
    assert ends[0] == ends[1] and ends[0][0] is not None


def test_no_block_of_a_stack_and_no_held_one_is_displaced(env):
    start, _ = env.reset(seed=0, options={'blocks': layout([0, 1], [2, 3])})
    displacement = Displacement(0.1, StackingGoal('stack'), 0, EPISODE_STEPS)
    assert displaced_at(env, displacement, start) is None and displacement.done is None
    start, _ = env.reset(seed=0, options={'blocks': layout([0, 1], [2], [3])})
    goal = StackingGoal.parse('relations', ['blue on yellow'])
    held = start.copy()
    held[7 + 8 * 2 + 7] = 1.0
    displacement = Displacement(0.1, goal, 0, EPISODE_STEPS)
    assert displaced_at(env, displacement, held) is not None and displacement.done['block'] == 'yellow'


def test_it_waits_for_a_tick_at_which_a_block_qualifies(env):
    stacked, _ = env.reset(seed=0, options={'blocks': layout([0, 1], [2, 3])})
    free, _ = env.reset(seed=0, options={'blocks': layout([0], [1], [2], [3])})
    drawn = displaced_at(env, Displacement(0.1, StackingGoal('stack'), 0, EPISODE_STEPS), free)
    later = Displacement(0.1, StackingGoal('stack'), 0, EPISODE_STEPS)
    assert not any(later.happens(env, stacked, tick) for tick in range(drawn + 5))
    env.reset(seed=0, options={'blocks': layout([0], [1], [2], [3])})
    assert later.happens(env, free, drawn + 5) and later.done['tick'] == drawn + 5


def test_without_room_there_is_no_shift():
    rng = np.random.default_rng(0)
    centres = layout([0], [1], [2], [3])[:, :3]
    assert draw_shift(centres, 0, 0.1, rng) is not None
    assert draw_shift(centres, 0, 1.5, rng) is None
    crowded = centres.copy()
    crowded[1:, :2] = 0.6 * np.array([[math.cos(a), math.sin(a)] for a in (-0.36, 0.36, math.pi)])
    assert draw_shift(crowded, 0, 0.1, rng) is None
