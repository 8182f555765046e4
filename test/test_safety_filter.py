"""Limits of joint commands: position, velocity, acceleration, braking, jump; and what is said about changes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_NAMES, JOINT_UPPER
from diffuser_ros.joint_track import braking
from diffuser_ros.safety import ActionFilter, Commanded, Limits, SafetyFilter, UnsafeCommand

DT = 1 / 24
SLACK = 1e-8
"""Rounding: several times what is left as it is."""


def limits(lower=(-1.0, -2.0), upper=(1.0, 2.0), velocity=2.4, acceleration=math.inf, jump=10.0):
    ones = np.ones(len(lower))
    names = tuple('abcdefgh'[:len(lower)])
    return Limits(names, np.array(lower), np.array(upper), velocity * ones, acceleration * ones, jump)


def one(wanted, *, start=0.0, speed=None, **changed):
    """The points of a single joint with steps of one second."""
    before = None if speed is None else Commanded(np.array([start]), np.array([speed]))
    made = SafetyFilter(limits(**{'lower': [-1.0], 'upper': [1.0], 'velocity': 0.5, **changed})).filter(
        np.reshape(wanted, (-1, 1)), [start], 1.0, before)
    return made.points[:, 0].tolist(), made


def stops_within(place, step, lower, upper, change):
    """Brake by hand, and see where that ends."""
    while step:
        step = math.copysign(max(abs(step) - change, 0.0), step)
        place += step
    return lower - SLACK <= place <= upper + SLACK


# What is within the limits stays as it is

def test_a_smooth_motion_within_its_limits_comes_out_bit_for_bit():
    """A sine has its largest speed and acceleration in closed form."""
    amplitude, rate = 0.7, 2.0
    times = DT * np.arange(1, 13)
    points = np.stack([amplitude * np.sin(rate * times), amplitude * np.cos(rate * times)], axis=1)
    filtered = SafetyFilter(limits(velocity=amplitude * rate, acceleration=amplitude * rate ** 2)).filter(
        points, [0.0, amplitude], DT, Commanded(np.array([0.0, amplitude]), np.array([amplitude * rate, 0.0])))
    assert filtered.points.tobytes() == points.tobytes()
    assert (dict(filtered.counts), filtered.text, filtered.changed) == ({}, '', 0)


@st.composite
def motions(draw):
    """A motion that ends at rest, and limits that it just keeps: those that it has itself."""
    joints = draw(st.integers(1, 3))
    pushes = draw(arrays(np.float64, (draw(st.integers(1, 10)), joints), elements=st.floats(-0.1, 0.1)))
    first = draw(arrays(np.float64, joints, elements=st.floats(-0.2, 0.2)))
    most = np.maximum(np.abs(pushes).max(axis=0), 0.01)
    steps = list(first + np.cumsum(pushes, axis=0))
    while steps[-1].any():
        steps.append(np.sign(steps[-1]) * np.maximum(np.abs(steps[-1]) - most, 0.0))
    points = np.cumsum(steps, axis=0)
    steps = np.diff(np.vstack([np.zeros(joints), points]), axis=0)
    most = np.maximum(most, np.abs(np.diff(np.vstack([first, steps]), axis=0)).max(axis=0))
    reached = np.vstack([np.zeros(joints), points])
    fastest = np.maximum(np.abs(steps).max(axis=0), np.maximum(np.abs(first), 0.01))
    names = tuple('abc'[:joints])
    return points, first, Limits(names, reached.min(axis=0) - 1e-12, reached.max(axis=0) + 1e-12, fastest, most, 10.0)


@settings(deadline=None)
@given(motions())
def test_a_motion_that_ends_at_rest_within_its_limits_comes_out_bit_for_bit(motion):
    points, first, own = motion
    zero = np.zeros(len(first))
    filtered = SafetyFilter(own).filter(points, zero, 1.0, Commanded(zero, first))
    assert filtered.points.tobytes() == points.tobytes() and not filtered.counts


# Whatever comes in

WILD = st.one_of(st.floats(-4.0, 4.0), st.floats(-1e6, 1e6))


@st.composite
def commands(draw):
    """Wild wishes of a robot that begins within its limits and can be stopped there."""
    acceleration = draw(st.one_of(st.floats(0.5, 60.0), st.just(math.inf)))
    velocity = draw(st.floats(0.1, 6.0))
    change = min(acceleration * DT ** 2, 1e9)
    where = draw(arrays(np.float64, 7, elements=st.floats(0.0, 1.0)))
    start = JOINT_LOWER + where * (JOINT_UPPER - JOINT_LOWER)
    wish = draw(arrays(np.float64, 7, elements=st.floats(-1.0, 1.0)))
    first = wish * velocity * DT
    for n in range(7):
        if not stops_within(start[n], first[n], JOINT_LOWER[n], JOINT_UPPER[n], change):
            first[n] = 0.0
    points = draw(arrays(np.float64, (draw(st.integers(1, 12)), 7), elements=WILD))
    own = Limits(JOINT_NAMES, JOINT_LOWER, JOINT_UPPER, np.full(7, velocity), np.full(7, acceleration), 1e7)
    return own, points, Commanded(start, first / DT)


@settings(max_examples=300, deadline=None)
@given(commands())
def test_every_command_keeps_all_limits_and_can_be_stopped_within_them(command):
    own, points, before = command
    safe = SafetyFilter(own).filter(points, before.position, DT, before).points
    fastest, change = own.velocity * DT, np.minimum(own.acceleration * DT ** 2, 1e9)
    assert np.isfinite(safe).all() and (safe >= own.lower).all() and (safe <= own.upper).all()
    steps = np.diff(np.vstack([before.position, safe]), axis=0)
    assert (np.abs(steps) <= fastest + SLACK).all()
    assert (np.abs(np.diff(np.vstack([before.velocity * DT, steps]), axis=0)) <= change + SLACK).all()
    for place, step in zip(safe, steps):
        for n in range(7):
            assert stops_within(place[n], step[n], own.lower[n], own.upper[n], change[n])


@st.composite
def outside(draw):
    """Wild wishes of a robot that begins anywhere, at any speed, also where no limit turns up."""
    endless = draw(st.booleans())
    own = limits(lower=(-1.0, -math.inf if endless else -2.0), upper=(1.0, math.inf if endless else 2.0), jump=1e9,
                 velocity=draw(st.floats(0.1, 6.0)), acceleration=draw(st.one_of(st.floats(0.5, 60.0), st.just(math.inf))))
    near = st.floats(-4.0, 4.0)
    before = Commanded(draw(arrays(np.float64, 2, elements=near)), draw(arrays(np.float64, 2, elements=st.floats(-9.0, 9.0))))
    points = draw(arrays(np.float64, (draw(st.integers(1, 12)), 2), elements=WILD))
    return own, points, before


@settings(max_examples=300, deadline=None)
@given(outside())
def test_filtering_twice_is_filtering_once_and_limits_give_way_in_order(command):
    own, points, before = command
    guard = SafetyFilter(own)
    safe = guard.filter(points, before.position, DT, before)
    again = guard.filter(safe.points, before.position, DT, before)
    assert again.points.tobytes() == safe.points.tobytes() and not again.counts and not again.text
    assert np.isfinite(safe.points).all() and (safe.points >= own.lower).all() and (safe.points <= own.upper).all()
    inside = (before.position >= own.lower) & (before.position <= own.upper)
    steps = np.diff(np.vstack([before.position, safe.points]), axis=0)
    assert (np.abs(steps) <= own.velocity * DT + SLACK)[:, inside].all()
    changes = np.abs(np.diff(np.vstack([before.velocity * DT, steps]), axis=0))
    at_limit = (safe.points == own.lower) | (safe.points == own.upper)
    too_fast = np.abs(before.velocity) > own.velocity
    forced = np.logical_or.accumulate(np.vstack([~inside | too_fast, at_limit[:-1]]), axis=0) | at_limit
    assert (forced | (changes <= own.acceleration * DT ** 2 + SLACK)).all()
    assert safe.changed == sum(safe.counts.values()) <= points.size and bool(safe.text) == bool(safe.changed)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 60.0))
def test_a_robot_that_follows_only_the_first_points_keeps_its_limits_for_ever(seed, acceleration):
    """The node's use: at every tick a new wish, of which one point is followed."""
    rng = np.random.default_rng(seed)
    own = limits(acceleration=acceleration)
    start = np.zeros(2)
    before, place, went = Commanded(start, start), start, [start, start]
    for _ in range(60):
        points = place + rng.normal(0.0, 0.5, 2) * np.arange(1, 5)[:, None] * rng.choice([0.01, 1.0])
        points = SafetyFilter(own).filter(points, place + rng.normal(0.0, 0.01, 2), DT, before).points
        before = Commanded.along(place, points, DT, DT)
        place = points[0]
        went.append(place)
    went = np.array(went)
    assert (np.abs(went) <= own.upper).all()
    assert (np.abs(np.diff(went, axis=0)) <= own.velocity * DT + SLACK).all()
    assert (np.abs(np.diff(went, n=2, axis=0)) <= acceleration * DT ** 2 + SLACK).all()


