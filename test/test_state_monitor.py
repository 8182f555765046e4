"""States that cannot be true: too fast, or stamped by a clock that jumps; and how that ends by itself."""

import math

import numpy as np
import pytest
from diffuser_msgs.msg import PlannerStats

from diffuser_ros.state_monitor import StateMonitor

OK, IMPLAUSIBLE, JUMPED = PlannerStats.OK, PlannerStats.IMPLAUSIBLE_STATE, PlannerStats.CLOCK_JUMPED
DT = 1 / 120
SPEED = 2.0
EPOCH = 1.7e9
"""Stamps are seconds since 1970, arrivals count from the start of the machine."""


def monitor(**changed):
    return StateMonitor({'joint': SPEED}, **changed)


def reasons(states, watch=None):
    """Reason codes of states (value, stamp, arrival) in turn."""
    watch = watch or monitor()
    return [watch.check({'joint': value, 'x': 9.0 * n}, stamp, arrival)[0] for n, (value, stamp, arrival) in enumerate(states)]


def steady(count, speed=0.5 * SPEED, begin=0, value=0.0, offset=EPOCH):
    """Exact states of a joint at a constant speed, the first at tick `begin`."""
    return [(value + speed * DT * n, offset + DT * (begin + n), DT * (begin + n)) for n in range(count)]


def test_the_first_state_is_taken_as_it_is():
    assert monitor().check({'joint': 1e9}, -5.0, 1e6) == (OK, '')


def test_a_fast_joint_with_noise_and_jitter_is_normal():
    rng = np.random.default_rng(0)
    states = [(SPEED * DT * n + rng.normal(0.0, 0.005), EPOCH + DT * n + rng.normal(0.0, 1e-3), DT * n + rng.exponential(5e-3))
              for n in range(2000)]
    assert set(reasons(states)) == {OK}


def test_a_pause_between_states_is_normal():
    assert set(reasons([*steady(3), *steady(3, begin=1200, value=SPEED * 9.0)])) == {OK}


def test_one_outlier_holds_until_five_states_agree():
    states = steady(20)
    states[5] = (3.0, *states[5][1:])
    assert reasons(states) == [OK] * 5 + [IMPLAUSIBLE] * 6 + [OK] * 9


def test_the_sentence_says_what_moved_and_how_long_it_takes():
    watch = monitor()
    watch.check({'joint': 0.0}, EPOCH, 0.0)
    assert watch.check({'joint': 1.0}, EPOCH + 0.5, 0.5) == (OK, '')
    fault = 'joint moved by 1 in 10.0 ms, and cannot move faster than 2 a second'
    assert watch.check({'joint': 2.0}, EPOCH + 0.51, 0.51) == (IMPLAUSIBLE, fault)
    assert watch.check({'joint': 2.0}, EPOCH + 0.52, 0.52) == (
        IMPLAUSIBLE, f'{fault}; 1 of 5 states that must agree since then have come')


@pytest.mark.parametrize('rate, recovery', [(24.0, 5), (120.0, 5), (1000.0, 50)])
def test_ten_times_too_fast_stays_a_fault_as_long_as_it_lasts(rate, recovery):
    """Up and down, so that the joint often is where it was when all was well."""
    wave = [(math.asin(math.sin(10.0 * SPEED * n / rate)), EPOCH + n / rate, n / rate) for n in range(1000)]
    found = reasons(wave, monitor(recovery=recovery))
    began = found.index(IMPLAUSIBLE)
    assert began <= 0.01 * rate + 1 and set(found[began:]) == {IMPLAUSIBLE}


def test_a_robot_that_was_carried_elsewhere_is_believed_when_it_is_steady():
    assert reasons([*steady(3), *steady(9, begin=3, value=2.0)]) == [OK] * 3 + [IMPLAUSIBLE] * 5 + [OK] * 4


@pytest.mark.parametrize('shift', [-1.0, 3600.0, -3600.0, 0.51, -0.52])
def test_a_clock_that_is_set_is_taken_over_when_it_is_steady(shift):
    states = [*steady(4), *steady(9, begin=4, value=4 * 0.5 * SPEED * DT, offset=EPOCH + shift)]
    assert reasons(states) == [OK] * 4 + [JUMPED] * 5 + [OK] * 4


def test_a_clock_that_goes_to_and_fro_stays_a_fault():
    states = [(0.0, EPOCH + DT * n + (n % 2), DT * n) for n in range(50)]
    assert reasons(states) == [OK] + [JUMPED] * 49


