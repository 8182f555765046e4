"""The table of the locomotion tasks: one command from nothing to rows, and what is done is not done again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
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
         '--policies', 'behaviour-medium', 'ours', '--aims', '1', '1.5', '--backend', 'eager',
         '--planner', 'optimizer.steps=2', 'optimizer.batch=4', 'data.horizon=8', 'model.width=8')


def test_a_task_is_collected_learnt_and_scored_once(table, tmp_path, monkeypatch):
    code, verbs = table(*SMALL)
    assert code == 0 and [verb.split()[0] for verb in verbs] == [
        'collect', 'evaluate', 'train', 'evaluate', 'evaluate']
    assert verbs[-2:] == ['evaluate locomotion-aim', 'evaluate locomotion']
    rows = json.loads((tmp_path / 'table/table.json').read_text())
    assert [row['policy'] for row in rows] == ['data', 'behaviour-medium', 'ours']
    data, medium, ours = rows
    assert data['steps'] == 600 and 0 < data['return'] < 4000 and medium['return'] > ours['return']
    assert all(row['ci95'][0] <= row['score'] <= row['ci95'][1] and row['paper'] == 58.5 for row in rows[1:])
    made = Checkpoint.load(tmp_path / 'table/hopper_medium_0/planner/checkpoint')
    assert made.value is None and 'return' in made.channels.names and made.horizon == 8
    assert made.provenance['config']['data']['tilt'] == 1.0 and made.provenance['config']['data']['returns'] == 0.99
    validated = [json.loads((tmp_path / f'table/hopper_medium_0/planner/validation/aim_{aim}/summary.json').read_text())
                 for aim in ('1', '1.5')]
    assert [summary['seed_start'] for summary in validated] == [5000, 5000]
    chosen = max(validated, key=lambda summary: summary['rows'][0]['ci95'][0])['settings']['aim']
    assert made.aim == chosen
    assert ours['settings'] == [f'--aim {chosen:g}'] and ours['training_seeds'] == [pytest.approx(ours['score'])]

    weights = tmp_path / 'table/hopper_medium_0/planner/checkpoint' / WEIGHTS
    written = weights.stat().st_mtime_ns
    code, verbs = table(*SMALL)
    assert code == 0
    assert json.loads((tmp_path / 'table/table.json').read_text()) == rows
    assert written == weights.stat().st_mtime_ns

    code, verbs = table(*SMALL, '--training-seeds', '0', '1')
    assert code == 0 and len(verbs) == 8  # as before, and the second seed's planner is trained, its aim chosen, and it is scored
    _, again, both = json.loads((tmp_path / 'table/table.json').read_text())
    assert again == medium and both['episodes'] == 2 and len(both['settings']) == 2
    assert both['training_seeds'][0] == ours['score'] and np.mean(both['training_seeds']) == pytest.approx(both['score'])


def test_a_behaviour_policys_episodes_count_once_for_each_task(table, tmp_path):
    code, _ = table(*SMALL, '--qualities', 'medium', 'medium-expert', '--policies', 'behaviour-medium')
    rows = json.loads((tmp_path / 'table/table.json').read_text())
    assert code == 0 and [row['policy'] for row in rows] == ['data', 'behaviour-medium'] * 2
    assert rows[1]['episodes'] == rows[3]['episodes'] == 1 and rows[1]['score'] == rows[3]['score']


def test_guided_planners_have_a_return_predictor_and_a_stage_that_fails_ends_the_table(table, tmp_path, capsys):
    guided = (*SMALL, '--policies', 'guided', '--guide-scales', '0.1', '--value')
    code, verbs = table(*guided, 'steps=0')
    assert code == 2 and 'train --value' in capsys.readouterr().err.splitlines()[-1]
    code, verbs = table(*guided, 'steps=2', 'batch=4')
    assert code == 0 and [verb.split()[0] for verb in verbs] == ['collect', 'train', 'train', 'evaluate', 'evaluate']
    made = Checkpoint.load(tmp_path / 'table/hopper_medium_0_guided/checkpoint')
    assert made.value is not None and made.channels.names[-1] == 'obs.10'
    (row,) = json.loads((tmp_path / 'table/table.json').read_text())[1:]
    assert row['settings'] == ['--candidates 8 --steps 5 --guide-scale 0.1']
