"""The denoising loop as one graph: it reads nothing on the host, repeats its numbers when recorded, and few graphs are kept."""

import itertools

import numpy as np
import pytest
import torch
from checkpoints import untrained
from tape import HostAccess, TapedPlanner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffuser_core.backends import LoopGraphs, execute, value_gradient
from diffuser_core.backends.level_tables import with_level_tables
from diffuser_core.guide_library import (
    ClassifierGuide,
    ContactGuide,
    GoalGuide,
    LimitsGuide,
    ObstacleGuide,
    RewardGuide,
    ValueGuide,
)
from diffuser_core.guides import Guide, GuideError, deferred_checks
from diffuser_core.planner import Planner, Sampling
from diffuser_core.sampler import RULES, SOLVERS, Denoiser, Guidance, SoftKnown, denoise, noised_start
from diffuser_core.schedule import NoiseSchedule, strided_levels
from diffuser_core.trajectory import Channels
from diffuser_core.unet import TemporalUNet, UNetConfig
from diffuser_core.value_network import StepClassifier, ValueConfig, ValueNetwork

CHANNELS = Channels(('push', 'x', 'y'), ('N', 'm', 'm'), actions=1)
GENTLE = 0.02 * RewardGuide(lambda states, actions: -states.square().sum(-1), CHANNELS, discount=0.9)
"""For the rules that know no limit, with which steep guides run away."""
PHYSICAL = (
    RewardGuide(lambda states, actions: -states.square().sum(-1), CHANNELS, discount=0.9)
    + 0.5 * GoalGuide({'x': 1.0}, CHANNELS, steps=(-1, -2), scale={'x': 2.0})
    + ObstacleGuide(('x', 'y'), CHANNELS, spheres=[(0.2, 0.1, 0.5)], boxes=[(-1.0, -1.0, 0.0, 0.0)], margin=0.1)
    + LimitsGuide({'y': (-0.5, 0.5)}, CHANNELS, step_dt=0.1)
    + -ContactGuide({'push': 1.0}, CHANNELS, steps=(0, 3), near=(('x',), ('y',), 0.3)))


class OnlyMeta(TorchDispatchMode):
    """Every operand must be where the loop runs. Tensors on 'meta' have no contents: reading them raises by itself."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != 'meta':
                raise HostAccess(f'{func} has an operand on {leaf.device}')
        return func(*args, **(kwargs or {}))


LEGAL = [(solver, rule, soft, eta, resample) for solver, rule, soft, eta, resample
         in itertools.product(SOLVERS, (None, *RULES), (None, 'direct', 'through'), (0.0, 0.5), (0, 1))
         if (bool(eta) == bool(resample) or rule is None if solver == 'ddim' else not eta and rule != 'algorithm1')]
"""Noise and resampling together or not at all, but where there is no guide: neither touches what the other does."""


SCHEDULE = NoiseSchedule.cosine(16)
NETWORK = TemporalUNet(3, UNetConfig(8, (1, 2), context=8, attention=True, pointers=('x',)), [(1,), (2,)])
ON_META = with_level_tables(NETWORK.to('meta'), 16)


def on_meta(gradient, solver, rule, soft, eta, resample, prediction='x0'):
    denoiser = Denoiser(ON_META, SCHEDULE, prediction, encode=ON_META.encode)
    known, start = torch.empty(8, 3, device='meta'), torch.empty(2, 8, 3, device='meta')
    mask = torch.empty(8, 3, device='meta', dtype=torch.bool)
    with torch.no_grad(), deferred_checks() as answers:
        start = noised_start(start, 12, SCHEDULE, start)
        drawn = denoise(denoiser, start, strided_levels(13, 3), known, mask, None, eta, solver=solver, resample=resample,
                        guidance=None if rule is None else Guidance(gradient, rule, steps=2, limit=0.3),
                        soft=None if soft is None else SoftKnown(known, known, through=soft == 'through'))
    return drawn, answers


@pytest.mark.parametrize('options', LEGAL, ids=str)
def test_the_loop_touches_nothing_but_the_device(options):
    on_meta(PHYSICAL.gradient, *options)  # the guides' constants go to the device
    with OnlyMeta():
        drawn, answers = on_meta(PHYSICAL.gradient, *options)
    assert drawn.clean.shape == (2, 8, 3) and drawn.clean.device.type == 'meta'
    assert (drawn.values is not None) == (options[1] is not None) == bool(answers)


@pytest.mark.parametrize('prediction', ['epsilon', 'v'])
def test_so_do_the_other_predictions(prediction):
    with OnlyMeta():
        on_meta(None, 'ddim', None, None, 1.0, 0, prediction)


def item(x):
    return x.sum((1, 2)) * x.sum().item()


def branch(x):
    return x.sum((1, 2)) if x.sum() > 0 else -x.sum((1, 2))


def listed(x):
    return x[..., [0, 1]].sum((1, 2))


def made(x):
    return (x * torch.tensor([1.0, 2.0, 3.0])).sum((1, 2))


class Own(Guide):
    """A user's guide."""

    name = 'own'

    def __init__(self, function):
        self.function = function

    def value(self, trajectories, i):
        return self.function(trajectories)


