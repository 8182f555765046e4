"""The Python on the pages about planning runs as it stands there, and does what its comments say."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def run(page, monkeypatch):
    """The names that a page's Python leaves behind: its blocks, one after the other, from nothing, in the project's folder."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / 'docs' / page).read_text()
    blocks = re.findall(r'^```python\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    assert blocks, f'{page} has no Python'
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, 'exec'), names)
    return names


def test_planning(monkeypatch):
    names = run('planning.md', monkeypatch)
    plan, warm, bent, goal = (names[n] for n in ('plan', 'warm', 'bent', 'goal'))
    assert len(plan.provenance['levels']) == 6 and not plan.provenance['warm']
    assert 1 <= len(warm.provenance['levels']) <= 3 and warm.provenance['warm'] and warm.t0 == names['dt']
    for made in (plan, warm, bent):
        assert made.horizon == 64 and np.array_equal(made.values[-1], goal.values[-1])
    assert bent.provenance['value'] <= 0.0 and np.isfinite(bent.provenance['guided_value'])


def test_guides(monkeypatch):
    names = run('guides.md', monkeypatch)
    plain = names['planner'].candidates(names['start'], count=32)
    assert abs(names['bent'].values[-1, 1] - 0.4) < np.mean([abs(plan.values[-1, 1] - 0.4) for plan in plain])
    assert names['chosen'].provenance['value'] == pytest.approx(
        -np.square(np.diff(names['chosen'].values, n=2, axis=0)).sum(), rel=1e-3)
    assert (names['fast'].values[0, -1], names['slow'].values[0, -1]) == pytest.approx((900.0, 300.0), rel=1e-4)
    assert np.abs(names['fast'].actions - names['slow'].actions).max() > 0.05


def test_safety(monkeypatch, capsys):
    names = run('safety.md', monkeypatch)
    printed = capsys.readouterr().out.strip()
    said = re.search(r'print\(sent\.text\) +# (.*), \.\.\.$', (ROOT / 'docs/safety.md').read_text(), re.MULTILINE)[1]
    assert printed.startswith(said) and printed.endswith('acceleration limit 20 rad/s^2')
    stopping, now = names['stopping'], names['now']
    assert (stopping[-1] == stopping[-2]).all() and stopping[-1, 0] > now.position[0] and (stopping[:, 1:] == 0.0).all()


def test_the_pages_name_files_that_exist():
    """Links to other pages and pictures, and the commands' scripts."""
    for page in (ROOT / 'docs').glob('*.md'):
        text = page.read_text()
        for target in re.findall(r'\]\(([\w./-]+)\)', text):
            assert (page.parent / target).exists(), f'{page.name} links to {target}'
        for script in re.findall(r'python ((?:examples|benchmarks)/\w+\.py)', text):
            assert (ROOT / script).exists(), f'{page.name} runs {script}'