@settings(deadline=None)
@given(commands())
def test_a_stop_is_the_shortest_one_and_needs_no_filter(command):
    own, _, before = command
    points = SafetyFilter(own).stop(before, 40, DT)
    filtered = SafetyFilter(own).filter(points, before.position, DT, before)
    assert filtered.points.tobytes() == points.tobytes()
    steps = np.vstack([before.velocity * DT, np.diff(np.vstack([before.position, points]), axis=0)])
    slower = np.abs(steps[:-1]) - np.abs(steps[1:])
    most = np.minimum(own.acceleration * DT ** 2, 1e9)
    resting = np.abs(steps[1:]) <= SLACK
    assert (resting | (np.abs(slower - most) <= SLACK)).all() and (steps[1:] * steps[:-1] >= -SLACK).all()


# By hand

def test_velocity_is_limited_from_where_the_robot_is_commanded_to_be_and_then_from_point_to_point():
    points, made = one([0.9, 0.9, -0.9], start=0.1)
    np.testing.assert_allclose(points, [0.6, 0.9, 0.4], atol=1e-12)
    assert dict(made.counts) == {'velocity': 2}
    assert made.text == ('2 values changed (2 by velocity), most of all a in point 3 from -0.9 to 0.4 rad, '
                         'velocity limit 0.5 rad/s')


