"""The last check before a command leaves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_UPPER
from diffuser_ros.safety import UnsafeCommand, limit_joints

LOWER, UPPER = np.array([-1.0, -2.0]), np.array([1.0, 2.0])


def limit(joints, start=(0.0, 0.0), max_step=0.5):
    return limit_joints(np.array(joints), np.array(start), lower=LOWER, upper=UPPER, max_step=max_step)


def test_a_safe_command_passes_unchanged():
    joints = [[0.5, -0.5], [1.0, -1.0]]
    limited, clamped = limit(joints)
    assert limited.tolist() == joints and clamped == 0


def test_steps_are_clamped_from_the_measured_joints_on_and_then_from_point_to_point():
    limited, clamped = limit([[0.9, 0.2], [0.9, 0.2], [-0.9, 0.2]], start=(0.1, 0.1))
    np.testing.assert_allclose(limited, [[0.6, 0.2], [0.9, 0.2], [0.4, 0.2]])
    assert clamped == 2


def test_joint_limits_come_first_even_if_the_arm_was_measured_outside():
    limited, clamped = limit([[1.7, 0.0]], start=(1.8, 0.0), max_step=0.1)
    assert limited.tolist() == [[1.0, 0.0]] and clamped == 1


def test_rounding_is_cut_but_not_counted():
    limited, clamped = limit([[1.0 + 1e-7, 0.0]], start=(0.9, 0.0))
    assert limited[0, 0] == 1.0 and clamped == 0


@pytest.mark.parametrize('joints, start', [
    ([[np.nan, 0.0]], (0.0, 0.0)), ([[0.0, np.inf]], (0.0, 0.0)), ([[0.0, 0.0]], (np.nan, 0.0))])
def test_numbers_that_are_not_finite_are_refused(joints, start):
    with pytest.raises(UnsafeCommand, match='not finite'):
        limit(joints, start)


@pytest.mark.parametrize('joints', [[[0.0, 0.0, 0.0]], [0.0, 0.0], np.empty((0, 2))])
def test_wrong_shapes_are_refused(joints):
    with pytest.raises(UnsafeCommand, match='rows of 2 joints'):
        limit(joints)


@given(arrays(np.float64, (6, 7), elements=st.floats(-1e6, 1e6)), st.floats(0.0, 1.0), st.floats(0.01, 1.0))
def test_whatever_comes_in_stays_within_limits_and_speed(joints, where, max_step):
    start = JOINT_LOWER + where * (JOINT_UPPER - JOINT_LOWER)
    bounds = {'lower': JOINT_LOWER, 'upper': JOINT_UPPER, 'max_step': max_step}
    limited, clamped = limit_joints(joints, start, **bounds)
    assert (limited >= JOINT_LOWER).all() and (limited <= JOINT_UPPER).all()
    assert (np.abs(np.diff(np.vstack([start, limited]), axis=0)) <= max_step + 1e-12).all()
    again, none = limit_joints(limited, start, **bounds)
    np.testing.assert_allclose(again, limited, rtol=0.0, atol=1e-12)
    assert none == 0 and clamped == (np.abs(limited - joints) > 1e-6).sum()
