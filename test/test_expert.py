"""The scripted demonstrator: towers stand, segments are short, impossible requests are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuser_core.envs.kuka_kinematics import JOINT_UPPER, inverse_kinematics
from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import tower_relations
from diffuser_core.experts.collect import SEPARATION, draw_layout, record
from diffuser_core.experts.pick_and_place import (
    RAMP,
    SEGMENT_LIMIT,
    TICK,
    _shares,
    demonstrate,
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
    done = demonstrate(env, order, speed, rng)
    assert done.success and done.relations == tower_relations(order)
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
    done = demonstrate(env, [0, 1, 2, 3], 1.0, np.random.default_rng(0))
    assert done.success and done.relations == ((2, 1), (3, 2))
    assert set(done.segment.tolist()) == {0, 1}


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
    np.testing.assert_array_equal(again.observations, first.observations)
    np.testing.assert_array_equal(again.actions, first.actions)
    assert first.success