def test_a_position_limit_has_the_last_word():
    points, made = one([1.7, 1.7], start=1.8, velocity=0.1)
    assert points == [1.0, 1.0] and dict(made.counts) == {'position': 2}
    assert made.text == '2 values changed (2 by position), most of all a in point 1 from 1.7 to 1 rad, position limit 1 rad'


def test_acceleration_builds_up_step_by_step():
    points, made = one([0.9] * 3, acceleration=0.1)
    np.testing.assert_allclose(points, [0.1, 0.3, 0.6], atol=1e-12)
    assert dict(made.counts) == {'acceleration': 3}
    assert made.text.endswith('most of all a in point 1 from 0.9 to 0.1 rad, acceleration limit 0.1 rad/s^2')


def test_a_robot_brakes_in_time_before_its_position_limit():
    """From 0.1 at 0.4 a step with changes of 0.1: 0.3 + 0.2 + 0.1 lie before the limit at 1, and a step of 0.4 does not fit."""
    points, made = one([0.6, 1.1, 1.6, 2.0, 2.0], start=0.1, speed=0.4, acceleration=0.1)
    steps = np.diff([0.1, *points])
    assert points[-1] <= 1.0 and (np.abs(np.diff([0.4, *steps])) <= 0.1 + 1e-12).all()
    np.testing.assert_allclose(steps[:3], [0.375, 0.275, 0.175], atol=1e-12)  # 0.9 of room = 0.375 + 0.275 + 0.175 + 0.075
    assert made.counts['braking'] >= 3
    assert 'by braking' in made.text


