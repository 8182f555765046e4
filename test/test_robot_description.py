"""Limits out of robot descriptions."""

import math
from pathlib import Path

import numpy as np
import pybullet_data
import pytest

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_NAMES, JOINT_UPPER
from diffuser_ros.robot_description import DescriptionError, limits_from_urdf


def urdf(*joints):
    return f'<?xml version="1.0" encoding="utf-8"?>\n<robot name="r">{"".join(joints)}</robot>'


def joint(name='a', kind='revolute', limit='lower="-1" upper="2" velocity="3" effort="4"', more=''):
    inside = '' if limit is None else f'<limit {limit}/>'
    return f'<joint name="{name}" type="{kind}"><parent link="x"/><child link="y"/>{inside}{more}</joint>'


def read(*joints, names=('a',), **changed):
    return limits_from_urdf(urdf(*joints), names, **{'jump': 0.5, **changed})


def test_the_arm_of_the_simulator():
    text = (Path(pybullet_data.getDataPath()) / 'kuka_iiwa/model.urdf').read_text()
    limits = limits_from_urdf(text, JOINT_NAMES, jump=0.5, acceleration=12.0)
    assert limits.names == JOINT_NAMES and limits.jump == 0.5
    np.testing.assert_array_equal(limits.lower, JOINT_LOWER)
    np.testing.assert_array_equal(limits.upper, JOINT_UPPER)
    assert limits.velocity.tolist() == [10.0] * 7 and limits.acceleration.tolist() == [12.0] * 7
    with pytest.raises(DescriptionError, match='lacks the joint lbr_iiwa_joint_8; joints that turn: lbr_iiwa_joint_1, '):
        limits_from_urdf(text, ['lbr_iiwa_joint_8'], jump=0.5)


def test_joints_come_in_the_order_asked_for_and_no_faster_than_allowed():
    limits = read(joint('a'), joint('b', limit='lower="-0.5" upper="0.5" velocity="1"'), joint('c', 'prismatic'),
                  names=('b', 'a'), velocity=2.0)
    assert limits.lower.tolist() == [-0.5, -1.0] and limits.upper.tolist() == [0.5, 2.0]
    assert limits.velocity.tolist() == [1.0, 2.0] and limits.acceleration.tolist() == [math.inf] * 2


def test_a_continuous_joint_turns_on_and_on():
    limits = read(joint(kind='continuous', limit='velocity="3"'), joint('b', 'continuous', None), names=('a', 'b'), velocity=5.0)
    assert limits.lower.tolist() == [-math.inf] * 2 and limits.upper.tolist() == [math.inf] * 2
    assert limits.velocity.tolist() == [3.0, 5.0]
    assert read(joint(kind='continuous')).upper[0] == math.inf  # numbers for positions do not count for it


@pytest.mark.parametrize('more, expected', [('', 9.0), ('acceleration="5"', 5.0), ('acceleration="5" deceleration="4"', 4.0),
                                            ('acceleration="5" deceleration="6"', 5.0)])
def test_the_acceleration_is_the_descriptions_if_it_gives_one(more, expected):
    limits = read(joint(limit=f'lower="-1" upper="2" velocity="3" {more}'), acceleration=9.0)
    assert limits.acceleration.tolist() == [expected]


def test_a_bound_that_is_left_out_is_zero_as_urdf_says():
    limits = read(joint(limit='upper="2" velocity="3"'))
    assert (limits.lower[0], limits.upper[0]) == (0.0, 2.0)


def test_other_elements_named_joint_are_not_joints():
    control = '<ros2_control><joint name="a"><command_interface name="position"/></joint></ros2_control>'
    assert read(control, joint(), '<transmission name="t"><joint name="a"/></transmission>').upper[0] == 2.0


@pytest.mark.parametrize('joints, words', [
    ([joint('b')], 'lacks the joint a; joints that turn: b'), ([], 'lacks the joint a; joints that turn: none'),
    ([joint(), joint()], '2 joints of the name a'),
    ([joint(more='<mimic joint="b" multiplier="-1"/>')], 'the joint a follows b (<mimic>) and cannot be commanded'),
    ([joint(kind='fixed')], 'the joint a is fixed; only revolute and continuous joints'),
    ([joint(kind='prismatic')], 'the joint a is prismatic'), (['<joint name="a"/>'], 'the joint a is of no type'),
    ([joint(limit=None)], 'the joint a is revolute and has no <limit>'),
    ([joint(limit='lower="-1" upper="1"')], 'the <limit> of the joint a gives no velocity'),
    ([joint(kind='continuous', limit=None)], 'the joint a is continuous without a velocity limit'),
    ([joint(limit='lower="x" upper="1" velocity="1"')], "the lower limit of the joint a is 'x', not a finite number"),
    ([joint(limit='lower="-1" upper="inf" velocity="1"')], "the upper limit of the joint a is 'inf'"),
    ([joint(limit='lower="-1" upper="1" velocity="nan"')], "the velocity limit of the joint a is 'nan'"),
    ([joint(limit='lower="-1" upper="1" velocity="1" acceleration="1e999"')], 'the acceleration limit of the joint a'),
    ([joint(limit='lower="1" upper="-1" velocity="1"')], 'a: the lower limit 1 rad is not below the upper one -1 rad'),
    ([joint(limit='velocity="1"')], 'a: the lower limit 0 rad is not below the upper one 0 rad'),
    ([joint(limit='lower="-1" upper="1" velocity="0"')], 'a: the velocity limit must be positive'),
    ([joint(limit='lower="-1" upper="1" velocity="1" acceleration="-1"')], 'a: the acceleration limit must be positive')])
def test_what_is_wrong_with_a_joint_is_said_in_one_sentence(joints, words):
    with pytest.raises(DescriptionError) as caught:
        read(*joints)
    assert words in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('text, words', [
    ('', 'not valid XML: no element found'), ('not xml', 'not valid XML'), (urdf(joint())[:-20], 'not valid XML'),
    ('<robot><joint></robot>', 'not valid XML: mismatched tag'), ('<sdf/>', 'begins with <robot>, this one with <sdf>'),
    ('<robot>\x00</robot>', 'not valid XML'), (urdf('&unknown;'), 'not valid XML: undefined entity')])
def test_damaged_descriptions_are_refused(text, words):
    with pytest.raises(DescriptionError) as caught:
        limits_from_urdf(text, ['a'], jump=0.5)
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_a_document_type_is_refused_before_its_entities_unfold():
    """Each entity is ten of the one before, to 10^30 characters."""
    entities = '<!ENTITY e0 "ha">' + ''.join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 31))
    with pytest.raises(DescriptionError, match='document type'):
        limits_from_urdf(f'<!DOCTYPE robot [{entities}]><robot name="r">&e30;{joint()}</robot>', ['a'], jump=0.5)


def test_a_joint_that_is_asked_for_twice_is_named():
    with pytest.raises(DescriptionError, match='limits of a are asked for more than once'):
        read(joint(), names=('a', 'a'))
