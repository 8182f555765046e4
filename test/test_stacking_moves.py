"""Which block is moved next: bottom up, what is in the way first, held blocks before all others."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuser_core.envs.stacking import GROUND, SLAB_HEIGHT, standing_relations, tower_relations
from diffuser_core.envs.stacking_moves import ROOM, blocks_above, free_place, next_move, room_at

FEET = np.array([[0.6, 0.0], [0.0, 0.6], [0.0, -0.6], [-0.4, 0.45]])


def centres_of(stacks, slip=(0.0, 0.0)):
    """Centres (4, 3) of blocks in stacks, each bottom to top; every level is off the one below by `slip`."""
    centres = np.zeros((4, 3))
    for foot, stack in zip(FEET, stacks):
        for level, block in enumerate(stack):
            centres[block] = [*(foot + level * np.array(slip)), SLAB_HEIGHT * (level + 0.5)]
    return centres


def standing(centres, held=None):
    return standing_relations(centres, np.arange(4) == held, np.zeros(4))


def arrangements():
    """All ways to put four blocks into stacks."""
    for order in itertools.permutations(range(4)):
        for cuts in itertools.product((False, True), repeat=3):
            stacks = [[order[0]]]
            for block, cut in zip(order[1:], cuts):
                if cut:
                    stacks.append([block])
                else:
                    stacks[-1].append(block)
            yield stacks


def carried_out(centres, move):
    upper, lower = move
    after = centres.copy()
    after[upper] = [*free_place(centres, upper), SLAB_HEIGHT / 2] if lower == GROUND else \
        centres[lower] + (0.0, 0.0, SLAB_HEIGHT)
    return after


@pytest.mark.parametrize('goal', [((0, 1),), ((1, 2), (3, 0)), tower_relations([2, 0, 3, 1])])
def test_every_goal_is_reached_from_every_arrangement_by_possible_moves(goal):
    longest = 0
    for stacks in arrangements():
        centres = centres_of(stacks)
        moves = 0
        while (move := next_move(goal, centres, standing(centres))) is not None and moves < 10:
            moves += 1
            upper, lower = move
            assert not blocks_above(centres, upper)
            assert lower == GROUND or not blocks_above(centres, lower)
            centres = carried_out(centres, move)
        assert set(goal) <= standing(centres), stacks
        longest = max(longest, moves)
    assert longest <= 6


def test_blocks_in_the_way_go_where_they_are_wanted_if_they_can():
    centres = centres_of([[1, 2], [0], [3]])
    assert next_move([(0, 1), (2, 3)], centres, standing(centres)) == (2, 3)
    assert next_move([(0, 1), (2, 0)], centres, standing(centres)) == (2, GROUND)


def test_a_block_that_lies_askew_is_in_the_way_too():
    centres = centres_of([[1], [0], [3]])
    centres[2] = centres[1] + (0.13, 0.0, SLAB_HEIGHT)
    assert standing(centres) == frozenset() and blocks_above(centres, 1) == [2]
    assert next_move([(0, 1)], centres, standing(centres)) == (2, GROUND)
    assert next_move([(2, 1)], centres, standing(centres)) == (2, 1)


def test_a_held_block_comes_first():
    centres = centres_of([[1], [0], [3], [2]])
    centres[3] = [0.6, 0.0, 0.3]
    free = standing(centres, 3)
    assert next_move([(0, 1)], centres, free, 3) == (3, GROUND)
    assert next_move([(0, 1), (3, 2)], centres, free, 3) == (3, 2)
    assert next_move([(0, 1), (3, 0)], centres, free, 3) == (3, GROUND)  # red is not yet where it shall be
    assert next_move([], centres, free, 3) == (3, GROUND)
    assert next_move([], centres_of([[0], [1], [2], [3]]), frozenset()) is None


@given(st.integers(0, 10_000))
def test_free_places_have_room_and_are_near(seed):
    rng = np.random.default_rng(seed)
    centres = centres_of([[0], [1], [2], [3]])
    azimuth = rng.uniform(-2.4, 2.4, 4)
    centres[:, :2] = 0.6 * np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    block = int(rng.integers(4))
    place = free_place(centres, block)
    assert np.hypot(*place) == pytest.approx(0.6) and room_at(place, centres, block) >= ROOM
    if room_at(centres[block, :2], centres, block) >= ROOM + 0.02:
        assert np.linalg.norm(place - centres[block, :2]) < 0.03


def test_where_there_is_room_nowhere_the_roomiest_place_is_taken():
    centres = np.zeros((4, 3))
    azimuth = np.linspace(-2.4, 2.4, 3)
    centres[:3, :2] = 0.6 * np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    crowded = np.vstack([np.repeat(centres[:3], 5, axis=0) + [[0.0, 0.0, 0.0]], centres[3:]])
    crowded[:15, :2] = 0.6 * np.stack([np.cos(np.linspace(-2.4, 2.4, 15)), np.sin(np.linspace(-2.4, 2.4, 15))], axis=1)
    place = free_place(crowded, 15)
    best = max(room_at(0.6 * np.array([np.cos(a), np.sin(a)]), crowded, 15) for a in np.arange(-2.4, 2.41, 0.05))
    assert best < ROOM and room_at(place, crowded, 15) == pytest.approx(best)
