"""The table of the locomotion tasks: one command from nothing to rows, and what is done is not done again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffuser_core import cli
from diffuser_core.checkpoint import WEIGHTS, Checkpoint

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture
def table(monkeypatch, tmp_path):
    """`run(*words)`: the table in this process, and the verbs that it ran."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import locomotion_table

    verbs = []

    def here(_, *words):
        verbs.append(words)
        if cli.main(words):
            raise subprocess.CalledProcessError(2, ['python', *words])

    def run(*words):
        verbs.clear()
        monkeypatch.setattr(sys, 'argv', ['locomotion_table.py', '--out', str(tmp_path / 'table'), '--workers', '1', *words])
        return locomotion_table.main(), [' '.join(verb[:2]) for verb in verbs]

    monkeypatch.setattr(locomotion_table.Stages, 'run', here)
    return run


SMALL = ('--robots', 'hopper', '--qualities', 'medium', '--data-steps', '600', '--episodes', '1', '--validation-episodes', '1',
         '--policies', 'behaviour-medium', 'ours', '--backend', 'eager',
         '--planner', 'optimizer.steps=2', 'optimizer.batch=4', 'data.horizon=8', 'model.width=8',
         '--value', 'steps=2', 'batch=4')


def test_a_task_is_collected_learnt_and_scored_once(table, tmp_path, monkeypatch):
    code, verbs = table(*SMALL)
    assert code == 0 and [verb.split()[0] for verb in verbs] == [
        'collect', 'evaluate', 'collect', 'train', 'train', 'evaluate', 'evaluate', 'evaluate']
    rows = json.loads((tmp_path / 'table/table.json').read_text())
    assert [row['policy'] for row in rows] == ['data', 'behaviour-medium', 'ours']
    data, medium, ours = rows
    assert data['steps'] == 600 and 0 < data['return'] < 4000 and medium['return'] > ours['return']
    assert all(row['ci95'][0] <= row['score'] <= row['ci95'][1] and row['paper'] == 58.5 for row in rows[1:])
    made = Checkpoint.load(tmp_path / 'table/hopper_medium_0/checkpoint')
    assert made.value is not None and made.horizon == 8
    validated = [json.loads((tmp_path / f'table/hopper_medium_0/validation_{scale}/summary.json').read_text())
                 for scale in ('0', '0.1')]
    assert [summary['seed_start'] for summary in validated] == [5000, 5000]
    chosen = max(validated, key=lambda summary: summary['rows'][0]['score'])['settings']['guide_scale']
    assert ours['settings'] == [f'--guide-scale {chosen}']

    weights = tmp_path / 'table/hopper_medium_0/checkpoint' / WEIGHTS
    written = weights.stat().st_mtime_ns
    code, verbs = table(*SMALL)
    assert code == 0 and not any(verb.startswith('train') for verb in verbs)
    assert json.loads((tmp_path / 'table/table.json').read_text()) == rows
    assert written == weights.stat().st_mtime_ns


def test_a_stage_that_fails_ends_the_table_with_its_command(table, capsys):
    code, _ = table(*SMALL[:-2], 'steps=0')
    assert code == 2 and 'train --value' in capsys.readouterr().err.splitlines()[-1]
