"""Time of whole plans: ours against the original algorithm at the original's settings, interleaved in one process.

    python benchmarks/planning.py [--threads 1] [--repeats 10] [--cases maze2d-umaze hopper ...] [--out runs/benchmark/planning]
    python benchmarks/planning.py --device cuda      # on a GPU; the original runs there too

'same' rows run the same weights, levels and noise as the original; the weights are random, for the time does not depend on them.
'ours' rows are plans as we make them with the shipped planner of the task: from the last plan in one to three strided steps,
Hopper's, which is told the return and needs no guide, from noise. On a GPU the clock is read only when the device has done all
that it was given. The last lines hold the figures against what we aim at.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from aims import format_aims
from original import OriginalPlanner
from torch.utils.flop_counter import FlopCounterMode

from diffuser_core import __version__
from diffuser_core.backends import BACKENDS, LoopGraphs, execute, value_gradient
from diffuser_core.checkpoint import Checkpoint, DiffusionConfig
from diffuser_core.guide_library import ValueGuide
from diffuser_core.normalize import Normalizer
from diffuser_core.planner import Planner, Sampling
from diffuser_core.sampler import Denoised, Denoiser, Guidance, denoise
from diffuser_core.schedule import NoiseSchedule
from diffuser_core.shipped import checkpoint_folder
from diffuser_core.trajectory import Channels
from diffuser_core.unet import TemporalUNet, UNetConfig
from diffuser_core.value_network import ValueConfig, ValueNetwork

SMALL = UNetConfig(32, (1, 2, 4))
COMPARED = {'cpu': ('eager', 'traced', 'openvino', 'openvino-bf16'), 'cuda': ('eager', 'traced', 'cudagraph')}
"""Device -> backends that run the original's settings."""
CHOSEN = {'cpu': ('traced', 'openvino'), 'cuda': ('traced', 'cudagraph')}
"""Device -> backends that plan as we do."""
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Settings of the released code for one task; `timed` of the `levels` are run and the time is scaled up."""

    name: str
    channels: int
    actions: int
    horizon: int
    levels: int
    model: UNetConfig
    batch: int = 1
    prediction: str = 'x0'
    clip: bool = True
    goal: bool = True
    guided: bool = False
    shipped: str | None = None
    warm: bool = True
    timed: int | None = None

    @property
    def run(self) -> int:
        """Levels that are run."""
        return self.timed or self.levels


CASES = {case.name: case for case in (
    Case('maze2d-umaze', 6, 2, 128, 64, UNetConfig(32, (1, 4, 8)), shipped='maze2d_umaze'),
    Case('maze2d-large', 6, 2, 384, 256, UNetConfig(32, (1, 4, 8)), shipped='maze2d_large'),
    Case('hopper', 14, 3, 32, 20, UNetConfig(32, (1, 2, 4, 8)), batch=64, clip=False, goal=False, guided=True,
         shipped='hopper_medium_expert', warm=False),
    Case('kuka', 39, 0, 128, 1000, UNetConfig(128, (1, 2, 4, 8), attention=True), prediction='epsilon', shipped='kuka_stack',
         timed=20),
)}


def until_done(device: torch.device) -> Callable[[], None]:
    """What waits until the device has done all that it was given."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == 'cuda' else lambda: None


