"""The Kuka stacking environment: interface, determinism, gripper, physics; and the arm's kinematics."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pybullet
import pybullet_data
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffuser_core.envs import KUKA_STACK_ID
from diffuser_core.envs.kuka_kinematics import (
    JOINT_LOWER,
    JOINT_NAMES,
    JOINT_UPPER,
    REACH,
    TIP_OFFSET,
    forward_kinematics,
    inverse_kinematics,
    nearest_joints,
    planar_tip,
    tip_cylindrical,
)
from diffuser_core.envs.kuka_stack import IMAGE_SIZE, KukaStackEnv

LAYOUT = np.array([[0.6, 0.0, 0.03, 0.0], [0.0, 0.6, 0.03, 0.3], [-0.3, 0.5, 0.03, 0.0], [0.0, -0.6, 0.03, 1.0]])


@pytest.fixture
def env():
    env = KukaStackEnv()
    yield env
    env.close()


def wander(env, seed, ticks=40):
    """A rollout with random joint motion and gripping, started over the red slab."""
    rng = np.random.default_rng(seed)
    joints = inverse_kinematics(0.0, 0.6, 0.065)
    observations = [env.reset(seed=seed, options={"joints": joints, "blocks": LAYOUT})[0]]
    for tick in range(ticks):
        joints = np.clip(joints + rng.normal(0.0, 0.05, 7), JOINT_LOWER, JOINT_UPPER)
        observations.append(env.step(np.append(joints, float(tick % 20 < 15)))[0])
    return np.array(observations)


def go(env, targets, gripper):
    """Step through tip targets (azimuth, radius, height) and return the last observation and info."""
    for target in targets:
        observation, _, _, _, info = env.step(np.append(inverse_kinematics(*target), gripper))
    return observation, info


# ---- kinematics ------------------------------------------------------------------------------------------------------


def test_forward_kinematics_and_limits_agree_with_the_simulator():
    client = pybullet.connect(pybullet.DIRECT)
    try:
        arm = pybullet.loadURDF(
            f"{pybullet_data.getDataPath()}/kuka_iiwa/model.urdf", useFixedBase=True, physicsClientId=client
        )
        rng = np.random.default_rng(0)
        for joint in range(7):
            info = pybullet.getJointInfo(arm, joint, physicsClientId=client)
            assert info[1].decode() == JOINT_NAMES[joint]
            assert (info[8], info[9]) == pytest.approx((JOINT_LOWER[joint], JOINT_UPPER[joint]))
        for _ in range(50):
            joints = rng.uniform(JOINT_LOWER, JOINT_UPPER)
            for joint, angle in enumerate(joints):
                pybullet.resetJointState(arm, joint, angle, physicsClientId=client)
            link = pybullet.getLinkState(arm, 6, computeForwardKinematics=True, physicsClientId=client)
            rotation = np.array(pybullet.getMatrixFromQuaternion(link[5])).reshape(3, 3)
            tip, tip_rotation = forward_kinematics(joints)
            np.testing.assert_allclose(tip, np.array(link[4]) + TIP_OFFSET * rotation[:, 2], atol=1e-6)
            np.testing.assert_allclose(tip_rotation, rotation, atol=1e-6)
    finally:
        pybullet.disconnect(client)


@settings(deadline=None)
@given(azimuth=st.floats(-2.96, 2.96), radius=st.floats(0.45, 0.68), height=st.floats(0.05, 0.5))
def test_inverse_kinematics_is_undone_by_forward(azimuth, radius, height):
    joints = inverse_kinematics(azimuth, radius, height)
    assert (np.abs(joints) <= JOINT_UPPER).all()
    assert joints[[2, 4, 6]].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(tip_cylindrical(joints), (azimuth, radius, height), atol=1e-9)
    np.testing.assert_allclose(forward_kinematics(joints)[1][:, 2], (0.0, 0.0, -1.0), atol=1e-9)


@given(st.tuples(*(st.floats(low - 0.3, high + 0.3) for low, high in REACH.T)))
@example(tuple(REACH[1]))
@example((0.0, 0.425, 0.62))
def test_the_nearest_joints_bring_the_tip_to_the_nearest_place_within_reach(tip):
    joints = nearest_joints(tip)
    assert (np.abs(joints) <= JOINT_UPPER).all()
    np.testing.assert_allclose(planar_tip(joints), np.clip(tip, *REACH), atol=1e-9)


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ((3.0, 0.6, 0.1), "azimuth 3.0000 rad"),
        ((0.0, 0.9, 0.1), "radius 0.9000 m is out of reach: at tip height 0.1000 m it must lie between"),
        ((0.0, 0.1, 0.3), "radius 0.1000 m is out of reach at tip height 0.3000 m: joint 4"),
        ((0.0, -0.5, 0.3), "radius -0.5000 m"),
        ((0.0, 0.5, 1.2), "tip height 1.2000 m"),
        ((0.0, float("nan"), 0.3), "must be finite"),
    ],
)
def test_unreachable_targets_name_the_number(target, part):
    with pytest.raises(ValueError) as error:
        inverse_kinematics(*target)
    assert part in str(error.value)


# ---- interface -------------------------------------------------------------------------------------------------------


def test_registration_loads_no_simulator():
    code = "import sys, diffuser_core.envs, diffuser_core.envs.stacking; sys.exit('pybullet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gymnasium_checker_passes():
    env = gymnasium.make(KUKA_STACK_ID, render_mode="rgb_array").unwrapped
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*symmetric and normalized space.*")
            check_env(env)
    finally:
        env.close()


def test_constructor_and_reset_refuse_bad_values(env):
    with pytest.raises(ValueError, match="render_mode 'human'"):
        KukaStackEnv(render_mode="human")
    with pytest.raises(ValueError, match="episode_steps"):
        KukaStackEnv(episode_steps=0)
    with pytest.raises(ValueError, match="reset option 'slabs' is unknown"):
        env.reset(options={"slabs": LAYOUT})
    with pytest.raises(ValueError, match=r"'blocks' must have shape \(4, 4\), got \(3, 4\)"):
        env.reset(options={"blocks": LAYOUT[:3]})
    with pytest.raises(ValueError, match=r"lbr_iiwa_joint_2 is 3\.0000 rad"):
        env.reset(options={"joints": [0, 3, 0, 0, 0, 0, 0]})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda a: a[:7], "action must have shape (8,), got (7,)"),
        (lambda a: a * np.nan, "action must be finite"),
        (lambda a: a + np.array([3.0] + [0.0] * 7), "lbr_iiwa_joint_1 is 3.0000 rad, outside its limits"),
        (lambda a: a + np.array([0.0] * 7 + [1.1]), "gripper is 1.1"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(env, change, part):
    observation, _ = env.reset(seed=0)
    action = np.append(observation[:7], 0.0)
    with pytest.raises(ValueError) as error:
        env.step(change(action))
    assert part in str(error.value)
    np.testing.assert_array_equal(env.observe(), observation)


def test_limits_rounded_to_32_bits_are_accepted(env):
    env.reset(seed=0)
    env.step(np.append(JOINT_UPPER, 1.0).astype(np.float32))


def test_layouts_keep_their_distance():
    env = KukaStackEnv()
    azimuths = []
    for seed in range(50):
        blocks = env.reset(seed=seed)[0][7:].reshape(4, 8)
        np.testing.assert_allclose(np.hypot(blocks[:, 0], blocks[:, 1]), 0.6, atol=1e-9)
        np.testing.assert_allclose(blocks[:, 2], 0.03)
        assert (blocks[:, 6] >= 0.0).all()
        azimuth = np.arctan2(blocks[:, 1], blocks[:, 0])
        assert np.diff(np.sort(azimuth)).min() >= 0.55 - 1e-9
        azimuths.append(azimuth)
    env.close()
    assert np.abs(azimuths).max() <= 2.5
    assert np.std(azimuths, axis=0).min() > 0.8


def test_episodes_are_truncated_and_never_terminated():
    env = KukaStackEnv(episode_steps=3)
    observation, _ = env.reset(seed=0)
    flags = [env.step(np.append(observation[:7], 0.0))[2:4] for _ in range(3)]
    env.close()
    assert flags == [(False, False), (False, False), (False, True)]


def test_step_response_reaches_95_percent_in_a_tick(env):
    for joint in range(7):
        home = env.reset(seed=0)[0][:7]
        target = home.copy()
        target[joint] += 0.05
        reached = env.step(np.append(target, 0.0))[0][joint] - home[joint]
        assert 0.95 * 0.05 <= reached <= 1.02 * 0.05


def test_rendering_shows_the_slabs(env):
    assert env.render() is None
    seeing = KukaStackEnv(render_mode="rgb_array")
    seeing.reset(seed=0, options={"blocks": LAYOUT})
    image = seeing.render()
    seeing.close()
    assert image.shape == (IMAGE_SIZE[1], IMAGE_SIZE[0], 3) and image.dtype == np.uint8
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    for seen in (red > green + blue, blue > red + 60, (green > red + 40) & (green > blue + 30)):
        assert seen.sum() > 200


def test_closing_twice_is_harmless_and_use_after_it_is_refused():
    env = KukaStackEnv()
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="has been closed"):
        env.observe()


# ---- determinism -----------------------------------------------------------------------------------------------------


def test_same_seed_same_episode_also_after_others(env):
    first = wander(env, 1)
    assert not np.array_equal(first, wander(env, 2))
    np.testing.assert_array_equal(wander(env, 1), first)
    np.testing.assert_array_equal(wander(env, 1), first)
    assert np.array_equal(env.reset(seed=5)[0], env.reset(seed=5)[0])
    assert not np.array_equal(env.reset(seed=5)[0], env.reset(seed=6)[0])


def test_two_environments_do_not_disturb_each_other(env):
    alone = wander(env, 3, ticks=15)
    other = KukaStackEnv()
    other.reset(seed=9)
    joints = inverse_kinematics(0.0, 0.6, 0.065)
    rng = np.random.default_rng(3)
    observations = [env.reset(seed=3, options={"joints": joints, "blocks": LAYOUT})[0]]
    for _ in range(15):
        joints = np.clip(joints + rng.normal(0.0, 0.05, 7), JOINT_LOWER, JOINT_UPPER)
        observations.append(env.step(np.append(joints, 1.0))[0])
        other.step(other.action_space.sample() * 0.2)
    other.close()
    np.testing.assert_array_equal(observations, alone)


def test_a_logged_state_is_restored_exactly(env):
    logged = wander(env, 4, ticks=12)[-1]
    assert env.held == "red"
    other = KukaStackEnv()
    other.set_state(logged)
    np.testing.assert_allclose(other.observe(), logged, atol=1e-12)
    assert other.held == "red"
    lifted, _ = go(other, [(0.0, 0.6, 0.1 + 0.02 * tick) for tick in range(10)], 1.0)
    other.close()
    assert lifted[9] > logged[9] + 0.1
    broken = logged.copy()
    broken[[14, 22]] = 1.0
    with pytest.raises(ValueError, match="2 blocks are attached"):
        env.set_state(broken)


def test_quaternions_are_continuous_over_a_full_sweep(env):
    env.reset(seed=0, options={"joints": inverse_kinematics(-2.5, 0.6, 0.062), "blocks": _with_red_at(-2.5)})
    quaternions = []
    for azimuth in np.concatenate([np.full(3, -2.5), np.linspace(-2.5, 2.5, 60)]):
        height = 0.062 if len(quaternions) < 3 else 0.2
        observation, info = go(env, [(azimuth, 0.6, height)], 1.0)
        quaternions.append(observation[10:14])
    assert info["held"] == "red"
    assert np.abs(np.diff(quaternions, axis=0)).max() < 0.1


def _with_red_at(azimuth):
    layout = LAYOUT.copy()
    layout[:, :2] = [[0.6 * np.cos(a), 0.6 * np.sin(a)] for a in (azimuth, 0.0, 1.0, -1.0)]
    return layout


# ---- gripper and physics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tip", "held"),
    [
        ((0.0, 0.6, 0.062), "red"),
        ((0.0, 0.6, 0.085), "red"),
        ((0.0, 0.6, 0.095), None),
        ((0.0, 0.655, 0.062), "red"),
        ((0.0, 0.665, 0.062), None),
        ((0.8, 0.6, 0.062), None),
    ],
)
def test_gripper_takes_hold_only_within_reach(env, tip, held):
    env.reset(seed=0, options={"joints": inverse_kinematics(*tip), "blocks": LAYOUT})
    env.apply(np.append(inverse_kinematics(*tip), 1.0))
    assert env.held == held


def test_gripper_carries_one_slab_and_lets_go_in_flight(env):
    blocks = LAYOUT.copy()
    blocks[1] = [0.6, 0.0, 0.09, 0.0]
    env.reset(seed=0, options={"joints": inverse_kinematics(0.0, 0.6, 0.122), "blocks": blocks})
    assert env.relations() == {(1, 0)}
    heights = np.concatenate([np.full(3, 0.122), np.linspace(0.13, 0.4, 12)])
    observation, info = go(env, [(0.0, 0.6, height) for height in heights], 1.0)
    assert info["held"] == "green" and info["relations"] == []
    assert observation[7 + 8 + 2] > 0.3 and observation[7 + 2] < 0.035
    assert observation[7:].reshape(4, 8)[:, 7].tolist() == [0.0, 1.0, 0.0, 0.0]
    go(env, [(azimuth, 0.6, 0.4) for azimuth in np.linspace(0.1, 1.0, 10)], 1.0)
    swing = inverse_kinematics(1.1, 0.6, 0.4)
    env.apply(np.append(swing, 1.0))
    env.advance(3)
    env.apply(np.append(swing, 0.0))
    assert env.held is None
    before = env.observe()[15:18]
    env.advance(10)
    after = env.observe()[15:18]
    assert np.linalg.norm((after - before)[:2]) > 0.03
    assert after[2] < before[2]


def test_reward_and_scores_follow_the_chain(env):
    blocks = LAYOUT.copy()
    blocks[1] = [0.6, 0.0, 0.09, 0.0]
    blocks[2] = [0.6, 0.0, 0.15, 0.0]
    joints = inverse_kinematics(0.0, 0.6, 0.182)
    _, info = env.reset(seed=0, options={"joints": joints, "blocks": blocks})
    assert info["relations"] == ["blue on green", "green on red"] and info["score"] == pytest.approx(200 / 3)
    _, reward, *_, info = env.step(np.append(joints, 1.0))
    assert info["held"] == "blue" and reward == -1.0 and info["score"] == pytest.approx(100 / 3)
    assert env.scores() == {"score": info["score"], "legacy_score": pytest.approx(200 / 3)}
    rewards = [env.step(np.append(joints, 0.0))[1] for _ in range(6)]
    assert sum(rewards) == 1.0 and env.scores()["score"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(("overhang", "stands"), [(0.09, True), (0.13, False)])
def test_a_slab_beyond_the_edge_falls(env, overhang, stands):
    blocks = LAYOUT.copy()
    blocks[1] = [0.6 + overhang, 0.0, 0.09, 0.0]
    home = env.reset(seed=0, options={"blocks": blocks})[0][:7]
    for _ in range(24):
        observation, _, _, _, info = env.step(np.append(home, 0.0))
    assert (info["relations"] == ["green on red"]) is stands
    assert bool(observation[17] > 0.085) is stands


def test_the_arm_can_knock_a_tower_over(env):
    blocks = LAYOUT.copy()
    blocks[1], blocks[2] = [0.6, 0.0, 0.09, 0.0], [0.6, 0.0, 0.15, 0.5]
    _, info = env.reset(seed=0, options={"joints": inverse_kinematics(-0.6, 0.6, 0.13), "blocks": blocks})
    assert info["score"] == pytest.approx(200 / 3)
    sweep = np.linspace(-0.6, 0.6, 20)
    _, info = go(env, [(azimuth, 0.6, 0.13) for azimuth in sweep] + [(0.6, 0.6, 0.3)] * 24, 0.0)
    assert info["score"] < 40.0


def test_gripping_leaves_no_constraints_behind(env):
    joints = inverse_kinematics(0.0, 0.6, 0.062)
    env.reset(seed=0, options={"joints": joints, "blocks": LAYOUT})
    for _ in range(30):
        env.apply(np.append(joints, 1.0))
        env.apply(np.append(joints, 1.0))
        assert env._client.getNumConstraints() == 1
        env.apply(np.append(joints, 0.0))
        assert env._client.getNumConstraints() == 0
    env.apply(np.append(joints, 1.0))
    env.reset(seed=0)
    assert env._client.getNumConstraints() == 0 and env.held is None
