"""The validators of the examples judge plans by geometry that can be checked by brute force."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from validators import clear_of, within_box

from diffuser_core.trajectory import Channels, Plan
from diffuser_ros.validator import Validator, Verdict

CHANNELS = Channels(('angle', 'x', 'y'), ('rad', 'm', 'm'))
ACCEPT, ANOTHER, REFUSE = Verdict


def plan_through(*places):
    return Plan(np.array([(7.0, *place) for place in places]), CHANNELS, 0.0, 0.5, {})


def test_a_plan_in_the_box_is_accepted_and_one_that_leaves_it_named():
    validate = within_box((-1.0, 0.0), (1.0, 2.0), ('x', 'y'))
    assert validate(plan_through((-1.0, 0.0), (1.0, 2.0)), {}, None) == (ACCEPT, '')
    assert validate(plan_through((0.0, 1.0), (1.1, 1.0), (0.0, 2.5)), {}, None) == (
        ANOTHER, 'y is 2.500 after 1.00 s, not between 0 and 2')
    assert within_box((0.0,), (1.0,), ('x',), REFUSE)(plan_through((-0.25, 0.0)), {}, None) == (
        REFUSE, 'x is -0.250 after 0.00 s, not between 0 and 1')


def test_a_circle_is_seen_between_rows_too():
    validate = clear_of([(5.0, 5.0, 1.0), (0.0, 0.0, 0.5)])
    assert validate(plan_through((-2.0, 0.6), (2.0, 0.6)), {}, None) == (ACCEPT, '')
    assert validate(plan_through((-2.0, 2.0), (-2.0, 0.3), (2.0, 0.3)), {}, None) == (
        ANOTHER, 'it comes within 0.300 m of (0, 0) after 0.50 s, 0.5 m are to be kept')


def test_a_plan_may_leave_a_circle_but_not_come_back():
    validate = clear_of([(0.0, 0.0, 1.0)], otherwise=REFUSE)
    assert validate(plan_through((0.5, 0.0), (0.9, 0.0), (1.5, 0.0), (2.0, 0.0)), {}, None)[0] is ACCEPT
    assert validate(plan_through((0.5, 0.0), (1.5, 0.0), (0.5, 0.0)), {}, None)[0] is REFUSE


@settings(deadline=None)
@given(arrays(np.float64, (4, 2), elements=st.floats(-2.0, 2.0)), st.floats(0.1, 1.0))
def test_circles_agree_with_many_points_on_the_way(places, radius):
    fine = np.concatenate([a + np.linspace(0.0, 1.0, 2001)[:, None] * (b - a) for a, b in zip(places[:-1], places[1:])])
    nearest = np.linalg.norm(fine - (0.3, -0.2), axis=1).min()
    assume(math.dist(places[0], (0.3, -0.2)) > radius and abs(nearest - radius) > 1e-3)
    found, _ = clear_of([(0.3, -0.2, radius)])(plan_through(*places), {}, None)
    assert found is (ANOTHER if nearest < radius else ACCEPT)


@pytest.mark.parametrize('validate', [within_box((-9.0, -9.0), (9.0, 9.0), ('x', 'y')), clear_of([(5.0, 5.0, 1.0)])])
@pytest.mark.parametrize('row', [0, 1, 2])
def test_a_plan_with_what_is_no_number_is_not_accepted(validate, row):
    places = np.zeros((3, 2))
    places[row, 1] = math.nan
    assert validate(plan_through(*places), {}, None)[0] is ANOTHER


def test_a_plan_without_the_channels_is_refused_by_name():
    found = Validator(clear_of([(0.0, 0.0, 1.0)], ('tip.x', 'tip.y')), 'mine')(plan_through((0.0, 0.0)), {}, None)
    assert found.verdict is REFUSE and 'unknown channel tip.x, tip.y; this trajectory has angle, x, y' in found.text


@pytest.mark.parametrize('make', [
    lambda: within_box((0.0,), (1.0,), ('x', 'y')), lambda: within_box((1.0,), (0.0,), ('x',)),
    lambda: within_box((math.nan,), (1.0,), ('x',)), lambda: clear_of([(0.0, 0.0, 0.0)]),
    lambda: clear_of([(0.0, 0.0, math.nan)]),
    lambda: clear_of([(math.nan, 0.0, 1.0)])])
def test_boxes_and_circles_that_are_none_are_refused(make):
    with pytest.raises(ValueError, match='low and high ends|positive radius'):
        make()
