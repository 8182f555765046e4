"""What holds for every input that a planner accepts, and one sentence for every one that it does not."""

import math
import warnings

import numpy as np
import pytest
import torch
from checkpoints import untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuser_core.conditions import Conditions
from diffuser_core.guide_library import ContactGuide, GoalGuide
from diffuser_core.normalize import Normalizer
from diffuser_core.planner import Planner, Sampling
from diffuser_core.receding_horizon import RecedingHorizon
from diffuser_core.trajectory import Channels, Plan

CHANNELS = Channels(('push', 'x', 'v'), ('N', 'm', 'm/s'), actions=1)
REACH = 3.0
"""The normal range of every channel is +-REACH."""
NOT_NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf])

samplings = st.builds(
    Sampling, steps=st.integers(1, 5), warm_steps=st.integers(1, 4), warm_level=st.floats(0.05, 1.0),
    eta=st.sampled_from([0.0, 0.5, 1.0]), resample=st.integers(0, 2), through=st.booleans())
samplings |= st.builds(Sampling, steps=st.integers(1, 5), solver=st.just('dpm++'))


@st.composite
def any_conditions(draw):
    """Any known and wanted entries on any horizon, in and outside the range of the training data."""
    horizon, seed = draw(st.integers(2, 37)), draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    shape = (horizon, len(CHANNELS))
    mask = rng.uniform(size=shape) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    weights = np.where(rng.uniform(size=shape) < draw(st.sampled_from([0.0, 0.2])), rng.uniform(size=shape), 0.0)
    return Conditions(mask, rng.uniform(-2 * REACH, 2 * REACH, shape), weights)


@pytest.fixture(scope='module')
def planner():
    return Planner(untrained(CHANNELS, reach=REACH))