def test_a_command_that_keeps_its_limits_but_ends_too_fast_to_be_braked_is_slowed_down():
    """0.9 may be reached from 0.5 at 0.4 a step, but not left at that speed: 0.3 + 0.2 + 0.1 do not fit before the limit at 1."""
    points, made = one([0.9], start=0.5, speed=0.4, acceleration=0.1)
    assert points == pytest.approx([0.8]) and dict(made.counts) == {'braking': 1}
    assert made.text == ('1 value changed (1 by braking), most of all a in point 1 from 0.9 to 0.8 rad, '
                         'braking before its position limit at 0.1 rad/s^2')
    assert one([0.9], start=0.5, speed=0.4, acceleration=0.4)[0] == [0.9]


def test_a_target_far_off_is_gone_for_at_full_speed_to_the_last_point():
    points, _ = one([1e6] * 8, speed=0.5, acceleration=0.05, lower=[-math.inf], upper=[math.inf], jump=math.inf)
    np.testing.assert_allclose(np.diff([0.0, *points]), 0.5, atol=1e-9)


def test_a_robot_too_fast_to_be_braked_stops_at_its_position_limit():
    points, made = one([1.5, 1.5], start=0.8, speed=0.4, acceleration=0.1)
    assert points == [1.0, 1.0] and dict(made.counts) == {'position': 2}


def test_a_stop_takes_off_the_same_speed_at_every_step_and_then_rests():
    guard = SafetyFilter(limits(lower=[-1.0], upper=[1.0], velocity=0.5, acceleration=0.1))
    points = guard.stop(Commanded(np.array([0.1]), np.array([0.25])), 5, 1.0)
    np.testing.assert_allclose(points[:, 0], [0.25, 0.3, 0.3, 0.3, 0.3], atol=1e-12)
    assert guard.stop(Commanded(np.array([0.9]), np.array([0.5])), 3, 1.0)[:, 0].tolist() == [1.0, 1.0, 1.0]
    at_once = SafetyFilter(limits(lower=[-1.0], upper=[1.0])).stop(Commanded(np.array([0.1]), np.array([0.25])), 2, 1.0)
    assert at_once[:, 0].tolist() == [0.1, 0.1]


@pytest.mark.parametrize('target', [0.63, -0.4])
def test_a_target_at_rest_is_reached_and_not_passed(target):
    points, _ = one([target] * 20, acceleration=0.05)
    away = np.sign(target) * (target - np.array(points))
    assert (away >= -1e-9).all() and (np.diff(away) <= 1e-12).all()
    assert points[-1] == pytest.approx(target, abs=1e-9) and points[-2] == pytest.approx(target, abs=1e-9)


def test_what_was_left_behind_is_caught_up_with():
    """The wish runs at 0.02 a step but begins 0.3 ahead; when it is caught up with, its speed is kept."""
    wanted = 0.3 + 0.02 * np.arange(30)
    points, _ = one(wanted, acceleration=0.03)
    behind = wanted - np.array(points)
    assert (behind >= -1e-9).all() and (behind[-10:] <= 1e-9).all()


@settings(deadline=None)
@given(st.floats(0.0, 20.0), st.floats(0.01, 2.0))
def test_the_largest_step_that_can_be_braked_needs_just_the_room(room, change):
    step = braking(room, math.inf, change)
    whole, left = 0.0, step
    while left > 0.0:
        whole += left
        left -= change
    assert whole == pytest.approx(room, abs=1e-9 * (1 + room))


def test_only_the_joint_that_is_limited_changes():
    asked = np.array([[0.05, 5.0], [0.1, 5.0]])
    made = SafetyFilter(limits()).filter(asked, [0.0, 0.0], DT)
    assert made.points[:, 0].tolist() == [0.05, 0.1]
    np.testing.assert_allclose(made.points[:, 1], [0.1, 0.2])


def test_rounding_is_cut_but_not_counted():
    points, made = one([1.0 + 1e-7], start=0.9)
    assert points == [1.0] and not made.counts and not made.text


def test_what_was_asked_for_is_not_written_to():
    asked = np.full((3, 2), 5.0)
    made = SafetyFilter(limits()).filter(asked, [0.0, 0.0], DT)
    assert (asked == 5.0).all() and not np.shares_memory(made.points, asked)


