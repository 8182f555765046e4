"""The benchmark of plans: what it refuses, when it reads the clock, what it says about the aims, that all its cases run."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tape import taped

from diffuser_core.backends import LoopGraphs
from diffuser_core.unet import UNetConfig

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture
def planning(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import planning
    return planning


@pytest.fixture
def aims(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import aims
    return aims


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so_in_a_sentence_and_writes_nothing(tmp_path):
    done = subprocess.run([sys.executable, BENCHMARKS / 'planning.py', '--device', 'cuda', '--out', tmp_path / 'out'],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == '' and not (tmp_path / 'out').exists()
    assert done.stderr == ('--device cuda needs a CUDA GPU and a PyTorch built for it; '
                           f'PyTorch {torch.__version__} sees none here\n')


@pytest.mark.parametrize(('gpu', 'args', 'message'), [
    (True, ['--device', 'cuda', '--backends', 'openvino'], "the backend 'openvino' does not run on --device cuda"),
    (False, ['--backends', 'eager', 'cudagraph'], "the backend 'cudagraph' does not run on --device cpu"),
])
def test_backends_of_the_other_device_are_refused(planning, monkeypatch, gpu, args, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    with pytest.raises(SystemExit) as stopped:
        planning.main(args)
    assert stopped.value.code == message


@pytest.mark.parametrize('args', [['--device', 'tpu'], ['--backends', 'tensorrt'], ['--cases', 'ant']])
def test_unknown_words_are_refused(planning, args):
    with pytest.raises(SystemExit) as stopped:
        planning.main(args)
    assert stopped.value.code == 2


def test_the_clock_is_read_when_the_device_is_done(planning, monkeypatch):
    events = []
    monkeypatch.setattr(planning.time, 'perf_counter', lambda: events.append('clock') or 0.001 * len(events))
    calls = {name: lambda name=name: events.append(name) for name in 'ab'}
    times = planning.timed(calls, 3, lambda: events.append('wait'), 2.0)
    assert events[:16] == ['wait', 'clock', 'a', 'wait', 'wait', 'clock', 'b', 'wait'] * 2
    assert events[16:] == ['wait', 'clock', 'a', 'wait', 'clock', 'wait', 'clock', 'b', 'wait', 'clock'] * 3
    assert (times['a']['p50'], times['b']['p99']) == pytest.approx((6.0, 6.0))  # three events, counted double


def test_operations_of_a_plan_are_those_of_its_layers(planning):
    """Counted again by hand: two for each weight and place."""
    case = dataclasses.replace(planning.CASES['maze2d-umaze'], horizon=16, batch=3, levels=5, model=UNetConfig(8, (1, 2)))
    network = planning.TemporalUNet(case.channels, case.model)
    counts = []

    def count(layer, inputs, output):
        places = inputs[0].shape[-1] if isinstance(layer, torch.nn.ConvTranspose1d) else output.shape[-1]
        counts.append(2 * layer.weight.numel() * (1 if isinstance(layer, torch.nn.Linear) else places))

    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv1d, torch.nn.ConvTranspose1d, torch.nn.Linear)):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 16, case.channels), torch.zeros(1, dtype=torch.int64))
    assert planning.operations(case) == sum(counts) * 3 * 5


def test_the_most_that_float32_can_gain_is_said(planning, monkeypatch):
    monkeypatch.setattr(planning, 'operations', lambda case: 2e9)
    monkeypatch.setattr(planning, 'product_rate', lambda device: 1e11)
    case = planning.CASES['maze2d-umaze']
    rows = [{'case': 'maze2d-umaze same', 'backend': name, 'ms': {'p50': ms}, 'baseline_ms': {'p50': 60.0}}
            for name, ms in (('openvino', 25.0), ('openvino-bf16', 10.0))]
    found = planning.ceiling(case, rows, torch.device('cpu'))
    assert found['at_most'] == pytest.approx(3.0) and found['share'] == {'openvino': pytest.approx(0.8)}


def test_a_gpu_is_waited_for_and_a_cpu_is_not(planning, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, 'synchronize', waited.append)
    planning.until_done(torch.device('cpu'))()
    assert waited == []
    planning.until_done(torch.device('cuda'))()
    assert waited == [torch.device('cuda')]


def test_the_aims_hold_the_best_backend_against_their_bounds(aims):
    rows = [{'case': case, 'backend': backend, 'ratio': ratio} for case, backend, ratio in (
        ('a original', 'eager', 1.0), ('a same', 'traced', 1.5), ('a same', 'cudagraph', 5.0), ('b same', 'cudagraph', 4.99),
        ('a ours 3x1', 'traced', 150.0), ('a ours 1x1', 'cudagraph', 201.0),
        ('horizon 128', 'traced', 1.0), ('horizon 1024', 'traced', 9.0), ('horizon 1024', 'cudagraph', 8.01),
        ('candidates 256', 'cudagraph', 1.99), ('candidates 256', 'traced', 3.0))]
    header, *lines = aims.format_aims(rows, 'cuda').splitlines()
    assert header.split() == ['aim', 'bound', 'case', 'backend', 'measured', 'met']
    assert len({len(line.rstrip('yesno')) for line in lines}) == 1
    assert [line.split()[-3:] for line in lines] == [
        ['cudagraph', '5.00x', 'yes'], ['cudagraph', '4.99x', 'no'], ['cudagraph', '201.00x', 'yes'],
        ['cudagraph', '8.01x', 'no'], ['cudagraph', '1.99x', 'yes']]
    assert [line.split()[0] for line in aims.format_aims(rows, 'cpu').splitlines()[1:]] == ['same', 'same', 'as', 'horizon']


@pytest.fixture
def tiny(planning, monkeypatch):
    """Networks that are small and cases that are short, with a guide and without."""
    model = UNetConfig(8, (1, 2))
    cases = (planning.Case('free', 3, 1, 16, 4, model),
             planning.Case('guided', 3, 1, 16, 8, model, batch=2, clip=False, goal=False, guided=True, timed=2))
    monkeypatch.setattr(planning, 'SMALL', model)
    monkeypatch.setattr(planning, 'CHOSEN', {'cpu': ('traced',)})
    for case in cases:
        monkeypatch.setitem(planning.CASES, case.name, case)
    return cases


def test_the_same_settings_can_be_recorded_as_a_graph(planning, tiny, monkeypatch):
    """Taped on a CPU: the recorded loop uses nothing that the host makes or reads meanwhile."""
    recorded = []

    def capture(function, generator):
        recorded.append(function)
        return taped(function, generator)

    for name in ('execute', 'value_gradient'):
        original = getattr(planning, name)
        monkeypatch.setattr(planning, name, lambda network, backend, *args, original=original, **options: original(
            network, 'eager' if backend == 'cudagraph' else backend, *args, **options))
    monkeypatch.setattr(planning, 'LoopGraphs', lambda: LoopGraphs(capture))
    for case in tiny:
        rows = planning.same_and_ours(case, ['cudagraph'], 1, torch.device('cpu'))
        assert rows[1]['backend'] == 'cudagraph'
    assert len(recorded) == 2


def test_every_case_runs_and_its_rows_are_written(planning, tiny, tmp_path, capsys):
    planning.main(['--cases', 'free', 'guided', '--backends', 'eager', '--repeats', '1', '--out', str(tmp_path),
                   '--threads', str(torch.get_num_threads())])
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert [row['case'] for row in summary['rows']] == [
        'free original', 'free same', 'free ours 3x1', 'free ours 2x1', 'free ours 1x1',
        'guided original', 'guided same', 'guided ours 3x2', 'guided ours 2x2']
    for row in summary['rows']:
        assert row['ratio'] == pytest.approx(row['baseline_ms']['p50'] / row['ms']['p50']) and row['device'] == summary['device']
    assert summary['command'].startswith('python benchmarks/planning.py --cases free guided')
    assert 'as shipped' in capsys.readouterr().out
