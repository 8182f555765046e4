"""Untrusted input: checkpoints, configurations and data sets, changed at random, must be read or refused with a clean error.

    python benchmarks/fuzz.py [--inputs 100000] [--seed 0] [--targets demonstrations ...] [--memory 1024] [--seconds 10]

A clean error is of the class that the reader documents, and one readable line that names the file. Anything else is a crash:
another exception, a message longer than a thousand characters, a process that dies, memory beyond the limit, an input that takes
too long. Inputs follow from the seed, the target's name and their number alone. The first input of every kind of crash is saved
in runs/fuzz/ with its traceback; the exit code is 1 if there is one. fuzz_targets.py has the registry of targets.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_long
from dataclasses import dataclass
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path

import torch
from fuzz_targets import TARGETS, Target
from tqdm import tqdm

from diffuser_core import __version__
from diffuser_core.workers import follow_parent

START, NEXT, CLEAN, ACCEPTED, CRASHES = range(5)
"""What a worker counts: when it is ready; the input that it reads, or will read next; what came of those before."""


class TooLong(BaseException):
    """An input took longer than it may. No reader's `except Exception` catches it."""


@dataclass(frozen=True)
class Limits:
    """For reading one input: memory beyond what the process has [MiB], and processor time [s]; ten times that by the clock, for a
    busy machine is no hang."""

    memory: int
    seconds: float


def main(args: Sequence[str] | None = None) -> int:
    """Fuzz the targets one after another, print a table and write summary.json; 1 if there was a crash."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--inputs', type=int, default=100_000, help='of all targets together')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--targets', nargs='*', choices=[target.name for target in TARGETS], metavar='TARGET',
                        help='default: all, which are ' + ', '.join(repr(target.name) for target in TARGETS))
    parser.add_argument('--memory', type=int, default=1024, help='MiB that reading an input may take')
    parser.add_argument('--seconds', type=float, default=10.0, help='of processor time that reading an input may take')
    parser.add_argument('--out', type=Path, default=Path('runs/fuzz'))
    options = parser.parse_args(args)
    if options.inputs < 1 or options.memory < 1 or not options.seconds > 0.0:
        parser.error(f'inputs, memory and seconds must be positive, got {options.inputs}, {options.memory} and {options.seconds}')
    chosen = [target for target in TARGETS if options.targets is None or target.name in options.targets]
    began = time.time()
    rows = []
    for target in chosen:
        inputs = max(1, round(options.inputs * target.share / sum(t.share for t in chosen)))
        rows.append(fuzz(target, inputs, options.seed, Limits(options.memory, options.seconds), options.out))
    print(format_rows(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    summary = {'command': shlex.join(['python', 'benchmarks/fuzz.py', *(sys.argv[1:] if args is None else args)]),
               'version': __version__, 'seed_start': options.seed, 'episodes': 0, 'device': 'cpu', 'wall_s': time.time() - began,
               'rows': rows}
    (options.out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    return int(any(row['crashes'] for row in rows))


def fuzz(target: Target, inputs: int, seed: int, limits: Limits, out: Path) -> dict[str, object]:
    """Read this many inputs in a process of their own, and in another one from where that died or had to be ended."""
    context = multiprocessing.get_context('spawn')
    counts = context.Array(c_long, 5)
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=inputs, desc=target.name, unit='input', unit_scale=True) as bar:
        while counts[NEXT] < inputs:
            counts[START] = 0
            worker = context.Process(target=read_all, args=(target.name, inputs, seed, limits, out, counts), daemon=True)
            worker.start()
            why = _watch(worker, counts, limits.seconds, bar)
            if not counts[START]:
                raise RuntimeError(f'the valid inputs of {target.name} could not be read')
            if why and counts[NEXT] < inputs:
                with tempfile.TemporaryDirectory() as folder:
                    _keep(target, seed, counts[NEXT], target.seeds(Path(folder)), why, why, out)
                counts[CRASHES] += 1
                counts[NEXT] += 1
    return {'target': target.name, 'inputs': counts[NEXT], 'clean': counts[CLEAN], 'accepted': counts[ACCEPTED],
            'crashes': counts[CRASHES]}


def _watch(worker: multiprocessing.context.SpawnProcess, counts: SynchronizedArray, seconds: float, bar: tqdm) -> str:
    """Wait for the worker to end; why it did, or had to be ended, before it was done, or nothing."""
    last, since = -1, time.monotonic()
    while worker.is_alive():
        worker.join(0.2)
        bar.update(counts[NEXT] - bar.n)
        if counts[NEXT] != last or not counts[START]:
            last, since = counts[NEXT], time.monotonic()
        elif time.monotonic() - since > 10 * seconds + 20:  # it waits for something, or Python cannot serve its alarm
            worker.kill()
            worker.join()
            return 'hang'
    return '' if worker.exitcode == 0 else f'end with code {worker.exitcode}'


def read_all(name: str, inputs: int, seed: int, limits: Limits, out: Path, counts: SynchronizedArray) -> None:
    """Read the inputs from `counts[NEXT]` on."""
    (target,) = (t for t in TARGETS if t.name == name)
    torch.set_num_threads(1)
    follow_parent()
    signal.signal(signal.SIGPROF, _alarm)
    with tempfile.TemporaryDirectory() as folder:
        seeds = target.seeds(Path(folder))
        for valid in seeds:
            target.read(valid, Path(folder))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + (limits.memory << 20),) * 2)
        counts[START] = 1
        while counts[NEXT] < inputs:
            data = target.input(seed, counts[NEXT], seeds)
            why = told = ''
            try:
                with _time_limit(limits.seconds):
                    target.read(data, Path(folder))
                counts[ACCEPTED] += 1
            except (Exception, TooLong) as error:
                why = target.why_unclean(error)
                told = traceback.format_exc(limit=-12)
                place = traceback.extract_tb(error.__traceback__)[-1]
                counts[CRASHES if why else CLEAN] += 1
            if why:
                _keep(target, seed, counts[NEXT], seeds, f'{why} in {Path(place.filename).name} {place.name}', told, out)
            counts[NEXT] += 1


def _keep(target: Target, seed: int, number: int, seeds: Sequence[bytes], why: str, told: str, out: Path) -> None:
    """Save the input, unless one that fails alike is there, and say so."""
    name = ''.join(c if c.isalnum() else '-' for c in f'{target.name} {why}')[:150]
    if not (out / f'{name}.txt').exists():
        (out / f'{name}.bin').write_bytes(target.input(seed, number, seeds))
        (out / f'{name}.txt').write_text(f'{target.name}, seed {seed}, input {number}: {why}\n\n{told[-20000:]}',
                                         encoding='utf-8', errors='backslashreplace')
        tqdm.write(f'{target.name}, input {number}: {why}', file=sys.stderr)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _alarm(number: int, frame: object) -> None:
    raise TooLong('an input took longer than it may')


def _address_space() -> int:
    """Of this process now [bytes]."""
    return int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()


def format_rows(rows: Sequence[dict[str, object]]) -> str:
    """Table: what became of each target's inputs, and of all."""
    names = ('inputs', 'clean', 'accepted', 'crashes')
    total = {'target': 'all', **{name: sum(int(str(row[name])) for row in rows) for name in names}}
    lines = [f'{"target":<24} {"inputs":>8} {"clean errors":>13} {"accepted":>9} {"crashes":>8}']
    lines += [f'{row["target"]:<24} {row["inputs"]:>8,} {row["clean"]:>13,} {row["accepted"]:>9,} {row["crashes"]:>8,}'
              for row in (*rows, total)]
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
