"""The scripted demonstrator: towers stand, segments are short, impossible requests are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuser_core.envs.kuka_kinematics import JOINT_UPPER, inverse_kinematics, tip_cylindrical
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import GROUND, SLAB_HEIGHT, standing_relations, tower_relations
from diffuser_core.experts import demonstrations
from diffuser_core.experts.demonstrations import SEPARATION, build, draw_layout, record
from diffuser_core.experts.pick_and_place import (
    CLEARANCE,
    RAMP,
    SEGMENT_LIMIT,
    TICK,
    _shares,
    plan_segment,
)

PARTIAL = np.array([[0.6, 0.0, 0.03, 0.0], [0.6, 0.0, 0.09, 0.3], [-0.3, 0.5, 0.03, 0.0], [0.0, -0.6, 0.03, 1.0]])


@pytest.fixture(scope="module")
def env():
    env = KukaStackEnv()
    yield env
    env.close()


@pytest.mark.parametrize(("seed", "speed"), [(50_000, 0.8), (50_001, 1.0), (50_002, 1.2)])
def test_towers_stand(env, seed, speed):
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(4)
    shown = build(env, order, speed, rng)
    (done,) = shown.runs
    assert shown.failed == shown.mishaps == 0 and done.relations == tower_relations(order)
    assert env.scores()["score"] == 100.0
    assert len(done.observations) == len(done.actions) + 1 == len(done.segment) + 1 == len(done.rewards) + 1
    assert done.rewards.sum() == 3.0
    ticks = np.bincount(done.segment)
    assert len(ticks) == 3 and ticks.max() <= SEGMENT_LIMIT and ticks.min() >= 40
    assert (np.abs(done.actions[:, :7]) <= JOINT_UPPER).all()
    assert np.abs(np.diff(done.actions[:, :7], axis=0)).max() < 0.25
    for segment in range(3):
        last = np.flatnonzero(done.segment == segment)[-1] + 1
        assert np.abs(done.observations[last] - done.observations[last - 1]).max() < 2e-3
        attached = done.observations[last, 14::8]
        assert not attached.any()


def test_a_standing_relation_is_not_done_again(env):
    env.reset(seed=0, options={"blocks": PARTIAL})
    (done,) = build(env, [0, 1, 2, 3], 1.0, np.random.default_rng(0)).runs
    assert done.relations == ((2, 1), (3, 2))
    assert set(done.segment.tolist()) == {0, 1}


def test_a_wrong_tower_is_taken_apart_first(env):
    env.reset(seed=0, options={"blocks": PARTIAL})
    (done,) = build(env, [0, 2, 1, 3], 1.0, np.random.default_rng(0)).runs
    assert done.relations == ((1, GROUND), (2, 0), (1, 2))
    assert env.relations() >= {(2, 0), (1, 2)}


def test_a_slab_is_put_on_the_ground_where_it_is_told(env):
    observation, _ = env.reset(seed=0, options={"blocks": PARTIAL})
    place = np.array([0.35, 0.48])
    for action in plan_segment(observation, (1, GROUND), ground=place):
        observation = env.step(action)[0]
    green = observation[15:22]
    np.testing.assert_allclose(green[:3], [*place, SLAB_HEIGHT / 2], atol=5e-3)
    assert env.held is None
    with pytest.raises(ValueError, match="cannot put red on ground: no place was given"):
        plan_segment(observation, (0, GROUND))


@pytest.mark.parametrize("grip", [(0.0, 0.0), (0.03, -0.02)])
def test_a_slab_that_is_held_already_is_brought_to_its_place(env, grip):
    env.reset(seed=0, options={"blocks": PARTIAL})
    state = env.observe()
    state[:7] = inverse_kinematics(1.0, 0.55, 0.3)
    c, s = np.cos(1.0), np.sin(1.0)
    outwards, leftwards = grip
    row = state[7 + 16:7 + 24]
    row[:3] = c * (0.55 - outwards) + s * leftwards, s * (0.55 - outwards) - c * leftwards, 0.3 - SLAB_HEIGHT / 2 - 1e-3
    row[7] = 1.0
    env.set_state(state)
    actions = plan_segment(env.observe(), (2, 1))
    assert actions[0, 7] == 1.0 and (np.diff(actions[:, 7]) <= 0).all()
    for action in actions:
        env.step(action)
    assert (2, 1) in env.relations()
    blue, green = env.observe()[23:25], env.observe()[15:17]
    assert np.abs(blue - green).max() < 0.01


def test_a_tip_above_its_target_goes_there_straight(env):
    blocks = PARTIAL.copy()
    observation, _ = env.reset(seed=0, options={"blocks": blocks, "joints": inverse_kinematics(0.02, 0.6, 0.2)})
    heights = [tip_cylindrical(action[:7])[2] for action in plan_segment(observation, (1, 2))]
    assert max(heights[:12]) < 0.2 + 1e-6
    observation, _ = env.reset(seed=0, options={"blocks": blocks, "joints": inverse_kinematics(0.3, 0.6, 0.2)})
    heights = [tip_cylindrical(action[:7])[2] for action in plan_segment(observation, (1, 2))]
    assert max(heights[:20]) > 0.09 + 1.5 * SLAB_HEIGHT + CLEARANCE - 1e-6


def test_any_start_pose_is_first_turned_tool_down(env):
    observation, _ = env.reset(seed=0, options={"joints": [0.4, 0.3, 0.7, -1.0, 0.5, 0.6, -0.4], "blocks": PARTIAL})
    actions = plan_segment(observation, (2, 1))
    assert len(actions) <= SEGMENT_LIMIT
    for action in actions:
        info = env.step(action)[-1]
    assert info["relations"] == ["blue on green", "green on red"]


def test_the_farthest_segment_still_fits(env):
    blocks = np.zeros((4, 4))
    for row, azimuth in enumerate((2.5, -2.5, 0.0, 1.0)):
        blocks[row, :3] = 0.6 * np.cos(azimuth), 0.6 * np.sin(azimuth), 0.03
    observation, _ = env.reset(options={"joints": inverse_kinematics(-2.5, 0.5, 0.3), "blocks": blocks})
    actions = plan_segment(observation, (0, 1), speed=0.8)
    assert len(actions) <= SEGMENT_LIMIT
    for action in actions:
        info = env.step(action)[-1]
    assert info["relations"] == ["red on green"]


@pytest.mark.parametrize(
    ("relation", "part"),
    [
        ((0, 2), "cannot put red on blue: green lies on red"),
        ((2, 0), "cannot put blue on red: green lies on red"),
        ((2, 2), "a block cannot stand on itself"),
        ((4, 0), "names block 4"),
    ],
)
def test_impossible_segments_are_refused(env, relation, part):
    observation, _ = env.reset(seed=0, options={"blocks": PARTIAL})
    with pytest.raises(ValueError) as error:
        plan_segment(observation, relation)
    assert part in str(error.value)


def test_a_held_slab_or_no_speed_is_refused(env):
    observation, _ = env.reset(seed=0, options={"blocks": PARTIAL})
    with pytest.raises(ValueError, match="speed must be positive"):
        plan_segment(observation, (2, 1), speed=0.0)
    observation[7 + 3 * 8 + 7] = 1.0
    with pytest.raises(ValueError, match="already holds yellow"):
        plan_segment(observation, (2, 1))


@given(st.integers(1, 200))
def test_profiles_are_smooth_and_arrive(ticks):
    shares = np.concatenate([[0.0], _shares(ticks)])
    assert shares[-1] == pytest.approx(1.0)
    assert (np.diff(shares) >= -1e-12).all()
    np.testing.assert_allclose(shares + shares[::-1], 1.0, atol=1e-12)
    ramp = min(RAMP, ticks * TICK / 2)
    assert np.abs(np.diff(shares, 2)).max(initial=0.0) <= TICK**2 / (ramp * (ticks * TICK - ramp)) + 1e-12


@given(st.integers(0, 10_000))
def test_layouts_are_apart(seed):
    blocks = draw_layout(np.random.default_rng(seed))
    distances = np.linalg.norm(blocks[:, None, :2] - blocks[None, :, :2], axis=-1) + np.eye(4)
    assert distances.min() >= SEPARATION
    radius = np.hypot(blocks[:, 0], blocks[:, 1])
    assert radius.min() >= 0.52 and radius.max() <= 0.68


def test_a_recording_depends_on_its_seed_only(env):
    first = record(env, 50_010)
    record(env, 50_011)
    again = record(env, 50_010)
    assert len(first.runs) == len(again.runs) > 0
    for one, other in zip(first.runs, again.runs):
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.actions, other.actions)


def test_every_recorded_segment_ends_with_its_move_done_whatever_went_wrong_before(env):
    shown = [record(env, seed) for seed in range(50_020, 50_050)]
    assert sum(one.mishaps for one in shown) >= 10
    runs = [run for one in shown for run in one.runs]
    moves = [move for run in runs for move in run.relations]
    assert any(lower == GROUND for _, lower in moves) and any(lower != GROUND for _, lower in moves)
    assert any(run.observations[0, 14::8].any() for run in runs)
    for run in runs:
        for segment, (upper, lower) in enumerate(run.relations):
            rows = np.flatnonzero(run.segment == segment)
            assert len(rows) <= SEGMENT_LIMIT
            blocks = run.observations[rows[-1] + 1, 7:].reshape(4, 8)
            assert not blocks[:, 7].any()
            if lower == GROUND:
                assert blocks[upper, 2] == pytest.approx(SLAB_HEIGHT / 2, abs=5e-3)
            else:
                assert (upper, lower) in standing_relations(blocks[:, :3], np.zeros(4), np.zeros(4))


def test_a_move_that_shifts_another_block_is_not_taken_for_done(env):
    env.reset(seed=0, options={"blocks": PARTIAL})
    before = env.observe()[7:].reshape(4, 8)[:, :3].copy()
    assert demonstrations._succeeded(env, (1, 0), before, None)
    assert not demonstrations._succeeded(env, (2, 0), before, None)  # it does not stand
    env.displace(3, 0.0, 0.03)
    assert not demonstrations._succeeded(env, (1, 0), before, None)
