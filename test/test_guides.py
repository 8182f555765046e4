"""Guides: their gradients, their sums, what they do to plans, and what they refuse."""

import numpy as np
import pytest
import torch
from gaussian_prior import Gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuser_core.backends import value_gradient
from diffuser_core.guide_library import (
    ClassifierGuide,
    ContactGuide,
    GoalGuide,
    LimitsGuide,
    ObstacleGuide,
    RewardGuide,
    ValueGuide,
)
from diffuser_core.guides import Guide, normal_gradient
from diffuser_core.normalize import Normalizer
from diffuser_core.sampler import Denoiser, Guidance, denoise
from diffuser_core.schedule import NoiseSchedule, strided_levels
from diffuser_core.trajectory import Channels
from diffuser_core.value_network import StepClassifier, ValueConfig, ValueNetwork

CHANNELS = Channels(('push', 'x', 'y', 'grip'), ('N', 'm', 'm', '1'), actions=1)
SCALES = Normalizer('limits', torch.tensor([0.5, -1.0, 0.0, 0.5]), torch.tensor([2.0, 3.0, 0.5, 0.5]))
torch.manual_seed(0)
VALUE = ValueNetwork(4, ValueConfig(8, (1, 8), 'pooled'), 6).eval().double()
CLASSIFIER = StepClassifier(4, 3, 16).eval().double()
DOUBLE = Normalizer(SCALES.kind, SCALES.offset.double(), SCALES.scale.double())
GUIDES = [
    RewardGuide(lambda states, actions: states[..., 0] * states[..., 1] - actions[..., 0] ** 2, CHANNELS, discount=0.9),
    RewardGuide(lambda states, actions: states[:, -1, 0] ** 3, CHANNELS, name='end'),
    ValueGuide(VALUE, DOUBLE),
    ClassifierGuide(CLASSIFIER, DOUBLE, [0, 2], first_step=2),
    GoalGuide({'x': 0.4, 'y': -0.2}, CHANNELS, steps=(-1, 2), scale={'y': 0.1}),
    ObstacleGuide(['x', 'y'], CHANNELS, spheres=[(0.1, 0.2, 0.7)], boxes=[(-1.0, -1.0, -0.1, 0.3)], margin=0.1),
    LimitsGuide({'x': (-0.5, 0.2), 'push': (0.0, 0.1)}, CHANNELS),
    LimitsGuide({'y': (-1.0, 1.0)}, CHANNELS, step_dt=0.1, name='speed'),
    ContactGuide({'grip': 1.0}, CHANNELS, steps=range(3), near=(['x'], ['y'], 0.3)),
]


def double_guides():
    return pytest.mark.parametrize('guide', GUIDES, ids=[f'{type(g).__name__}-{g.name}' for g in GUIDES])


@double_guides()
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_gradients_are_those_of_central_differences(guide, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    values, gradients = guide.gradient(x, 3)
    step = 1e-6
    slope = (guide.value(x + step * direction, 3) - guide.value(x - step * direction, 3)) / (2 * step)
    expected = (gradients * direction).sum((1, 2))
    assert (slope - expected).abs().max() < 1e-4 * (1.0 + expected.abs().max())
    assert torch.allclose(values, guide.value(x, 3))


@double_guides()
def test_no_guide_looks_at_one_trajectory_to_judge_another(guide):
    x = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(guide.value(x, None)[1:2], guide.value(x[1:2], None))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(GUIDES), st.sampled_from(GUIDES), st.floats(-3, 3), st.integers(0, 10_000))
def test_guides_add_and_scale_exactly(first, second, factor, seed):
    x = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values, gradients = (first + factor * second).gradient(x, 1)
    (v1, g1), (v2, g2) = first.gradient(x, 1), second.gradient(x, 1)
    assert torch.allclose(values, v1 + factor * v2) and torch.allclose(gradients, g1 + factor * g2)
    assert torch.allclose((-first).score(x), -first.score(x))


def test_normal_gradients_follow_the_chain_rule():
    guide = GUIDES[0]
    normal = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    _, found = normal_gradient(guide, DOUBLE)(normal.detach(), None)
    (expected,) = torch.autograd.grad(guide.value(DOUBLE.denormalize(normal), None).sum(), normal)
    assert torch.allclose(found, expected)


def test_a_value_guide_with_a_forward_gradient_is_the_same_guide():
    torch.manual_seed(0)  # of the weights: with some, rounding alone exceeds the tolerance
    network = ValueNetwork(4, ValueConfig(8, (1, 8), 'flat'), 8).eval().requires_grad_(False)
    x = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    plain = ValueGuide(network, SCALES).gradient(x, 5)
    fast = ValueGuide(network, SCALES, gradient=value_gradient(network, 'traced', torch.device('cpu'))).gradient(x, 5)
    for a, b in zip(plain, fast):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_guides_value():
    x = torch.zeros(1, 6, 4)
    x[0, -1, 1], x[0, :, 3] = 0.3, torch.tensor([1.0, 0.0, 0.0, 0.5, 0.0, 0.0])
    assert GoalGuide({'x': 0.5}, CHANNELS, scale={'x': 0.1}).score(x).item() == pytest.approx(-4.0, rel=1e-5)
    assert ContactGuide({'grip': 0.0}, CHANNELS, steps=[0, 3]).score(x).item() == pytest.approx(-(1 + 0.25) / 2)
    assert LimitsGuide({'x': (-0.1, 0.1)}, CHANNELS).score(x).item() == pytest.approx(-1 / 6, rel=1e-5)
    assert LimitsGuide({'x': (-1, 1)}, CHANNELS, step_dt=0.1).score(x).item() == pytest.approx(-1 / 5, rel=1e-5)
    box = ObstacleGuide(['x', 'y'], CHANNELS, boxes=[(-1, -1, 1, 1)], margin=0.5, between=0)
    assert box.score(x).item() == pytest.approx(-(5 * 1.5 ** 2 + 1.2 ** 2), rel=1e-5)
    ball = ObstacleGuide(['x', 'y'], CHANNELS, spheres=[(0.0, 0.4, 0.5)], between=0)
    assert ball.score(x).item() == pytest.approx(-(5 * 0.1 ** 2), rel=1e-4)