def test_a_joint_that_turns_on_and_on_takes_any_number():
    own = limits(lower=[-math.inf], upper=[math.inf], jump=math.inf)
    made = SafetyFilter(own).filter([[1e308], [-1e308], [1e308]], [0.0], DT)
    np.testing.assert_allclose(made.points[:, 0], [0.1, 0.0, 0.1], atol=1e-12)
    assert 'from 1e+308 to 0.1 rad' in made.text


# Refusals

@pytest.mark.parametrize('points, measured, before, words', [
    ([[0.4, 0.0]], (0.0, 0.0), None, 'a at 0.4 rad, which is measured at 0 rad, farther off than the largest jump of 0.3 rad'),
    ([[0.0, 0.4]], (0.0, 0.2), ((0.0, 0.0), (0.0, 0.0)), 'b at 0.4 rad, which is commanded at 0 rad'),
    ([[0.0, 0.2]], (0.0, -0.2), ((0.0, 0.0), (0.0, 0.0)), 'b at 0.2 rad, which is measured at -0.2 rad'),
    ([[1.4, 0.0]], (1.4, 0.0), None, 'a at 1 rad, which is measured at 1.4 rad'),
    ([[np.nan, 0.0]], (0.0, 0.0), None, 'the command holds numbers that are not finite'),
    ([[0.0, 0.0], [0.0, np.inf]], (0.0, 0.0), None, 'the command holds numbers that are not finite'),
    ([[0.0, 0.0]], (0.0, np.nan), None, 'measured positions hold numbers that are not finite'),
    ([[0.0, 0.0]], (0.0, 0.0), ((0.0, 0.0), (np.inf, 0.0)), 'commanded velocities hold numbers that are not finite'),
    ([[0.0, 0.0]], (0.0, 0.0), ((0.0,), (0.0, 0.0)), 'as many commanded positions, got shape'),
    ([[0.0, 0.0]], (0.0, 0.0, 0.0), None, 'as many measured positions, got shape'),
    ([[0.0, 0.0, 0.0]], (0.0, 0.0), None, 'rows of 2 joints, got shape'),
    ([0.0, 0.0], (0.0, 0.0), None, 'rows of 2 joints'),
    (np.empty((0, 2)), (0.0, 0.0), None, 'rows of 2 joints'),
    ([[0.0, 0.0], [0.0]], (0.0, 0.0), None, 'rows of 2 joints, got what are no numbers'),
    ([['x', 'y']], (0.0, 0.0), None, 'rows of 2 joints, got what are no numbers')])
def test_what_no_clamping_makes_safe_is_refused(points, measured, before, words):
    before = before and Commanded(*map(np.array, before))
    with pytest.raises(UnsafeCommand) as caught:
        SafetyFilter(limits(jump=0.3)).filter(points, measured, DT, before)
    assert words in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('step_dt', [0.0, -1.0, math.nan, math.inf])
def test_the_time_between_points_must_make_sense(step_dt):
    with pytest.raises(UnsafeCommand, match='time between two points'):
        SafetyFilter(limits()).filter([[0.0, 0.0]], [0.0, 0.0], step_dt)


@pytest.mark.parametrize('wrong, words', [
    ({'lower': (1.0, -2.0)}, 'a: the lower limit 1 rad is not below the upper one 1 rad'),
    ({'upper': (1.0, math.nan)}, 'b: the lower limit -2 rad is not below the upper one nan rad'),
    ({'upper': (1.0, 2.0, 3.0)}, 'upper limits of 2 joints need as many numbers'),
    ({'velocity': 0.0}, 'a: the velocity limit must be positive and finite'),
    ({'velocity': math.inf}, 'a: the velocity limit must be positive and finite'),
    ({'velocity': math.nan}, 'a: the velocity limit must be positive and finite'),
    ({'acceleration': -1.0}, 'a: the acceleration limit must be positive'),
    ({'acceleration': math.nan}, 'a: the acceleration limit must be positive'),
    ({'jump': 0.0}, 'the largest jump must be positive'),
    ({'jump': math.nan}, 'the largest jump must be positive')])