def timed(calls: dict[str, Call], repeats: int, wait: Callable[[], None], factor: float = 1.0) -> dict[str, dict[str, float]]:
    """Median and p99 [ms] of each call, interleaved, after two rounds of warm-up; `wait` is called before the clock is read."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(repeats + 2):
        for name, call in calls.items():
            wait()
            began = time.perf_counter()
            call()
            wait()
            if n >= 2:
                times[name].append(1e3 * factor * (time.perf_counter() - began))
    return {name: {'p50': float(np.percentile(t, 50)), 'p99': float(np.percentile(t, 99))} for name, t in times.items()}


def planner_for(case: Case, backend: str, device: torch.device, *, shipped: bool = False) -> Planner:
    """A planner with the small network and this case's channels, or the shipped one if there is one."""
    if shipped and case.shipped is not None:
        return Planner.from_checkpoint(checkpoint_folder(case.shipped), backend=backend, device=str(device))
    torch.manual_seed(0)
    names = tuple(f'c{n}' for n in range(case.channels))
    checkpoint = Checkpoint(TemporalUNet(case.channels, SMALL).state_dict(), SMALL, DiffusionConfig(levels=64),
                            Normalizer('limits', torch.zeros(case.channels), torch.ones(case.channels)),
                            Channels(names, ('1',) * case.channels, case.actions), case.horizon, 0.1)
    return Planner(checkpoint, backend=backend, device=str(device))


def same_and_ours(case: Case, backends: Sequence[str], repeats: int, device: torch.device) -> list[dict]:
    """The original against the same mathematics in every backend, and against a plan as we make it."""
    torch.manual_seed(0)
    shape = (case.batch, case.horizon, case.channels)
    network, judge = (module.eval().requires_grad_(False).to(device) for module in (
        TemporalUNet(case.channels, case.model),
        ValueNetwork(case.channels, ValueConfig(32, (1, 2, 4, 8), 'flat'), case.horizon)))
    start = torch.randn(shape, device=device)
    noises = torch.randn(case.levels, *shape, device=device)
    observation = torch.zeros(case.channels - case.actions, device=device)
    conditions = {0: observation, **({case.horizon - 1: observation} if case.goal else {})}
    known = torch.zeros(shape[1:], device=device)
    mask = torch.zeros(shape[1:], dtype=torch.bool, device=device)
    mask[list(conditions), case.actions:] = True
    original = OriginalPlanner(network, case.levels, case.prediction, case.clip, judge if case.guided else None, device=device)
    schedule = NoiseSchedule.cosine(case.levels)
    levels = list(range(case.levels - 1, -1, -1))[:case.run]

    def same(backend: str) -> Call:
        executed = execute(network, backend, case.horizon, case.channels, device, levels=case.levels)
        denoiser = Denoiser(executed, schedule, case.prediction, case.clip)
        gradient = value_gradient(judge, backend, device, levels=case.levels) if case.guided else None
        guidance = None if gradient is None else Guidance(
            lambda x, i: tuple(0.1 * part for part in gradient(x, schedule.level(i, device))), 'released', 2, 2)  # type: ignore[misc,arg-type]
        generator = torch.Generator(device).manual_seed(0)

        def draw(begin: torch.Tensor) -> Denoised:
            with torch.no_grad():
                return denoise(denoiser, begin, levels, known, mask, generator, 1.0, guidance=guidance)

        if backend == 'cudagraph':
            graphs = LoopGraphs()
            return lambda: graphs.run('same', draw, start, generator)
        return lambda: draw(start)

    def ours(backend: str, steps: int, count: int) -> Call:
        planner = planner_for(case, backend, device, shipped=True)
        guide = None
        if case.guided and case.shipped is None:
            gradient = value_gradient(judge, backend, device, levels=planner.checkpoint.diffusion.levels)
            guide = 0.1 * ValueGuide(judge, planner.checkpoint.normalizer, gradient=gradient)
        middle = dict(zip(planner.channels.names, planner.checkpoint.normalizer.offset.tolist()))
        state, goal = planner.channels.vector(middle), planner.conditions()
        if case.goal:
            known = planner.checkpoint.goal or planner.channels.names
            goal = goal.known(-1, planner.channels, {name: middle[name] for name in known})
        options = Sampling(rule='score', steps=steps, warm_steps=steps)
        last = planner.plan(state, goal) if case.warm else None
        return lambda: planner.plan(state, goal, warm_start=last, guide=guide, count=count, sampling=options)

    base = {'original': lambda: original.plan(conditions, case.actions, start, noises, case.run)}
    rows = []
    scale = case.levels / case.run
    results = timed(base | {f'same {b}': same(b) for b in backends}, repeats, until_done(device), scale)
    for name, ms in results.items():
        rows.append({'case': f'{case.name} {name.split()[0]}', 'backend': name.split()[-1] if ' ' in name else 'eager', 'ms': ms,
                     'baseline_ms': results['original'], 'ratio': results['original']['p50'] / ms['p50']})
    # The mazes ship with one step, the arm with three.
    settings = [(steps, 1 if case.shipped else min(count, case.batch)) for steps, count in ((3, 64), (2, 8), (1, 1))
                if case.shipped or not case.guided or steps > 1]
    calls = {f'ours {steps}x{count} {b}': ours(b, steps, count) for b in CHOSEN[device.type] for steps, count in settings}
    for name, ms in timed(calls, max(50, repeats), until_done(device)).items():
        what, backend = name.rsplit(' ', 1)
        rows.append({'case': f'{case.name} {what}', 'backend': backend, 'ms': ms, 'baseline_ms': results['original'],
                     'ratio': results['original']['p50'] / ms['p50']})
    return rows