@pytest.mark.parametrize('function', [item, branch])
def test_a_guide_that_reads_on_the_host_is_caught_on_meta(function):
    with pytest.raises((RuntimeError, NotImplementedError), match='(?i)meta'):
        on_meta(Own(function).gradient, 'ddim', 'clean', None, 0.0, 0)


@pytest.mark.parametrize(('function', 'how'), [(item, 'is read on the host'), (branch, 'is read on the host'),
                                               (listed, 'made on the host'), (made, 'made on the host')])
def test_a_guide_that_reads_or_makes_tensors_on_the_host_cannot_be_recorded(function, how):
    planner = TapedPlanner(untrained(CHANNELS))
    with pytest.raises(HostAccess, match=how):
        planner.plan(np.zeros(2), guide=Own(function))
    planner.plan(np.zeros(2), guide=Own(lambda x: x.sum((1, 2))))


OPTIONS = [
    Sampling(), Sampling(eta=1.0), Sampling(solver='dpm++'), Sampling(resample=2, eta=0.5), Sampling(through=True),
    *(Sampling(rule=rule, guide_steps=2, stop_level=2) for rule in RULES),
    Sampling(rule='posterior', through=True, guide_limit=None), Sampling(rule='algorithm1', eta=1.0, resample=1),
]


CASES = [(sampling, guide, clip) for sampling in OPTIONS for guide in (None, PHYSICAL) for clip in (False, True)
         if not clip or sampling in OPTIONS[:3]]


@pytest.mark.parametrize(('sampling', 'guide', 'clip'), CASES, ids=[f'{case[0]}-{bool(case[1])}-{case[2]}' for case in CASES])
def test_recorded_operations_repeated_on_new_inputs_give_the_loops_numbers(sampling, guide, clip):
    if guide is not None and sampling.rule in ('algorithm1', 'released'):
        guide = GENTLE

    def plans(planner):
        last, made = None, []
        for n in range(6):
            conditions = planner.conditions().known(-1, CHANNELS, {'x': 0.1 * n})
            if n % 2:
                conditions = conditions.preferred(5, CHANNELS, {'y': -0.3 * n}, 0.1 * n)
            last = planner.plan(np.array([0.3 * n - 0.5, 0.2]), conditions, guide=guide, sampling=sampling, t0=0.1 * n,
                                warm_start=last if n % 4 > 1 else None, count=2 if guide else 1)
            made.append(last)
        return made

    checkpoint = untrained(CHANNELS, context=8)
    graph = TapedPlanner(checkpoint, seed=3, clip=clip)
    recorded, plain = plans(graph), plans(Planner(checkpoint, backend='eager', seed=3, clip=clip))
    assert graph._graphs.captured == 4  # cold and warm, with wanted values and without
    assert len({plan.values.tobytes() for plan in plain}) == 6
    for ours, theirs in zip(recorded, plain):
        assert np.array_equal(ours.values, theirs.values) and ours.provenance == theirs.provenance


def test_learned_guides_can_be_recorded():
    checkpoint = untrained(CHANNELS)
    torch.manual_seed(1)
    value = ValueNetwork(3, ValueConfig(8, (1, 8)), 16).eval().requires_grad_(False)
    pulled = value_gradient(value, 'eager', torch.device('cpu'), levels=16)
    classifier = StepClassifier(3, 4, 16).eval().requires_grad_(False)
    for guide in (ValueGuide(value, checkpoint.normalizer), ValueGuide(value, checkpoint.normalizer, gradient=pulled),
                  ClassifierGuide(classifier, checkpoint.normalizer, (1, 3), first_step=8)):
        found = [planner.plan(np.array([0.5, 0.1]), guide=10.0 * guide, sampling=Sampling(rule='score')).values
                 for planner in (TapedPlanner(checkpoint), Planner(checkpoint, backend='eager'))]
        free = Planner(checkpoint, backend='eager').plan(np.array([0.5, 0.1])).values
        assert np.array_equal(*found) and np.abs(found[0] - free).max() > 1e-3


