"""Rules of block stacking: relations, chains, scores and the original's defective score."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuser_core.envs.stacking import (
    BLOCKS,
    CHANNELS,
    REST_SPEED,
    SLAB_HEIGHT,
    LegacyScore,
    conditional_score,
    format_relation,
    parse_relation,
    rearrangement_score,
    standing_relations,
    tallest_chain,
    tower_relations,
    unconditional_score,
)

GROUND = np.array([[0.6, 0.0, 0.03], [0.0, 0.6, 0.03], [-0.6, 0.0, 0.03], [0.0, -0.6, 0.03]])
FREE = np.zeros(4, dtype=bool)
STILL = np.zeros(4)


def put(positions, upper, lower, offset=(0.0, 0.0, 0.0)):
    moved = positions.copy()
    moved[upper] = positions[lower] + (0.0, 0.0, SLAB_HEIGHT) + np.array(offset)
    return moved


def tower(order):
    positions = GROUND.copy()
    for upper, lower in tower_relations(order):
        positions = put(positions, upper, lower)
    return positions


@pytest.mark.parametrize(
    ("offset", "stands"),
    [
        ((0.0, 0.0, 0.0), True),
        ((0.099, 0.0, 0.0), True),
        ((-0.099, 0.099, 0.0), True),
        ((0.101, 0.0, 0.0), False),
        ((0.0, -0.101, 0.0), False),
        ((0.0, 0.0, 0.0099), True),
        ((0.0, 0.0, -0.0099), True),
        ((0.0, 0.0, 0.0101), False),
        ((0.0, 0.0, -0.0101), False),
        ((0.0, 0.0, SLAB_HEIGHT), False),
        ((0.0, 0.0, -SLAB_HEIGHT), False),
    ],
)
def test_tolerances(offset, stands):
    relations = standing_relations(put(GROUND, 0, 1, offset), FREE, STILL)
    assert relations == (frozenset({(0, 1)}) if stands else frozenset())


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("kind", ["held", "moving"])
def test_held_or_moving_blocks_do_not_count(block, kind):
    attached, speeds = FREE.copy(), STILL.copy()
    if kind == "held":
        attached[block] = True
    else:
        speeds[block] = REST_SPEED
    relations = standing_relations(put(GROUND, 0, 1), attached, speeds)
    assert relations == (frozenset({(0, 1)}) if block == 2 else frozenset())


def test_relations_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"shapes \(4, 2\)"):
        standing_relations(GROUND[:, :2], FREE, STILL)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        standing_relations(GROUND, FREE, STILL[:3])


@given(
    order=st.permutations(range(4)),
    relabel=st.permutations(range(4)),
    shift=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_relations_follow_labels_and_not_places(order, relabel, shift):
    positions = tower(order)
    assert standing_relations(positions, FREE, STILL) == frozenset(tower_relations(order))
    moved = positions[list(relabel)] + (*shift, 0.0)
    expected = {(relabel.index(upper), relabel.index(lower)) for upper, lower in tower_relations(order)}
    assert standing_relations(moved, FREE, STILL) == expected


@pytest.mark.parametrize(
    ("relations", "height"),
    [
        ([], 0),
        ([(0, 1)], 1),
        ([(0, 1), (2, 3)], 1),
        ([(0, 1), (1, 2)], 2),
        ([(0, 1), (2, 1)], 1),
        ([(3, 2), (2, 1), (1, 0)], 3),
        ([(0, 1), (1, 0)], 1),
    ],
)
def test_tallest_chain_and_unconditional_score(relations, height):
    assert tallest_chain(relations) == height
    assert unconditional_score(relations) == pytest.approx(100 * height / 3)


def test_conditional_score_counts_consecutive_pairs_only():
    order = (2, 0, 3, 1)
    assert tower_relations(order) == ((0, 2), (3, 0), (1, 3))
    assert conditional_score([(0, 2), (3, 0), (1, 3)], order) == 100.0
    assert conditional_score([(0, 2), (3, 1)], order) == pytest.approx(100 / 3)
    assert conditional_score([(2, 0), (0, 3), (3, 1)], order) == 0.0
    with pytest.raises(ValueError, match="at most once"):
        conditional_score([], (0, 1, 1, 2))


def test_rearrangement_score_is_the_share_of_required_pairs():
    assert rearrangement_score([(0, 1), (2, 3)], [(0, 1)]) == 100.0
    assert rearrangement_score([(0, 1)], [(0, 1), (2, 3)]) == 50.0
    assert rearrangement_score([], [(0, 1)]) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        rearrangement_score([(0, 1)], [])


def test_legacy_score_is_fooled_where_ours_is_not():
    legacy = LegacyScore()
    held = np.array([True, False, False, False])
    for lower in (1, 2, 3):
        carried = put(GROUND, 0, lower, (0.0, 0.0, 0.4))
        legacy.update(carried, held)
        assert not standing_relations(carried, held, STILL)
    assert legacy.update(GROUND, FREE) == 100.0
    legacy.reset()
    assert legacy.score == 0.0


def test_legacy_score_needs_a_block_that_was_moved():
    legacy = LegacyScore()
    standing = tower((0, 1, 2, 3))
    assert legacy.update(standing, FREE) == 0.0
    assert legacy.update(standing, np.array([False, True, False, False])) == pytest.approx(100 / 3)
    assert legacy.update(GROUND, FREE) == pytest.approx(100 / 3)


def test_relations_are_read_and_written():
    for upper, lower in itertools.permutations(range(4), 2):
        text = f"{BLOCKS[upper]} on {BLOCKS[lower]}"
        assert parse_relation(text) == (upper, lower)
        assert format_relation((upper, lower)) == text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("pink on green", "unknown block 'pink'; known blocks are red, green, blue, yellow"),
        ("red on table", "unknown block 'table'"),
        ("red on red", "on itself"),
        ("red over green", "<block> on <block>"),
        ("", "<block> on <block>"),
    ],
)
def test_bad_relations_are_named(text, part):
    with pytest.raises(ValueError) as error:
        parse_relation(text)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_index_is_named():
    with pytest.raises(ValueError, match="names block 4"):
        format_relation((4, 0))


def test_channels():
    assert len(CHANNELS) == len(set(CHANNELS)) == 39
    assert CHANNELS[:1] + CHANNELS[6:8] == ("lbr_iiwa_joint_1", "lbr_iiwa_joint_7", "red.x")
    assert CHANNELS[-8:] == tuple(f"yellow.{f}" for f in ("x", "y", "z", "qx", "qy", "qz", "qw", "attached"))
