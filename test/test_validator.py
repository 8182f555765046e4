"""A user's own function that judges plans: how it is found, what it may answer, and that it does not go on for ever."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from diffuser_core.trajectory import Channels, Plan
from diffuser_ros.validator import Review, Validated, Validator, ValidatorError, Verdict, load_validator

CHANNELS = Channels(('x', 'y'), ('m', 'm'))
PLAN = Plan(np.array([[0.0, 0.0], [1.0, 2.0]]), CHANNELS, 0.0, 0.1, {})
SEEN = {'x': 0.0, 'y': 0.0}


def judge(answer):
    return Validator(lambda plan, observation, goal: answer, 'mine')(PLAN, SEEN, None)


def write(folder, monkeypatch, text):
    """A module `checks` of the user's, in a folder where Python looks."""
    (folder / 'checks.py').write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, 'checks', raising=False)


@pytest.mark.parametrize('answer, verdict, text', [
    (True, Verdict.ACCEPT, ''), (np.True_, Verdict.ACCEPT, ''), (Verdict.ACCEPT, Verdict.ACCEPT, ''),
    (False, Verdict.REFUSE, 'mine: it refuses the plan'), (np.False_, Verdict.REFUSE, 'mine: it refuses the plan'),
    (Verdict.ANOTHER, Verdict.ANOTHER, 'mine: it asks for another plan'),
    ((Verdict.ANOTHER, 'too close'), Verdict.ANOTHER, 'mine: too close'),
    ((False, 'two\nlines'), Verdict.REFUSE, 'mine: two lines'), ((True, 'fine'), Verdict.ACCEPT, 'mine: fine')])
def test_what_a_validator_may_answer(answer, verdict, text):
    assert judge(answer) == Review(verdict, text)


@pytest.mark.parametrize('answer', [
    None, 1, 0, 'accept', (), (True,), (True, None), (True, 'a', 'b'), [True, 'a'], np.array([True])])
def test_every_other_answer_refuses(answer):
    found = judge(answer)
    assert found.verdict is Verdict.REFUSE
    assert found.text == ('the validator mine must return a Verdict, True or False, alone or with a text, '
                          f'and returned {answer!r}')


def test_a_long_answer_is_cut():
    text = judge(np.zeros((40, 40))).text
    assert text.endswith('...') and len(text) < 200 and '\n' not in text


def test_an_exception_refuses_and_says_why():
    def validate(plan, observation, goal):
        return plan.values[0, 7] > 0.0
    found = Validator(validate, 'mine')(PLAN, SEEN, None)
    assert found.verdict is Verdict.REFUSE
    assert found.text.startswith('the validator mine failed: IndexError: ') and 'out of bounds' in found.text


def test_a_validator_gets_what_the_plan_was_made_from():
    seen = []
    Validator(lambda *given: seen.append(given), 'mine')(PLAN, SEEN, 'the goal')
    (plan, observation, goal), = seen
    assert (plan.channels, plan.t0, plan.step_dt, dict(observation), goal) == (CHANNELS, 0.0, 0.1, SEEN, 'the goal')
    np.testing.assert_array_equal(plan.values, PLAN.values)


@pytest.mark.parametrize('change', [lambda plan, seen, goal: plan.values.fill(9.0), lambda plan, seen, goal: seen.update(x=9.0)])
def test_a_validator_cannot_change_what_it_judges(change):
    before = PLAN.values.copy(), dict(SEEN)
    assert Validator(change, 'mine')(PLAN, SEEN, None).verdict is Verdict.REFUSE
    assert (PLAN.values == before[0]).all() and SEEN == before[1] and PLAN.values.flags.writeable


# Found by name

def test_a_validator_is_found_by_its_name(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, '''
class Box:
    def __call__(self, plan, observation, goal):
        return plan.values.max() < 3
    def inside(self, plan, observation, goal, extra=1):
        return False
box = Box()
''')
    assert load_validator('checks:box')(PLAN, SEEN, None) == Review(Verdict.ACCEPT, '')
    refused = Review(Verdict.REFUSE, 'checks:box.inside: it refuses the plan')
    assert load_validator('checks:box.inside')(PLAN, SEEN, None) == refused