def test_no_plan_jumps_through_a_thin_wall():
    x = torch.zeros(1, 2, 4)
    x[0, :, 1] = torch.tensor([-1.0, 1.0])
    wall = [(-0.1, -5.0, 0.1, 5.0)]
    assert ObstacleGuide(['x', 'y'], CHANNELS, boxes=wall, between=0).score(x).item() == 0.0
    assert ObstacleGuide(['x', 'y'], CHANNELS, boxes=wall, between=3).score(x).item() < 0.0


def drawn(guide, count=200):
    """Samples of a smooth random walk in the plane, drawn with a guide of its clean estimates; (count, 6, 2)."""
    t = np.arange(1.0, 7.0)
    covariance = np.kron(np.minimum(t[:, None], t[None, :]) / 6, np.eye(2)) + 1e-3 * np.eye(12)
    prior = Gaussian(np.zeros(12), covariance, (6, 2))
    schedule = NoiseSchedule.cosine(100)
    guidance = None if guide is None else Guidance(normal_gradient(guide, Normalizer('identity', torch.zeros(2), torch.ones(2))))
    start = torch.randn(count, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return denoise(Denoiser(prior.network(schedule), schedule, clip=False), start, strided_levels(100, 50),
                   torch.zeros(6, 2, dtype=torch.float64), torch.zeros(6, 2, dtype=torch.bool), torch.Generator(),
                   guidance=guidance).clean


def test_guides_bend_samples_and_two_together_reach_both_aims():
    plane = Channels(('x', 'y'), ('m', 'm'))
    goal = 3.0 * GoalGuide({'x': 1.5}, plane)
    wall = 30.0 * ObstacleGuide(['x', 'y'], plane, boxes=[(-9.0, 0.3, 9.0, 9.0)], between=0)

    def missed_and_entered(guide):
        x = drawn(guide)
        return (x[:, -1, 0] - 1.5).abs().mean().item(), (x[..., 1] > 0.35).any(1).double().mean().item()

    free, to_goal, off_wall, both = (missed_and_entered(g) for g in (None, goal, wall, goal + wall))
    assert to_goal[0] < 0.5 * free[0] and off_wall[1] < 0.3 * free[1]
    assert to_goal[1] > 0.7 * free[1] and off_wall[0] > 0.7 * free[0]  # neither does the other's work
    assert both[0] < 0.5 * free[0] and both[1] < 0.3 * free[1]


@pytest.mark.parametrize(('make', 'error', 'message'), [
    (lambda: GoalGuide({'z': 1.0}, CHANNELS), KeyError, 'unknown channel z; this trajectory has push, x, y, grip'),
    (lambda: GoalGuide({}, CHANNELS), ValueError, 'at least one channel'),
    (lambda: GoalGuide({'x': float('nan')}, CHANNELS), ValueError, 'target of a goal guide must be finite'),
    (lambda: GoalGuide({'x': 1.0}, CHANNELS, steps=()), ValueError, 'at least one step'),
    (lambda: GoalGuide({'x': 1.0}, CHANNELS, scale={'x': 0.0}), ValueError, 'scales of a goal guide must be positive'),
    (lambda: ObstacleGuide(['x', 'y'], CHANNELS), ValueError, 'needs obstacles'),
    (lambda: ObstacleGuide(['x', 'y'], CHANNELS, spheres=[(0, 0, -1)]), ValueError, 'a positive radius'),
    (lambda: ObstacleGuide(['x'], CHANNELS, boxes=[(1, 0)]), ValueError, 'low below high'),
    (lambda: LimitsGuide({'x': (1.0, 0.0)}, CHANNELS), ValueError, 'lower limit of x must be below the upper one, got 1.0 and'),
    (lambda: LimitsGuide({'x': (0, 1)}, CHANNELS, step_dt=0.0), ValueError, 'step_dt must be positive'),
    (lambda: ContactGuide({'grip': 2.0}, CHANNELS), ValueError, 'lies between 0 .* and 1'),
    (lambda: ContactGuide({'grip': 1.0}, CHANNELS, near=(['x'], ['y'], 0.0)), ValueError, 'positive reach'),
    (lambda: RewardGuide(lambda s, a: s, CHANNELS, discount=0.0), ValueError, r'a discount lies in \(0, 1\]'),
    (lambda: ClassifierGuide(CLASSIFIER, SCALES, []), ValueError, 'numbers of the properties'),
    (lambda: float('inf') * GUIDES[0], ValueError, 'scaled by a finite number'),
    (lambda: RewardGuide(lambda s, a: s.sum(), CHANNELS, name='mine').score(torch.zeros(2, 6, 4)), ValueError,
     r"the guide 'mine' must return one value a trajectory, shape \(2,\), got \(\)"),
    (lambda: (GUIDES[1] + RewardGuide(lambda s, a: s[..., 0] / 0, CHANNELS, name='mine')).gradient(torch.zeros(2, 6, 4), None),
     ValueError, "the guide 'mine' returned a value that is not finite"),
    (lambda: ClassifierGuide(CLASSIFIER, DOUBLE, [0], first_step=9).score(torch.zeros(1, 6, 4).double()), ValueError,
     'looks at steps from 9 on, the horizon is 6'),
])
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_guide_is_abstract():
    with pytest.raises(TypeError):
        Guide()