def operations(case: Case) -> float:
    """Floating-point operations of the network in a plan at the original's settings, without the guide's."""
    network = TemporalUNet(case.channels, case.model).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, case.horizon, case.channels), torch.zeros(1, dtype=torch.int64))
    return float(counter.get_total_flops()) * case.batch * case.levels


def product_rate(device: torch.device, repeats: int = 20, size: int = 1024) -> float:
    """Floating-point operations a second of the fastest of some products of two large float32 matrices: about what there is."""
    left, right = torch.randn(2, size, size, device=device)
    best = min(timed({'product': lambda: left @ right}, 1, until_done(device))['product']['p50'] for _ in range(repeats))
    return 2.0 * size ** 3 / (1e-3 * best)


def ceiling(case: Case, rows: Sequence[dict], device: torch.device) -> dict:
    """What the same weights and steps could gain in float32 at most, if a plan ran at the rate of a matrix product."""
    count, rate = operations(case), product_rate(device)
    same = {row['backend']: row['ms']['p50'] for row in rows if row['case'] == f'{case.name} same'}
    original = next(row['baseline_ms']['p50'] for row in rows)
    return {'case': case.name, 'gflop': count / 1e9, 'product_gflops': rate / 1e9, 'at_most': 1e-3 * original * rate / count,
            'share': {name: count / (1e-3 * ms) / rate for name, ms in same.items() if not name.endswith('bf16')}}


def growth(repeats: int, device: torch.device) -> list[dict]:
    """Time of our warm plan as the horizon doubles, and as candidates multiply."""
    rows: list[dict] = []
    state = np.zeros(4)
    for backend in CHOSEN[device.type]:
        planner = planner_for(CASES['maze2d-umaze'], backend, device)

        def call(horizon: int, count: int, planner: Planner = planner) -> Call:
            conditions = planner.conditions(horizon)
            last = planner.plan(state, conditions)
            return lambda: planner.candidates(state, conditions, count=count, warm_start=last)

        for calls in ({f'horizon {h}': call(h, 1) for h in (128, 256, 512, 1024)},
                      {f'candidates {n}': call(128, n) for n in (1, 4, 16, 64, 256)}):
            results = timed(calls, repeats, until_done(device))
            first = next(iter(results.values()))
            rows += [{'case': name, 'backend': backend, 'ms': ms, 'baseline_ms': first, 'ratio': ms['p50'] / first['p50']}
                     for name, ms in results.items()]
    return rows