@pytest.mark.parametrize('name', ['', 'checks', 'checks:', ':f', 'checks.f', 'a b:f', 'checks:f()', '../checks:f', 'a:b:c'])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(ValidatorError, match=r"named as in 'package\.module:function', got "):
        load_validator(name)


@pytest.mark.parametrize('text, name, words', [
    ('', 'no_such_package.checks:f', 'cannot be imported: ModuleNotFoundError'),
    ('def f(:', 'checks:f', 'cannot be imported: SyntaxError'),
    ('import sys; sys.exit(3)', 'checks:f', 'cannot be imported: SystemExit: 3'),
    ('1 / 0', 'checks:f', 'cannot be imported: ZeroDivisionError: division by zero'),
    ('', 'checks:f', "there is no validator checks:f: module 'checks' has no attribute 'f'"),
    ('f = 3', 'checks:f', 'the validator checks:f is int, which cannot be called'),
    ('class f:\n    def __init__(self, plan, observation, goal): pass', 'checks:f', 'is a class, not a function'),
    ('async def f(plan, observation, goal): pass', 'checks:f', 'is a coroutine, not a function'),
    ('def f(plan): pass', 'checks:f', 'must take a plan, an observation and a goal: too many positional arguments'),
    ('def f(plan, observation, goal, more): pass', 'checks:f', "an observation and a goal: missing a required argument: 'more'")])
def test_what_cannot_be_imported_or_called_is_refused(text, name, words, tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, text)
    with pytest.raises(ValidatorError) as caught:
        load_validator(name)
    assert words in str(caught.value) and '\n' not in str(caught.value)


# Another plan, but not for ever

def validated(answers, **settings):
    """Answers in turn, and the plans that were drawn for them."""
    given = iter(answers)
    return Validated(Validator(lambda plan, observation, goal: next(given), 'mine'), **settings)


def numbers():
    """Draws 1, 2, 3, ... each with a plan."""
    count = iter(range(1, 100))
    return lambda: SimpleNamespace(plan=PLAN, number=next(count))


@pytest.mark.parametrize('answers, drawn, accepted, text', [
    ([True], 1, True, ''), ([False], 1, False, 'mine: it refuses the plan'),
    ([Verdict.ANOTHER, True], 2, True, ''), ([Verdict.ANOTHER, (False, 'no')], 2, False, 'mine: no'),
    ([Verdict.ANOTHER, Verdict.ANOTHER, (True, 'at last')], 3, True, 'mine: at last'),
    ([(Verdict.ANOTHER, 'hm')] * 9, 3, False, 'no plan was accepted out of 3; mine: hm')])
def test_plans_are_drawn_until_one_is_accepted_or_refused(answers, drawn, accepted, text):
    choice = validated(answers).choose(numbers(), SEEN, None)
    assert (choice.drawn.number, choice.attempts, choice.accepted, choice.text) == (drawn, drawn, accepted, text)


def test_where_only_one_plan_may_be_drawn_another_is_a_refusal():
    assert not validated([Verdict.ANOTHER], most=1).choose(numbers(), SEEN, None).accepted
    with pytest.raises(ValueError, match='at least one plan'):
        validated([], most=0)


def test_without_a_validator_or_a_plan_there_is_nothing_to_object_to():
    assert Validated(None).choose(numbers(), SEEN, None).accepted
    assert validated([False]).review(None, SEEN, None, 1) == Review(Verdict.ACCEPT, '')


def test_the_plan_may_be_kept_elsewhere():
    choice = validated([True]).choose(lambda: ('motion', PLAN), SEEN, None, plan_of=lambda drawn: drawn[1])
    assert choice.accepted and choice.drawn[0] == 'motion'