def refused(error, call):
    """The message with which `call` is refused, which must be one sentence."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value.args[0])
    assert '\n' not in message and 20 < len(message) < 250
    return message


@settings(max_examples=60, deadline=None)
@given(any_conditions(), samplings, st.integers(2, 37) | st.none(), st.integers(1, 3), st.integers(0, 10_000))
def test_what_is_known_is_in_every_plan_to_the_last_bit(planner, conditions, sampling, earlier, count, seed):
    rng = np.random.default_rng(seed)
    observation = rng.uniform(-2 * REACH, 2 * REACH, 2)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        last = None if earlier is None else planner.plan(rng.uniform(-1, 1, 2), planner.conditions(earlier))
        plans = planner.candidates(observation, conditions, count=count, warm_start=last, sampling=sampling, t0=0.05)
    expected = conditions.mask.copy()
    expected[0, 1:] = False
    for plan in plans:
        assert plan.values.shape == conditions.mask.shape and np.isfinite(plan.values).all()
        assert np.array_equal(plan.values[expected], conditions.values[expected])
        assert np.array_equal(plan.states[0], observation)


@settings(max_examples=30, deadline=None)
@given(any_conditions(), samplings, st.integers(0, 10_000))
def test_a_planner_that_clips_leaves_the_range_nowhere_and_changes_nothing_inside(conditions, sampling, seed):
    planner = Planner(untrained(CHANNELS, reach=REACH), clip=True)
    observation = np.random.default_rng(seed).uniform(-2 * REACH, 2 * REACH, 2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        plan = planner.plan(observation, conditions, sampling=sampling)
    assert np.abs(plan.values).max() <= REACH * (1 + 1e-6)
    assert plan.states[0] == pytest.approx(observation.clip(-REACH, REACH), abs=1e-5)
    known = conditions.mask.copy()
    known[0, 1:] = False
    assert plan.values[known] == pytest.approx(conditions.values.clip(-REACH, REACH)[known], abs=1e-5)


def test_wanted_values_beyond_the_data_are_warned_about_too():
    planner = Planner(untrained(CHANNELS, reach=REACH))
    with pytest.warns(UserWarning, match=r'the value of x on step 5 lies outside the training data \(-2.00 of'):
        planner.plan(np.zeros(2), planner.conditions().preferred(5, CHANNELS, {'x': -2 * REACH}, 0.5))


def test_clipping_needs_a_range_to_clip_to():
    checkpoint = untrained(CHANNELS)
    object.__setattr__(checkpoint, 'normalizer', Normalizer('gaussian', torch.zeros(3), torch.ones(3)))
    assert refused(ValueError, lambda: Planner(checkpoint, clip=True)) == (
        "clip needs a model with the normaliser 'limits', this one has 'gaussian'")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3).filter(lambda shape: shape != [2]))
def test_observations_of_any_other_shape_are_refused(planner, shape):
    message = refused(ValueError, lambda: planner.plan(np.zeros(shape)))
    assert message == f'the observation needs shape (2,), got {tuple(shape)}'


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(0, 9).filter(lambda n: n != 3))
def test_conditions_for_other_channels_are_refused(planner, horizon, columns):
    conditions = Conditions(np.zeros((horizon, columns), dtype=bool), np.zeros((horizon, columns)))
    assert refused(ValueError, lambda: planner.plan(np.zeros(2), conditions)) == f'conditions need 3 channels, got {columns}'


@settings(max_examples=40, deadline=None)
@given(*[st.lists(st.integers(0, 4), min_size=0, max_size=3)] * 3)
def test_conditions_need_three_arrays_of_one_shape(mask, values, weights):
    if mask == values == weights and len(mask) == 2:
        assert Conditions(np.zeros(mask, dtype=bool), np.zeros(values), np.zeros(weights)).horizon == mask[0]
    else:
        message = refused(ValueError, lambda: Conditions(np.zeros(mask, dtype=bool), np.zeros(values), np.zeros(weights)))
        assert message.startswith('conditions need a mask, values and weights of one shape (horizon, channels), got')


def test_a_mask_of_numbers_is_refused():
    """Numbers would be taken for row numbers where truth values select entries."""
    message = refused(ValueError, lambda: Conditions(np.ones((4, 3), dtype=int), np.zeros((4, 3))))
    assert message == 'the mask of conditions needs truth values, got int64'


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(-60, 60), st.sampled_from(CHANNELS.names), st.booleans())
def test_a_horizon_too_short_for_a_condition_or_a_guide_is_refused(planner, horizon, t, name, soft):
    none = planner.conditions(horizon)

    def condition():
        return none.preferred(t, CHANNELS, {name: 0.5}, 0.5) if soft else none.known(t, CHANNELS, {name: 0.5})

    def guided(guide):
        return planner.plan(np.zeros(2), none, guide=guide, sampling=Sampling(steps=1))

    guides = [GoalGuide({name: 0.5}, CHANNELS, steps=[0, t]), 2.0 * ContactGuide({name: 0.5}, CHANNELS, steps=[t])]
    if -horizon <= t < horizon:
        assert condition().values[t, CHANNELS.names.index(name)] == 0.5
        for guide in guides:
            assert guided(guide).horizon == horizon
    else:
        message = refused(IndexError, condition)
        assert message == f'a condition on step {t} does not fit a horizon of {horizon} steps'
        for guide, called in zip(guides, ('goal', 'contact')):
            message = refused(ValueError, lambda guide=guide: guided(guide))
            assert message.startswith(f'the guide {called!r} looks at step {t}, which does not fit a horizon of')


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1), NOT_NUMBERS, st.integers(0, 15), st.sampled_from(CHANNELS.names))
def test_what_is_not_a_finite_number_is_named(planner, entry, value, t, name):
    observation = np.zeros(2)
    observation[entry] = value
    assert refused(ValueError, lambda: planner.plan(observation)) == (
        f'the observation of {CHANNELS.observations[entry]} is not a finite number')
    column = CHANNELS.names.index(name)
    for call in (lambda: planner.conditions().known(t, CHANNELS, {name: value}),
                 lambda: planner.conditions().preferred(t, CHANNELS, {name: value}, 0.5)):
        assert refused(ValueError, call) == f'the condition on step {t}, channel {column} is not a finite number'
    earlier = np.zeros((16, 3))
    earlier[t, column] = value
    assert refused(ValueError, lambda: planner.plan(np.zeros(2), warm_start=Plan(earlier, CHANNELS, 0.0, 0.1, {}))) == (
        f'the warm start is not a finite number on step {t}, channel {name}')
    assert refused(ValueError, lambda: planner.plan(np.zeros(2), t0=value)) == (
        f'the time of a plan must be a finite number, got {value} s')


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=8).filter(lambda n: n not in CHANNELS.names and '\n' not in n))
def test_unknown_channels_are_named_beside_the_known_ones(planner, name):
    for call in (lambda: planner.conditions().known(0, CHANNELS, {name: 0.0}), lambda: GoalGuide({name: 0.0}, CHANNELS),
                 lambda: RecedingHorizon(planner, committed=[name], commit=1)):
        assert refused(KeyError, call) == f'unknown channel {name}; this trajectory has push, x, v'


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=3))
def test_plans_need_the_shape_of_their_channels(shape):
    if len(shape) == 2 and shape[0] and shape[1] == 3:
        assert Plan(np.zeros(shape), CHANNELS, 0.0, 0.1, {}).horizon == shape[0]
    else:
        message = refused(ValueError, lambda: Plan(np.zeros(shape), CHANNELS, 0.0, 0.1, {}))
        assert message == f'a plan needs values of shape (horizon, 3), got {tuple(shape)}'


@pytest.mark.parametrize(('call', 'message'), [
    (lambda p: p.plan(np.zeros(2), warm_start=Plan(np.zeros((16, 3)), CHANNELS, 0.0, 0.2, {})),
     'a warm start needs a plan with steps of 0.1 s, as this model makes them, got 0.2 s'),
    (lambda p: p.plan(np.zeros(2), guide=lambda states: states.sum()),
     'a guide must be a Guide (RewardGuide makes one of a function), got function'),
    (lambda p: p.plan(np.zeros(2), select='x', count=2),
     'a guide must be a Guide (RewardGuide makes one of a function), got str'),
    (lambda p: p.plan(np.zeros(2), budget=math.nan), 'a time budget must be positive, got nan s'),
    (lambda p: p.candidates(np.zeros(2), count=0), 'at least one candidate is needed, got 0'),
    (lambda p: p.conditions(1), 'a plan needs a horizon of at least 2 steps, got 1'),
    (lambda p: Plan(np.zeros((4, 3)), CHANNELS, math.nan, 0.1, {}),
     'a plan needs a finite start and a positive finite step_dt, got nan and 0.1 s'),
    (lambda p: Plan(np.zeros((4, 3)), CHANNELS, 0.0, 0.0, {}),
     'a plan needs a finite start and a positive finite step_dt, got 0.0 and 0.0 s'),
    (lambda p: Sampling(warm_level=math.nan), 'warm_level lies in (0, 1] and eta in [0, 1], got nan and 0.0'),
    (lambda p: Sampling(solver='euler'), "solver is one of ddim, dpm++ and rule one of clean, posterior, score, algorithm1, "
     "released, got 'euler' and 'clean'"),
    (lambda p: Sampling(solver='dpm++', eta=1.0),
     "the solver 'dpm++' is deterministic: it takes neither eta nor the rule 'algorithm1'"),
])
def test_other_mistakes_are_one_sentence_each(planner, call, message):
    assert refused(ValueError, lambda: call(planner)) == message


def test_a_guide_adds_to_guides_only():
    with pytest.raises(TypeError, match='unsupported operand'):
        GoalGuide({'x': 0.0}, CHANNELS) + 1.0
