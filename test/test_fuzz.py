"""The fuzzer: inputs follow from the seed, mutations reach every format, and every kind of crash is found, saved and counted."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'

TOY = '''
import os, sys
sys.path.insert(0, {benchmarks!r})
import fuzz_targets

def read(data, folder):
    kind = data[:1]
    if kind == b'v':
        raise ValueError('the file toy is bad')
    if kind == b'n':
        raise ValueError('bad')
    if kind == b'l':
        raise ValueError('the file toy is ' + 2000 * 'b')
    if kind == b'k':
        raise KeyError('toy')
    if kind == b'm':
        bytearray(1 << 32)
    if kind == b't':
        while True:
            try:
                while True:
                    pass
            except Exception:
                pass
    if kind == b'd':
        os._exit(7)

def mutate(rng, data):
    return rng.choice((b'g', b'v', {kinds}))

fuzz_targets.TARGETS = (fuzz_targets.Target('toy', 1.0, lambda folder: [b'good'], mutate, read, ValueError, 'toy'),)
import fuzz

if __name__ == '__main__':
    sys.exit(fuzz.main(sys.argv[1:]))
'''


@pytest.fixture
def targets(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz_targets
    return fuzz_targets


def run(tmp_path, kinds, inputs):
    """A process that fuzzes the toy; its row of the summary, and the inputs that it saved."""
    script, out = tmp_path / 'toy.py', tmp_path / 'out'
    script.write_text(TOY.format(benchmarks=str(BENCHMARKS), kinds=kinds))
    done = subprocess.run([sys.executable, script, '--out', out, '--inputs', str(inputs), '--seconds', '0.1'],
                          capture_output=True, text=True, check=False)
    (row,) = json.loads((out / 'summary.json').read_text())['rows']
    return done, row, {path.stem: path.with_suffix('.bin').read_bytes() for path in out.glob('*.txt')}


def test_every_kind_of_crash_is_found_and_its_first_input_is_saved(tmp_path):
    done, row, saved = run(tmp_path, "b'n', b'l', b'k', b'm', b't', rng.choice((b'v', b'g', b'd'))", 40)
    assert done.returncode == 1, done.stderr
    assert {name.removeprefix('toy-').split('-in-')[0]: data[:1] for name, data in saved.items()} == {
        'ValueError-that-does-not-name-toy': b'n', 'ValueError-whose-message-is-not-a-readable-line': b'l', 'KeyError': b'k',
        'MemoryError': b'm', 'TooLong': b't', 'end-with-code-7': b'd'}
    assert row['inputs'] == 40 == row['clean'] + row['accepted'] + row['crashes'] and min(row['clean'], row['accepted']) > 0
    assert row['crashes'] > len(saved)  # all are counted, one of each is kept
    assert done.stdout.splitlines()[0].split() == ['target', 'inputs', 'clean', 'errors', 'accepted', 'crashes']
    assert done.stdout.splitlines()[1].split() == ['toy', '40', *(str(row[name]) for name in ('clean', 'accepted', 'crashes'))]


def test_without_a_crash_it_ends_well(tmp_path):
    done, row, saved = run(tmp_path, "b'v'", 30)
    assert done.returncode == 0, done.stderr
    assert (row['inputs'], row['crashes'], saved) == (30, 0, {}) and min(row['clean'], row['accepted']) > 0


def test_inputs_follow_from_the_seed_and_differ(targets, tmp_path):
    for target in targets.TARGETS:
        folder = tmp_path / target.name.replace(' ', '-')
        folder.mkdir()
        seeds = target.seeds(folder)
        first, again, other = ([target.input(seed, number, seeds) for number in range(40)] for seed in (0, 0, 1))
        assert first == again and first[:len(seeds)] == list(seeds)
        assert len(set(first)) > 20 and sum(a != b for a, b in zip(first, other)) > 20
        for valid in seeds:
            target.read(valid, folder)


def test_an_error_is_clean_if_it_is_a_readable_line_of_the_right_class_that_names_the_file(targets):
    target = next(t for t in targets.TARGETS if t.name == 'demonstrations')
    assert target.why_unclean(ValueError('main_data.hdf5 is bad')) == ''
    assert target.why_unclean(UnicodeDecodeError('utf-8', b'', 0, 1, 'main_data.hdf5')) == ''
    assert target.why_unclean(KeyError('main_data.hdf5')) == 'KeyError'
    assert target.why_unclean(ValueError('bad')) == 'ValueError that does not name main_data.hdf5'
    for message in ('', ' ', 'main_data.hdf5\nis bad', 'main_data.hdf5' * 100):
        assert target.why_unclean(ValueError(message)) == 'ValueError whose message is not a readable line'


@pytest.mark.parametrize('data', [b'', b'x', b'a: 1\n'])
@pytest.mark.parametrize('name', ['mutated_bytes', 'mutated_text'])
def test_mutations_take_short_inputs(targets, name, data):
    import fuzz_mutations
    mutate = getattr(fuzz_mutations, name)
    assert len({mutate(random.Random(seed), data) for seed in range(200)}) > 1


def test_wrong_numbers_are_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz
    with pytest.raises(SystemExit) as stopped:
        fuzz.main(['--inputs', '0'])
    assert stopped.value.code == 2 and 'must be positive, got 0' in capsys.readouterr().err