def memory(device: torch.device) -> list[dict]:
    """Peak memory of a process that plans, and how it grows over 300 plans after the first 50 [MB]: resident, or on the GPU."""
    rows = []
    for backend in ('eager', *CHOSEN[device.type]):
        done = subprocess.run([sys.executable, __file__, '--measure-memory', backend, '--device', device.type],
                              capture_output=True, text=True, check=True)
        rows.append({'backend': backend, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def _measure_memory(backend: str, device: torch.device) -> None:
    torch.set_num_threads(1)
    planner = planner_for(CASES['maze2d-umaze'], backend, device)
    last = None
    for n in range(350):
        last = planner.plan(np.zeros(4), warm_start=last)
        if n == 49:
            before = in_use(device)
    if device.type == 'cuda':
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        status = Path('/proc/self/status').read_text()  # getrusage's peak includes that of the process that started this one
        peak = int(status.split('VmHWM:')[1].split()[0]) / 1024
    print(json.dumps({'peak_mb': peak, 'growth_mb': in_use(device) - before}))


def in_use(device: torch.device) -> float:
    """Memory of this process now, resident or on the GPU [MB]."""
    if device.type == 'cuda':
        return torch.cuda.memory_allocated(device) / 2**20
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def name_of(device: torch.device) -> str:
    """What ran the plans."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)'


def main(args: Sequence[str] | None = None) -> None:
    """Run the cases, print the tables and write summary.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--device', choices=list(COMPARED), default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=10)
    parser.add_argument('--cases', nargs='*', choices=[*CASES, 'growth', 'memory'], default=[*CASES, 'growth', 'memory'])
    parser.add_argument('--backends', nargs='*', choices=BACKENDS,
                        help='for the same weights and steps; default: all that run on the device and compile in seconds')
    parser.add_argument('--out', type=Path, default=Path('runs/benchmark/planning'))
    parser.add_argument('--measure-memory', metavar='BACKEND', help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    device = torch.device(options.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        sys.exit(f'--device cuda needs a CUDA GPU and a PyTorch built for it; PyTorch {torch.__version__} sees none here')
    backends = COMPARED[device.type] if options.backends is None else options.backends
    for backend in backends:
        if backend.startswith('openvino') if device.type == 'cuda' else backend == 'cudagraph':
            sys.exit(f'the backend {backend!r} does not run on --device {device.type}')
    if options.measure_memory:
        return _measure_memory(options.measure_memory, device)
    torch.set_num_threads(options.threads)
    began = time.time()
    rows: list[dict] = []
    ceilings: list[dict] = []
    for name in options.cases:
        if name == 'memory':
            continue
        new = growth(5 * options.repeats, device) if name == 'growth' else \
            same_and_ours(CASES[name], backends, options.repeats, device)
        for row in new:
            row['device'] = name_of(device)
            print(f'{row["case"]:<24} {row["backend"]:<14} p50 {row["ms"]["p50"]:>10.2f} ms  p99 {row["ms"]["p99"]:>10.2f} ms  '
                  f'{"grows" if name == "growth" else "faster"} x{row["ratio"]:.2f}', flush=True)
        rows += new
        if name in CASES and not CASES[name].guided:
            ceilings.append(ceiling(CASES[name], new, device))
            shares = ', '.join(f'{backend} {share:.0%}' for backend, share in ceilings[-1]['share'].items())
            print(f'{name}: {ceilings[-1]["gflop"]:.1f} GFLOP a plan; of the rate of a matrix product: {shares}; at that rate '
                  f'x{ceilings[-1]["at_most"]:.2f}', flush=True)
    print(format_aims(rows, device.type))
    used = memory(device) if 'memory' in options.cases else []
    for entry in used:
        print(f'memory, {entry["backend"]:<10} peak {entry["peak_mb"]:.0f} MB, growth over 300 plans {entry["growth_mb"]:.2f} MB')
    options.out.mkdir(parents=True, exist_ok=True)
    summary = {'command': shlex.join(['python', 'benchmarks/planning.py', *(sys.argv[1:] if args is None else args)]),
               'version': __version__, 'seed_start': 0, 'episodes': 0, 'device': name_of(device), 'wall_s': time.time() - began,
               'rows': rows, 'ceilings': ceilings, 'memory': used}
    (options.out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')


if __name__ == '__main__':
    main()