class Wall(Guide):
    """Finite only where the plan starts below `limit`."""

    name = 'wall'

    def __init__(self, fails):
        self.fails = fails

    def value(self, trajectories, i):
        return self.fails(trajectories, 1.0 - trajectories[:, 0, 1])


@pytest.mark.parametrize(('fails', 'message'), [
    (lambda x, room: x.sum((1, 2)) + 0.0 * room.sqrt(), "'wall' returned a value that is not finite"),
    (lambda x, room: (x[:, 5, 1] - x[:, 5, 1].detach() + room.clamp_min(0.0)).sqrt(), "'wall' has a gradient that is not finite"),
])
def test_what_is_not_finite_is_found_after_the_replay_and_named(fails, message):
    checkpoint = untrained(CHANNELS)
    found = []
    for planner in (TapedPlanner(checkpoint), Planner(checkpoint, backend='eager')):
        sampling, guide = Sampling(eta=1.0, guide_limit=None), GoalGuide({'y': 0.0}, CHANNELS) + 0.1 * Wall(fails)
        planner.plan(np.array([0.0, 0.0]), guide=guide, sampling=sampling)
        with pytest.raises(GuideError, match=message):
            planner.plan(np.array([2.0, 0.0]), guide=guide, sampling=sampling)
        planner.reseed(1)
        found.append(planner.plan(np.array([0.0, 0.0]), guide=guide, sampling=sampling).values)
    assert np.array_equal(*found)


def test_graphs_are_kept_by_what_they_do_and_the_least_used_is_let_go():
    planner = TapedPlanner(untrained(CHANNELS), size=3)
    graphs = planner._graphs
    slow, near = Own(lambda x: -x.square().sum((1, 2))), Own(lambda x: x[:, -1, 1])

    def captured(**options):
        before = graphs.captured
        planner.plan(np.zeros(2), **options)
        assert len(graphs) <= 3
        return graphs.captured - before

    assert [captured(guide=0.5 * slow + near) for _ in range(3)] == [1, 0, 0]  # written anew at every call, still the same
    assert captured(guide=0.4 * slow + near) == 1
    assert captured() == 1 and captured() == 0
    assert captured(guide=0.5 * slow + near) == 0
    assert captured(sampling=Sampling(steps=3)) == 1  # the fourth: the least recently used one goes
    assert captured(guide=0.5 * slow + near) == 0
    assert captured(guide=0.4 * slow + near) == 1
    assert captured(conditions=planner.conditions(15)) == 1 and captured(conditions=planner.conditions(16)) == 0  # padded to one
    with pytest.raises(ValueError, match='at least one graph must be kept, got 0'):
        LoopGraphs(size=0)


def test_inputs_go_into_the_buffer_that_was_captured():
    made = []

    def capture(function, generator):
        made.append(function())
        return lambda: made.append('replayed'), made[-1]

    graphs = LoopGraphs(capture)
    generator = torch.Generator()
    first = torch.ones(2, 3)
    buffer = graphs.run('a', lambda buffer: buffer, first, generator)
    assert torch.equal(buffer, first) and buffer is not first
    assert graphs.run('a', lambda buffer: None, 2.0 * first, generator) is buffer
    assert torch.equal(buffer, 2.0 * first) and torch.equal(first, torch.ones(2, 3))
    assert graphs.run('a', lambda buffer: buffer, torch.ones(4), generator).shape == (4,)
    assert made.count('replayed') == 3 and graphs.captured == 2


def test_the_backend_says_where_it_runs_and_that_it_takes_no_budget():
    with pytest.raises(ValueError, match="'cudagraph' runs on a CUDA GPU only, not on cpu: use 'traced' or 'openvino'"):
        Planner(untrained(CHANNELS), backend='cudagraph')
    with pytest.raises(ValueError, match='runs on a CUDA GPU only, not on meta'):
        execute(TemporalUNet(2, UNetConfig(8, (1,))).to('meta'), 'cudagraph', 8, 2, torch.device('meta'))
    with pytest.raises(ValueError, match="takes no budget; ask for fewer steps, or use the backend 'traced'"):
        TapedPlanner(untrained(CHANNELS)).plan(np.zeros(2), budget=0.1)
