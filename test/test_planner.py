"""Channels, conditions, plans, the planner and the receding horizon."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from checkpoints import untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuser_core.conditions import Conditions
from diffuser_core.guide_library import RewardGuide
from diffuser_core.guides import Guide, GuideError
from diffuser_core.planner import Planner, Sampling
from diffuser_core.receding_horizon import RecedingHorizon, chunking_weights
from diffuser_core.trajectory import Channels, Plan

CHANNELS = Channels(('push', 'x', 'v'), ('N', 'm', 'm/s'), actions=1)


@pytest.fixture(scope='module')
def planner():
    return Planner(untrained(CHANNELS))


def test_channels_name_what_is_unknown_missing_or_repeated():
    assert CHANNELS.observations == ('x', 'v')
    assert CHANNELS.indices(['v', 'push']).tolist() == [2, 0]
    with pytest.raises(KeyError, match='unknown channel w; this trajectory has push, x, v'):
        CHANNELS.indices(['w'])
    with pytest.raises(KeyError, match='lacks channel v'):
        CHANNELS.vector({'x': 1.0})
    with pytest.raises(ValueError, match='repeated: x'):
        Channels(('x', 'x'), ('m', 'm'))


def test_conditions_add_up_and_leave_the_original_alone():
    none = Conditions.none(8, CHANNELS)
    goal = none.known(-1, CHANNELS, {'v': 0.0, 'x': 2.0})
    assert not none.mask.any()
    assert goal.mask.sum() == 2 and goal.values[-1, 1] == 2.0
    with pytest.raises(IndexError, match='step 8 does not fit a horizon of 8'):
        none.known(8, CHANNELS, {'x': 0.0})
    with pytest.raises(ValueError, match='step 3, channel 1 is not a finite number'):
        none.known(3, CHANNELS, {'x': np.nan})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 15), st.sampled_from(CHANNELS.names), st.floats(-3, 3), st.integers(1, 6), st.booleans())
def test_conditions_and_the_observation_survive_planning(planner, t, name, value, steps, warm):
    conditions = planner.conditions().known(t, CHANNELS, {name: value})
    observation = np.array([0.5, -0.25])
    if t == 0 and name != 'push':
        observation[CHANNELS.observations.index(name)] = value
    last = planner.plan(observation) if warm else None
    plan = planner.plan(observation, conditions, warm_start=last, sampling=Sampling(steps=steps, warm_steps=steps, eta=1.0))
    assert plan.values[t, CHANNELS.names.index(name)] == pytest.approx(value, abs=1e-6)
    assert plan.states[0] == pytest.approx(observation, abs=1e-6)
    assert np.abs(plan.values).max() <= 3.0 + 1e-5


def test_same_seed_same_plan_and_another_seed_another(planner):
    plans = []
    for seed in (3, 3, 4):
        planner.reseed(seed)
        plans.append(planner.plan(np.zeros(2)).values)
    assert np.array_equal(plans[0], plans[1]) and not np.array_equal(plans[0], plans[2])


def test_horizon_is_chosen_when_planning(planner):
    plan = planner.plan(np.zeros(2), planner.conditions(horizon=24))
    assert plan.values.shape == (24, 3) and plan.actions.shape == (24, 1) and plan.states.shape == (24, 2)
    with pytest.raises(ValueError, match='at least 2 steps, got 1'):
        planner.conditions(horizon=1)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 41), st.booleans())
def test_any_horizon_is_planned_and_its_goal_is_on_its_last_step(planner, horizon, warm):
    goal = planner.conditions(horizon).known(-1, CHANNELS, {'x': 1.5})
    last = planner.plan(np.zeros(2)) if warm else None
    plan = planner.plan(np.zeros(2), goal, warm_start=last)
    assert plan.values.shape == (horizon, 3) and plan.values[-1, 1] == 1.5


def test_rows_that_pad_a_horizon_hold_the_last_steps_conditions():
    goal = Conditions.none(3, CHANNELS).known(-1, CHANNELS, {'x': 2.0}).preferred(1, CHANNELS, {'v': 1.0}, 0.5).padded(2)
    assert goal.mask[:, 1].tolist() == [False, False, True, True, True] and goal.values[4, 1] == 2.0
    assert goal.weights[:, 2].tolist() == [0.0, 0.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(('observation', 'message'), [
    (np.zeros(3), r'needs shape \(2,\), got \(3,\)'),
    (np.array([0.0, np.inf]), 'observation of v is not a finite number'),
])
def test_bad_observations_are_refused_by_name(planner, observation, message):
    with pytest.raises(ValueError, match=message):
        planner.plan(observation)


@pytest.mark.parametrize('context', [0, 16])
def test_the_graph_that_plans_is_the_network(context):
    checkpoint = untrained(CHANNELS, context=context)
    network, graph = checkpoint.network(), Planner(checkpoint)._denoiser.network
    for batch, horizon in ((1, 16), (3, 24)):
        x, i = torch.randn(batch, horizon, 3), torch.randint(0, 16, (batch,))
        told = network.encode(x[:1], torch.ones(1, horizon, 3, dtype=torch.bool))
        torch.testing.assert_close(graph(x, i, told), network(x, i, told), rtol=1e-4, atol=1e-5)  # its levels come from tables


def test_bad_sampling_is_refused():
    with pytest.raises(ValueError, match='at least one denoising step'):
        Sampling(steps=0)
    with pytest.raises(ValueError, match='warm_level lies in'):
        Sampling(warm_level=0.0)


def test_who_watches_sees_every_level_and_changes_nothing():
    seen = []
    given = {'count': 2, 'sampling': Sampling(steps=4)}
    watched, alone = (Planner(untrained(CHANNELS), seed=3).candidates(np.array([0.5, -1.0]), **given, **watch)
                      for watch in ({'watch': lambda i, x: seen.append((i, x))}, {}))
    for with_it, without in zip(watched, alone):
        np.testing.assert_array_equal(with_it.values, without.values)
    levels = [i for i, _ in seen]
    assert len(levels) == 5 and levels == sorted(levels, reverse=True) and levels[-2:] == [0, -1]
    assert {x.shape for _, x in seen} == {(2, 16, 3)}
    for _, trajectories in seen:  # where it starts is known at every level
        np.testing.assert_allclose(trajectories[:, 0, 1:], [[0.5, -1.0]] * 2, atol=1e-5)
    np.testing.assert_allclose(seen[-1][1], [plan.values for plan in watched], atol=1e-5)
    assert np.abs(seen[0][1] - seen[-1][1]).max() > 0.1


def test_a_plan_is_read_and_shifted_in_time():
    values = np.arange(4.0)[:, None] * [1.0, 10.0, -1.0]
    plan = Plan(values, CHANNELS, t0=2.0, step_dt=0.5, provenance={})
    assert plan.at(np.array([2.0, 2.25, 3.5, 9.0, 0.0]))[:, 0] == pytest.approx([0.0, 0.5, 3.0, 3.0, 0.0])
    assert plan.shifted(2.5)[:, 1] == pytest.approx([10.0, 20.0, 30.0, 30.0])


def test_warm_start_must_fit_and_stays_near_the_last_plan(planner):
    first = planner.plan(np.zeros(2))
    other = Plan(np.zeros((16, 1)), Channels(('w',), ('m',)), 0.0, 0.1, {})
    with pytest.raises(ValueError, match='channels of this model, push, x, v; got one with w'):
        planner.plan(np.zeros(2), warm_start=other)
    warm = planner.plan(np.zeros(2), warm_start=first, sampling=Sampling(warm_level=0.5, warm_steps=2), t0=0.1)
    assert warm.provenance['levels'] == [7, 0] and warm.provenance['warm']


def test_receding_horizon_starts_cold_then_warm_and_cold_again_when_the_plan_has_run_out(planner):
    horizon = RecedingHorizon(planner)
    none = planner.conditions()
    assert not horizon.update(np.zeros(2), none, now=5.0).provenance['warm']
    assert horizon.update(np.zeros(2), none, now=5.05).provenance['warm']
    assert not horizon.update(np.zeros(2), none, now=9.0).provenance['warm']
    assert not horizon.update(np.zeros(2), none, now=1.0).provenance['warm']
    horizon.restart()
    assert not horizon.update(np.zeros(2), none, now=1.05).provenance['warm']
    assert horizon.replans == 5


def test_a_network_that_returns_nonsense_is_an_error_and_not_a_plan():
    checkpoint = untrained(CHANNELS)
    weights = {k: v * float('nan') for k, v in checkpoint.weights.items()}
    with pytest.raises(FloatingPointError, match='non-finite'):
        Planner(dataclasses.replace(checkpoint, weights=weights)).plan(np.zeros(2))


def test_a_committed_prefix_keeps_the_last_plan_in_its_channels_only(planner):
    horizon = RecedingHorizon(planner, committed=['push', 'v'], commit=2)
    first = horizon.update(np.zeros(2), planner.conditions(), now=0.0)
    second = horizon.update(np.array([0.1, 0.2]), planner.conditions(), now=0.05)
    kept = first.shifted(0.05)
    assert second.values[1:3, 2] == pytest.approx(kept[1:3, 2], abs=1e-5)
    assert second.values[:2, 0] == pytest.approx(kept[:2, 0], abs=1e-5)  # an action lasts until the next step
    assert np.abs(second.values[1:3, 1] - kept[1:3, 1]).min() > 1e-4
    assert np.abs(second.values[3:] - kept[3:]).max(axis=0).min() > 1e-4
    assert abs(second.values[2, 0] - kept[2, 0]) > 1e-4
    assert second.states[0] == pytest.approx([0.1, 0.2])
    horizon.restart()
    fresh = horizon.update(np.zeros(2), planner.conditions(), now=0.1)
    assert not fresh.provenance['warm']


class Pull(Guide):
    """Wants the mean of x at `target`."""

    name = 'pull'

    def __init__(self, target, unit=1.0):
        self.target, self.unit = target, unit

    def value(self, trajectories, i):
        return -self.unit * (trajectories[:, 1:, 1].mean(1) - self.target).square()


def test_a_guide_bends_the_plan_and_another_bends_it_elsewhere_at_the_next_call(planner):
    def mean_x(guide):
        planner.reseed(0)
        return planner.plan(np.zeros(2), guide=guide, sampling=Sampling(steps=8)).values[1:, 1].mean()

    free = mean_x(None)
    assert mean_x(Pull(free + 1.0, unit=10.0)) > free + 0.1
    assert mean_x(Pull(free - 1.0, unit=10.0)) < free - 0.1
    assert mean_x(0.0 * Pull(free - 1.0)) == pytest.approx(free, abs=1e-6)


def test_the_best_of_the_candidates_is_returned(planner):
    pull = Pull(0.7)
    planner.reseed(5)
    plans = planner.candidates(np.zeros(2), count=8)
    planner.reseed(5)
    best = planner.plan(np.zeros(2), count=8, select=pull)
    values = [-(p.values[1:, 1].mean() - 0.7) ** 2 for p in plans]
    assert np.array_equal(best.values, plans[int(np.argmax(values))].values)
    assert best.provenance['value'] == pytest.approx(max(values), rel=1e-4)
    assert len(set(values)) == 8
    with pytest.raises(ValueError, match='choosing among 8 candidates needs a guide'):
        planner.plan(np.zeros(2), count=8)


class Broken(Guide):
    name = 'user wish'

    def __init__(self, function):
        self.value = lambda trajectories, i: function(trajectories)


@pytest.mark.parametrize(('function', 'message'), [
    (lambda x: x.sum((1, 2)) * float('nan'), "the guide 'user wish' returned a value that is not finite"),
    (lambda x: x.sum(), r"the guide 'user wish' must return one value a trajectory, shape \(1,\), got \(\)"),
    (lambda x: 3.0, 'got float'),
    (lambda x: x.detach().sum((1, 2)), 'does not depend on the trajectory'),
    (lambda x: (x * 0).abs().sqrt().sum((1, 2)), 'gradient that is not finite'),
])
def test_a_broken_guide_is_named(planner, function, message):
    Broken.__abstractmethods__ = frozenset()
    with pytest.raises(GuideError, match=message):
        planner.plan(np.zeros(2), guide=Pull(0.0) + 2.0 * Broken(function))


def test_wanted_values_draw_the_plan_by_their_weight(planner):
    def at_8(weight):
        planner.reseed(0)
        conditions = planner.conditions()
        if weight:
            conditions = conditions.preferred(8, CHANNELS, {'x': 2.5}, weight)
        return planner.plan(np.zeros(2), conditions).values[8, 1]

    found = [at_8(w) for w in (0.0, 0.3, 0.9, 0.999)]
    assert found == sorted(found) and found[-1] == pytest.approx(2.5, abs=0.01) and found[0] < 2.0
    with pytest.raises(ValueError, match='between 0 and 1, got 1.0; known'):
        planner.conditions().preferred(8, CHANNELS, {'x': 2.5}, 1.0)


def test_a_plan_whose_time_runs_out_says_so(planner):
    cut = planner.plan(np.zeros(2), budget=1e-9)
    assert cut.provenance['levels'] == [15] and cut.provenance['cut_short'] is True
    whole = planner.plan(np.zeros(2), budget=60.0)
    assert len(whole.provenance['levels']) == 6 and whole.provenance['cut_short'] is False
    with pytest.raises(ValueError, match='budget must be positive, got 0.0 s'):
        planner.plan(np.zeros(2), budget=0.0)


def test_warming_up_changes_no_later_plan(planner):
    planner.reseed(1)
    plain = planner.plan(np.zeros(2)).values
    planner.reseed(1)
    planner.warm_up(horizon=10, count=3)
    assert np.array_equal(planner.plan(np.zeros(2)).values, plain)


@pytest.mark.parametrize('options, context', [({}, 0), ({'count': 3}, 8), ({'count': 2, 'horizon': 12, 'guide': True}, 8)])
def test_after_the_warm_up_nothing_is_compiled_any_more(options, context):
    """OpenVINO compiles on the first sight of a shape; plans of the kind that was warmed up must not bring new ones."""
    planner = Planner(untrained(CHANNELS, context=context), backend='openvino')
    count, conditions = options.get('count', 1), planner.conditions(options.get('horizon'))
    guide = RewardGuide(lambda states, actions: -states[..., 0].square().sum(1), CHANNELS) if options.get('guide') else None
    graphs = [part for part in vars(planner._denoiser).values() if hasattr(part, '_requests')] or \
        [cell.cell_contents for cell in planner._denoiser.network.__closure__ if hasattr(cell.cell_contents, '_requests')]
    (compiled,) = (graph._requests for graph in graphs)
    planner.warm_up(options.get('horizon'), count, guide=guide)
    ready = set(compiled)
    assert ready
    plan = None
    for _ in range(3):
        plan = planner.candidates(np.zeros(2), conditions, count=count, guide=guide, warm_start=plan)[0]
    assert set(compiled) == ready
    planner.candidates(np.zeros(2), conditions, count=count + 1)
    assert set(compiled) > ready  # what was not warmed up is seen here


def test_values_beyond_the_training_data_are_warned_about_once_or_pulled_to_its_edge():
    planner = Planner(untrained(CHANNELS))
    with pytest.warns(UserWarning, match=r'the value of v on step 0 lies outside the training data \(\+2.00 of'):
        plan = planner.plan(np.array([0.0, 6.0]))
    assert plan.states[0, 1] == 6.0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        planner.plan(np.array([0.0, 6.0]))
        clipped = Planner(untrained(CHANNELS), clip=True).plan(np.array([0.0, 6.0]))
    assert clipped.states[0] == pytest.approx([0.0, 3.0])


def test_the_soft_mask_of_real_time_chunking():
    weights = chunking_weights(10, committed=2, fading=3)
    c = np.array([3, 2, 1]) / 4
    assert weights == pytest.approx([1, 1, 1, *(c * (np.exp(c) - 1) / (np.e - 1)), 0, 0, 0, 0])


def test_a_fading_prefix_draws_the_new_plan_towards_the_last_one(planner):
    def differences(fade):
        planner.reseed(2)
        horizon = RecedingHorizon(planner, Sampling(warm_steps=1), committed=['x'], commit=1, fade=fade)
        first = horizon.update(np.zeros(2), planner.conditions(), now=0.0)
        second = horizon.update(np.array([0.4, 0.2]), planner.conditions(), now=0.1)
        assert second.values[1, 1] == pytest.approx(first.shifted(0.1)[1, 1], abs=1e-5)
        return second.values[2:, 1] - first.shifted(0.1)[2:, 1]

    plain = differences(0)  # one network call: what it estimates is the same with and without the prefix' fading part
    assert differences(6) == pytest.approx((1 - chunking_weights(16, 1, 6)[2:]) * plain, abs=1e-5)
    assert np.abs(plain[:5]).min() > 1e-3
    with pytest.raises(ValueError, match='cannot be negative, got 0 and -1'):
        RecedingHorizon(planner, fade=-1)