def test_limits_that_are_none_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        limits(**wrong)


def test_limits_keep_what_they_were_given():
    lower = np.array([-1.0])
    own = limits(lower=lower, upper=[1.0])
    lower[0] = -9.0
    assert own.lower[0] == -1.0
    with pytest.raises(ValueError, match='read-only'):
        own.upper[0] = 9.0


# Where a robot is commanded to be

@pytest.mark.parametrize('elapsed, position, velocity', [
    (-0.1, 0.0, 2.0), (0.0, 0.0, 2.0), (0.25, 0.5, 2.0), (0.5, 1.0, 2.0), (0.75, 0.5, -2.0), (1.0, 0.0, -2.0), (1.1, 0.0, 0.0)])
def test_a_robot_is_commanded_along_straight_lines_and_then_rests(elapsed, position, velocity):
    found = Commanded.along(np.array([0.0]), np.array([[1.0], [0.0]]), 0.5, elapsed)
    assert (found.position[0], found.velocity[0]) == pytest.approx((position, velocity))


# Actions

@settings(deadline=None)
@given(arrays(np.float64, (4, 2), elements=WILD), arrays(np.float64, 2, elements=st.floats(-1.0, 1.0)), st.floats(0.01, 3.0))
def test_actions_keep_their_bounds_and_their_largest_change(actions, before, change):
    guard = ActionFilter(['x', 'y'], lower=[-1.0, -0.5], upper=[1.0, 0.5], change=change)
    before = before * [1.0, 0.5]
    made = guard.filter(actions, before)
    assert (made.points >= [-1.0, -0.5]).all() and (made.points <= [1.0, 0.5]).all()
    assert (np.abs(np.diff(np.vstack([before, made.points]), axis=0)) <= change + SLACK).all()
    again = guard.filter(made.points, before)
    assert again.points.tobytes() == made.points.tobytes() and not again.counts


def test_actions_within_bounds_come_out_bit_for_bit_and_others_are_told():
    guard = ActionFilter(['force.x', 'force.y'])
    asked = np.array([[0.3, -1.0], [1.0, 0.1]])
    assert guard.filter(asked).points.tobytes() == asked.tobytes()
    made = guard.filter([[0.3, -1.5], [1.25, 0.1]])
    assert made.points.tolist() == [[0.3, -1.0], [1.0, 0.1]] and dict(made.counts) == {'bounds': 2}
    assert made.text == '2 values changed (2 by bounds), most of all force.y in point 1 from -1.5 to -1, bound -1'


def test_a_change_of_action_is_limited_from_the_one_before():
    guard = ActionFilter(['x'], change=0.25)
    made = guard.filter([[1.0], [1.0], [0.75]], before=[0.0])
    assert made.points[:, 0].tolist() == [0.25, 0.5, 0.75] and dict(made.counts) == {'change': 2}
    assert made.text.endswith('x in point 1 from 1 to 0.25, largest change 0.25 a tick')
    assert guard.filter([[1.0], [1.0]]).points[:, 0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize('actions, before, words', [
    ([[0.0]], None, 'rows of 2 actions'), ([[0.0, np.nan]], None, 'not finite'), ([[0.0, 0.0]], [0.0], 'as many actions before'),
    ([[0.0, 0.0]], [np.nan, 0.0], 'actions before hold numbers that are not finite')])
def test_actions_that_are_none_are_refused(actions, before, words):
    with pytest.raises(UnsafeCommand, match=words):
        ActionFilter(['x', 'y']).filter(actions, before)


@pytest.mark.parametrize('wrong, words', [
    ({'lower': 2.0}, 'x: the lower bound 2 is above the upper one 1'), ({'upper': math.nan}, 'x: the lower bound'),
    ({'change': 0.0}, 'x: the largest change must be positive'), ({'change': math.nan}, 'x: the largest change must be')])
def test_bounds_that_are_none_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        ActionFilter(['x', 'y'], **wrong)
