"""Channels, conditions, plans, the planner and the receding horizon."""

import dataclasses

import numpy as np
import pytest
import torch
from checkpoints import untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuser_core.conditions import Conditions
from diffuser_core.planner import Planner, Sampling
from diffuser_core.receding_horizon import RecedingHorizon
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
    with pytest.raises(ValueError, match='multiple of 2, got 7; the nearest are 6 and 8'):
        planner.plan(np.zeros(2), planner.conditions(horizon=7))


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
        torch.testing.assert_close(graph(x, i, told), network(x, i, told), rtol=1e-5, atol=1e-6)


def test_bad_sampling_is_refused():
    with pytest.raises(ValueError, match='at least one denoising step'):
        Sampling(steps=0)
    with pytest.raises(ValueError, match='warm_level lies in'):
        Sampling(warm_level=0.0)


def test_a_plan_is_read_and_shifted_in_time():
    values = np.arange(4.0)[:, None] * [1.0, 10.0, -1.0]
    plan = Plan(values, CHANNELS, t0=2.0, step_dt=0.5, provenance={})
    assert plan.at(np.array([2.0, 2.25, 3.5, 9.0, 0.0]))[:, 0] == pytest.approx([0.0, 0.5, 3.0, 3.0, 0.0])
    assert plan.shifted(2.5)[:, 1] == pytest.approx([10.0, 20.0, 30.0, 30.0])


def test_warm_start_must_fit_and_stays_near_the_last_plan(planner):
    first = planner.plan(np.zeros(2))
    with pytest.raises(ValueError, match='horizon 8, got one of 3 channels and horizon 16'):
        planner.plan(np.zeros(2), planner.conditions(horizon=8), warm_start=first)
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
    assert second.values[1:3, [0, 2]] == pytest.approx(kept[1:3, [0, 2]], abs=1e-5)
    assert np.abs(second.values[1:3, 1] - kept[1:3, 1]).min() > 1e-4
    assert np.abs(second.values[3:] - kept[3:]).max(axis=0).min() > 1e-4
    assert second.states[0] == pytest.approx([0.1, 0.2])
    horizon.restart()
    fresh = horizon.update(np.zeros(2), planner.conditions(), now=0.1)
    assert not fresh.provenance['warm']
