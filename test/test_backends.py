"""Every way of executing a network gives the numbers of the eager one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoints import untrained

from diffuser_core.backends import BACKENDS, execute, value_gradient, value_only
from diffuser_core.planner import Planner, Sampling
from diffuser_core.shipped import checkpoint_folder
from diffuser_core.trajectory import Channels
from diffuser_core.unet import TemporalUNet, UNetConfig
from diffuser_core.value_network import ValueConfig, ValueNetwork

CPU = torch.device('cpu')
TOLERANCE = {'traced': 1e-4, 'compiled': 1e-4, 'openvino': 1e-4, 'openvino-bf16': 3e-2}


def trained_scale(module):
    """Weights as large as training leaves them: the norms' scales and all biases differ from their start."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def relative(result, reference):
    return float((result - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize('backend', ['traced', 'openvino', 'openvino-bf16'])
@pytest.mark.parametrize('config', [UNetConfig(32, (1, 4, 8)), UNetConfig(16, (1, 2, 4), context=32),
                                    UNetConfig(16, (1, 2), attention=True)], ids=['maze', 'context', 'attention'])
def test_networks_agree_with_eager_for_every_batch_and_horizon(backend, config):
    torch.manual_seed(0)
    network = trained_scale(TemporalUNet(6, config))
    run = execute(network, backend, 32, 6, CPU)
    with torch.no_grad():
        for batch, horizon, level in ((1, 32, 0), (3, 64, 40), (1, 128, 63)):
            x, i = torch.randn(batch, horizon, 6), torch.tensor([level])
            context = network.encode(x[:1], torch.ones(1, horizon, 6, dtype=torch.bool))
            assert relative(run(x, i, context), network(x, i, context)) < TOLERANCE[backend]


@pytest.mark.parametrize('backend', ['eager', 'traced', 'openvino', 'openvino-bf16'])
@pytest.mark.parametrize('head', ['flat', 'pooled'])
@pytest.mark.parametrize('horizon', [32, 20])
def test_the_value_and_its_gradient_agree_with_automatic_differentiation(backend, head, horizon):
    torch.manual_seed(0)
    network = trained_scale(ValueNetwork(5, ValueConfig(16, (1, 2, 4), head), horizon))
    x, i = torch.randn(4, horizon, 5, requires_grad=True), torch.tensor([9])
    values = network(x, i)
    (gradients,) = torch.autograd.grad(values.sum(), x)
    with torch.no_grad():
        run = value_gradient(network, backend, CPU)
        found_values, found_gradients = run(x.detach(), i)
        alone = value_only(network, backend, CPU)(x.detach(), i)
    tolerance = TOLERANCE.get(backend, 1e-5)
    assert relative(found_values, values.detach()) < tolerance
    assert relative(alone, values.detach()) < tolerance
    assert relative(found_gradients, gradients) < (tolerance if backend != 'openvino-bf16' else 0.2)  # sums of many products


def test_compiled_agrees_with_eager():
    network = trained_scale(TemporalUNet(2, UNetConfig(8, (1,))))
    run = execute(network, 'compiled', 8, 2, CPU)
    x, i = torch.randn(2, 8, 2), torch.tensor([3])
    with torch.no_grad():
        assert relative(run(x, i, None), network(x, i)) < TOLERANCE['compiled']


@pytest.mark.parametrize('backend', ['eager', 'openvino'])
def test_the_shipped_planner_plans_the_same_with_every_backend(backend):
    plans = []
    for name in ('traced', backend):
        planner = Planner.from_checkpoint(checkpoint_folder('kuka_stack'), backend=name)
        middle = planner.checkpoint.normalizer.offset.double().numpy()
        plans.append(planner.plan(middle, sampling=Sampling(steps=4)).values)
    assert np.abs(plans[0] - plans[1]).max() < 1e-3 and np.abs(plans[0]).max() > 0.1


def test_results_are_not_overwritten_by_later_calls():
    network = trained_scale(TemporalUNet(2, UNetConfig(8, (1, 2))))
    run = execute(network, 'openvino', 8, 2, CPU)
    first = run(torch.zeros(1, 8, 2), torch.tensor([0]), None)
    kept = first.clone()
    run(torch.ones(1, 8, 2), torch.tensor([5]), None)
    assert torch.equal(first, kept)


def test_openvino_is_used_without_its_telemetry():
    code = ('import sys, torch\n'
            'from diffuser_core.backends import execute\n'
            'from diffuser_core.unet import TemporalUNet, UNetConfig\n'
            'execute(TemporalUNet(2, UNetConfig(8, (1,))), "openvino", 8, 2, torch.device("cpu"))(torch.zeros(1, 8, 2), '
            'torch.tensor([0]), None)\n'
            'assert "openvino" in sys.modules\n'
            'print([m for m in sys.modules if m.startswith("openvino_telemetry") and sys.modules[m] is not None])\n')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith('[]')


def test_backends_refuse_what_they_cannot_do(monkeypatch):
    network = TemporalUNet(2, UNetConfig(8, (1,)))
    with pytest.raises(ValueError, match=f"unknown backend 'tpu'; there are {', '.join(BACKENDS)}"):
        execute(network, 'tpu', 8, 2, CPU)
    with pytest.raises(ValueError, match='runs on the CPU only, not on meta'):
        execute(TemporalUNet(2, UNetConfig(8, (1,))).to('meta'), 'openvino', 8, 2, torch.device('meta'))
    planner = Planner(untrained(Channels(('x',), ('m',))), backend='openvino')
    wanted = planner.conditions().preferred(3, planner.channels, {'x': 0.5}, 0.5)
    with pytest.raises(ValueError, match="gradients cannot flow through the backend 'openvino'"):
        planner.plan(np.zeros(1), wanted, sampling=Sampling(through=True))
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ValueError, match=r"needs OpenVINO: pip install 'diffuser-ros\[openvino\]'"):
        execute(network, 'openvino', 8, 2, CPU)
