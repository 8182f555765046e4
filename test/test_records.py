"""Records of episodes: what is followed from tick to tick, and why an episode failed."""

import pytest

from diffuser_core.envs.stacking_tasks import draw_task
from diffuser_core.evaluate.records import FAILURES, MISSED_TICKS, EpisodeWatch, failure_class

FAILED = {'score': 0.0, 'best_score': 0.0, 'held': None, 'goal': ['red on green', 'blue on red'], 'relations': [],
          'start_relations': [], 'empty_grip_ticks': 0}


@pytest.mark.parametrize(('failure', 'changes'), [
    (None, {'score': 100.0, 'best_score': 100.0}),
    (None, {'score': 100.0, 'best_score': 100.0, 'held': 'yellow', 'empty_grip_ticks': 50}),
    ('collapsed tower', {'best_score': 50.0}),
    ('collapsed tower', {'best_score': 50.0, 'held': 'red', 'relations': ['green on red'], 'empty_grip_ticks': 50}),
    ('still holding', {'held': 'red', 'relations': ['green on blue'], 'empty_grip_ticks': 50}),
    ('wrong order', {'relations': ['green on red'], 'empty_grip_ticks': 50}),
    ('wrong order', {'relations': ['red on green', 'yellow on red'], 'score': 50.0, 'best_score': 50.0}),
    ('missed grasp', {'empty_grip_ticks': MISSED_TICKS, 'relations': ['red on green'], 'score': 50.0, 'best_score': 50.0}),
    ('missed grasp', {'empty_grip_ticks': MISSED_TICKS, 'goal': [], 'relations': ['green on red']}),
    ('time out', {'empty_grip_ticks': MISSED_TICKS - 1, 'relations': ['red on green'], 'score': 50.0, 'best_score': 50.0}),
    ('time out', {'goal': [], 'relations': ['green on red'], 'score': 100 / 3, 'best_score': 100 / 3}),
    ('nothing built', {}),
    ('nothing built', {'relations': ['blue on yellow'], 'start_relations': ['blue on yellow']}),
])
def test_the_first_class_that_applies_is_the_failure(failure, changes):
    record = {**FAILED, **changes}
    assert failure_class(record) == failure
    assert failure is None or failure in FAILURES


def finished(watch):
    return watch.record(legacy_score=0.0, reached_at=None, ticks=5, replans=4, late_ticks=0, latencies=[], displaced=None)


def test_a_watch_keeps_the_best_score_and_the_last_state():
    task = draw_task('conditional', 3)
    first, second, third = task.goal.relations
    watch = EpisodeWatch(task, 3, [])
    for standing in ([first], [first, second], [first], [first, third]):
        watch.see(standing, None)
    record = finished(watch)
    assert record['score'] == record['best_score'] == pytest.approx(200 / 3) and record['failure'] == 'time out'
    watch.see([first], 'red')
    record = finished(watch)
    assert record['score'] == pytest.approx(100 / 3) and record['held'] == 'red' and record['failure'] == 'collapsed tower'
    assert len(record['relations']) == 1 and record['start_relations'] == []
    assert record['latency_ms'] == {'p50': None, 'p99': None}


def test_closing_on_nothing_counts_from_the_last_block_held():
    watch = EpisodeWatch(draw_task('unconditional', 0), 0, [])

    def tick(closed, held):
        watch.command(closed)
        watch.see([], held)

    for _ in range(12):
        tick(True, None)
    tick(False, None)
    assert finished(watch)['empty_grip_ticks'] == 12 and finished(watch)['failure'] == 'missed grasp'
    tick(True, 'red')
    for _ in range(20):
        tick(True, 'red')
    tick(False, None)
    assert finished(watch)['empty_grip_ticks'] == 0
    tick(True, None)
    tick(True, None)
    assert finished(watch)['empty_grip_ticks'] == 2


def test_an_arrangement_left_as_it_was_is_nothing_built():
    task = draw_task('rearrangement', 0)
    start = {(1, 2), (2, 3)} - set(task.goal.relations)
    watch = EpisodeWatch(task, 0, start)
    watch.see(start, None)
    assert finished(watch)['failure'] == 'nothing built'