def test_the_sentence_says_which_way_the_clock_went():
    watch = monitor()
    watch.check({'joint': 0.0}, EPOCH, 0.0)
    assert watch.check({'joint': 0.0}, EPOCH - 0.9, 0.1)[1] == (
        'the stamps of states went back by 1.000 s against their arrivals, allowed are 0.5 s')
    assert 'went ahead by 3600.000 s' in watch.check({'joint': 0.0}, EPOCH + 3599.2, 0.2)[1]


@pytest.mark.parametrize('shift', [0.4, -0.4])
def test_a_small_correction_of_the_clock_is_no_fault(shift):
    assert set(reasons([*steady(4), *steady(4, begin=4, value=0.03, offset=EPOCH + shift)])) == {OK}


def test_a_slow_clock_is_no_fault():
    """A simulation at a tenth of real time: stamps fall behind a little with every state, and without end."""
    assert set(reasons([(SPEED * DT * n, DT * n, 10 * DT * n) for n in range(1000)])) == {OK}


def test_a_state_sent_again_is_no_fault_however_long_it_takes_and_changes_no_verdict():
    resend = [(0.0, EPOCH, 10.0 * n) for n in range(20)]
    assert set(reasons([*resend, (0.01, EPOCH + DT, 190.0 + DT)])) == {OK}
    watch = monitor(recovery=2)
    found = reasons([(0.0, EPOCH, 0.0), (5.0, EPOCH + DT, DT), *[(5.0, EPOCH + DT, DT * n) for n in range(2, 9)],
                     (5.0, EPOCH + 2 * DT, 9 * DT), (5.0, EPOCH + 3 * DT, 10 * DT)], watch)
    assert found == [OK, *[IMPLAUSIBLE] * 9, OK]


def test_without_stamps_speeds_are_judged_by_arrivals():
    assert set(reasons([(SPEED * DT * n, 0.0, DT * n) for n in range(50)])) == {OK}
    assert set(reasons([(0.0, 0.0, 0.0), (SPEED, 0.0, 10.0), (SPEED + 0.01, 0.0, 20.0)])) == {OK}
    assert reasons([(100 * SPEED * DT * n, 0.0, DT * n) for n in range(5)]) == [OK] + [IMPLAUSIBLE] * 4


def test_a_simulation_that_waits_has_no_clock_to_compare_with():
    states = [(0.0, DT * n, 60.0 * (n // 10)) for n in range(50)]
    assert JUMPED in reasons(states)
    assert set(reasons(states, monitor(clock_tolerance=math.inf))) == {OK}


@pytest.mark.parametrize('wrong', [(math.nan, EPOCH + DT, DT), (0.0, math.nan, DT), (0.0, EPOCH + DT, math.nan)])
def test_what_is_no_number_is_a_fault_and_forgotten_afterwards(wrong):
    found = reasons([*steady(1), wrong, *steady(8, begin=2)])
    assert found[1] in (IMPLAUSIBLE, JUMPED) and found[-1] == OK


def test_the_channel_that_is_farthest_off_is_named_and_others_are_not_looked_at():
    watch = StateMonitor({'a': 1.0, 'b': 1.0})
    watch.check({'a': 0.0, 'b': 0.0, 'c': 0.0}, 0.0, 0.0)
    reason, text = watch.check({'a': 1.0, 'b': -2.0, 'c': 99.0}, 0.01, 0.01)
    assert reason == IMPLAUSIBLE and text.startswith('b moved by 2 ')


def test_after_a_reset_the_next_state_is_the_first():
    watch = monitor()
    assert reasons([(0.0, 0.0, 0.0), (9.0, 0.1, 0.1)], watch) == [OK, IMPLAUSIBLE]
    watch.reset()
    assert watch.check({'joint': -9.0}, 0.0, 0.2) == (OK, '')


def test_a_missing_channel_is_named():
    with pytest.raises(ValueError, match='lacks the channel joint'):
        monitor().check({'other': 0.0}, 0.0, 0.0)


@pytest.mark.parametrize('wrong, words', [
    ({'max_speed': {'joint': 0.0}}, 'largest speed of joint must be positive'),
    ({'max_speed': {'joint': math.nan}}, 'largest speed of joint must be positive'), ({'factor': 0.0}, 'the factor'),
    ({'clock_tolerance': 0.0}, 'the clock tolerance'), ({'jump_tolerance': -1.0}, 'the jump tolerance'),
    ({'jump_tolerance': math.nan}, 'the jump tolerance'), ({'recovery': 0}, 'at least one state')])
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        StateMonitor(**{'max_speed': {'joint': 1.0}, **wrong})
