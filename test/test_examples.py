"""Every example runs as its first lines say, in a process of its own, and prints and writes what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffuser_core import Checkpoint

ROOT = Path(__file__).parents[1]


def guides(lines, folder):
    assert [line.split(':')[0] for line in lines] == ['no guide', 'leftwards', 'on second', 'both']
    angle, away = ([float(line.split()[n]) for line in lines] for n in (-11, -6))
    assert angle[1] > angle[0] + 0.2 and away[2] < away[0] - 0.15  # 0.46 and 0.35
    assert angle[3] > angle[0] + 0.2 and away[3] < away[0] - 0.15


def properties_shown(lines, folder):
    picture = (folder / 'properties.png').read_bytes()
    assert picture.startswith(b'\x89PNG') and len(picture) > 20_000
    beginnings = ('long horizon', 'composition', 'horizon', 'guide', 'seam', 'resample', 'warm start')
    assert all(any(re.match(f'{b}.*[0-9]', line) for line in lines) for b in beginnings)


def properties_trained(lines, folder):
    assert [line.split(':')[0] for line in lines] == ['wall', 'lines', 'lines_window']
    for name in ('wall', 'lines', 'lines_window'):
        made = Checkpoint.load(folder / f'properties_{name}').provenance
        assert made['steps'] == 3 and made['command'] == 'python examples/properties.py train --steps 3'


def denoised(lines, folder):
    from PIL import Image
    assert lines[-1].startswith('7 pictures of 2 plans')
    with Image.open(folder / 'denoising.gif') as animation, Image.open(folder / 'denoising.png') as still:
        assert animation.n_frames == 7 and still.width == 4 * animation.width
        assert (folder / 'denoising.gif').stat().st_size < 1e6


def validators(lines, folder):
    found = [re.fullmatch(r'(\w+): (\d+) of 20 accepted, (\d+) plans drawn', line).groups() for line in lines[:2]]
    assert [name for name, _, _ in found] == ['in_the_plane', 'around_the_disc']
    assert [int(accepted) for _, accepted, _ in found] == [20, 20] and int(found[1][2]) > int(found[0][2]) >= 20
    assert re.fullmatch(r'validators:around_the_disc: it comes within 0\.\d+ m of \(-0\.6, 0\.1\) after .* to be kept', lines[2])


RUNS = {'denoising.py': [(('--size', 'umaze', '--steps', '6', '--plans', '2'), denoised)],
        'guides.py': [((), guides)],
        'properties.py': [(('show', '--seeds', '2'), properties_shown), (('train', '--steps', '3'), properties_trained)],
        'validators.py': [((), validators)]}


def test_no_example_is_left_out():
    assert {path.name for path in (ROOT / 'examples').glob('*.py')} == set(RUNS)


@pytest.mark.parametrize(('name', 'arguments', 'check'), [
    pytest.param(name, *run, id=' '.join([name, *run[0][:1]])) for name, runs in RUNS.items() for run in runs])
def test_example(name, arguments, check, tmp_path):
    out = ('--out', str(tmp_path)) if arguments else ()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])  # an example runs with this checkout
    done = subprocess.run([sys.executable, ROOT / 'examples' / name, *arguments, *out], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': path})
    assert done.returncode == 0, done.stderr
    check(done.stdout.splitlines(), tmp_path)
