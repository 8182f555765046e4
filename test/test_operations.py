"""How many tensor operations a plan takes beside those of the network: each costs microseconds, and a plan takes few of those."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import untrained
from torch.utils._python_dispatch import TorchDispatchMode

from diffuser_core.backends import execute
from diffuser_core.planner import Planner, Sampling
from diffuser_core.trajectory import Channels
from diffuser_core.unet import TemporalUNet, UNetConfig

CHANNELS = Channels(('push', 'x', 'v'), ('N', 'm', 'm/s'), actions=1)


BOOKKEEPING = {'alias', 'detach', 'lift_fresh'}


class Counter(TorchDispatchMode):
    """Operations by name, but for those that only wrap a tensor anew."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in BOOKKEEPING:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def operations(planner, **options):
    """Those of one plan, with a network that does nothing."""
    answer = torch.zeros(1, 16, 3)
    calls = []
    planner._denoiser = replace(planner._denoiser, network=lambda *inputs: calls.append(inputs) or answer)
    conditions = planner.conditions().known(-1, CHANNELS, {'x': 0.5})
    planner.plan(np.zeros(2), conditions, **options)
    calls.clear()
    with Counter() as counted:
        planner.plan(np.zeros(2), conditions, **options)
    return counted.names, len(calls)


@pytest.mark.parametrize(('context', 'most'), [(0, 19), (8, 35)])
def test_a_warm_plan_takes_few_operations_beside_the_network(context, most):
    planner = Planner(untrained(CHANNELS, context=context), backend='eager')
    last = planner.plan(np.zeros(2))
    names, calls = operations(planner, warm_start=last, sampling=Sampling(warm_steps=1))
    assert calls == 1 and 10 < len(names) <= most
    more, calls = operations(planner, warm_start=last, sampling=Sampling(warm_steps=4))
    assert calls == 4 and len(more) - len(names) <= 3 * 9


def test_knowing_the_last_plan_costs_four_operations_more():
    """A plan from noise does the same but for choosing the earlier plan's row, two products and a sum."""
    planner = Planner(untrained(CHANNELS), backend='eager')
    last = planner.plan(np.zeros(2))
    cold, _ = operations(planner, sampling=Sampling(steps=2))
    warm, _ = operations(planner, warm_start=last, sampling=Sampling(warm_steps=2))
    assert len(warm) - len(cold) == 4


def test_openvino_costs_a_copy_an_input_and_one_an_output():
    run = execute(TemporalUNet(3, UNetConfig(8, (1, 2), context=8)).eval(), 'openvino', 16, 3, torch.device('cpu'))
    inputs = torch.zeros(1, 16, 3), torch.tensor([0]), torch.zeros(1, 20)
    with torch.no_grad():
        run(*inputs)
        with Counter() as counted:
            run(*inputs)
    assert counted.names == ['copy_', 'copy_', 'copy_', 'clone']
