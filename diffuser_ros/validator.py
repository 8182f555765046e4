"""A user's own say on plans: a Python function that accepts a plan, asks for another one, or refuses.

    def validate(plan: Plan, observation: Mapping[str, float], goal) -> Verdict

`plan` is in physical units, `observation` what it was made from, `goal` what the robot's policy was given. Besides a `Verdict` it
may return True (accept) or False (refuse), or any of these with a text for the operator, `(verdict, text)`.
"""

from __future__ import annotations

import enum
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np

from diffuser_core.trajectory import Plan

__all__ = ['Choice', 'Review', 'Validated', 'Validator', 'ValidatorError', 'Verdict', 'load_validator']

T = TypeVar('T')


class ValidatorError(ValueError):
    """A validator that cannot be used; the message is one sentence that names it and says why."""


class Verdict(enum.Enum):
    """What is to be done with a plan: follow it, draw another one, or hold."""

    ACCEPT = 'accept'
    ANOTHER = 'another'
    REFUSE = 'refuse'


@dataclass(frozen=True)
class Review:
    """A verdict on a plan, and why, as one sentence; empty for a plan that is accepted without a word."""

    verdict: Verdict
    text: str


class Validator:
    """A user's function, made safe to call: what it may return and what goes wrong in it becomes a verdict.

    name  how messages call it
    """

    def __init__(self, function: Callable[[Plan, Mapping[str, float], Any], Any], name: str) -> None:
        self.name = name
        self._function = function

    def __call__(self, plan: Plan, observation: Mapping[str, float], goal: Any) -> Review:
        """The verdict on a plan. An exception, and an answer that is none, refuse. The function cannot change its input."""
        values = plan.values.view()
        values.setflags(write=False)
        try:
            answer = self._function(replace(plan, values=values), MappingProxyType(dict(observation)), goal)
        except Exception as error:  # whatever goes wrong in it, the plan has not been accepted
            what = ' '.join(f'{type(error).__name__}: {error}'.split())
            return Review(Verdict.REFUSE, f'the validator {self.name} failed: {what}')
        verdict, text = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, '')
        if isinstance(verdict, (bool, np.bool_)):
            verdict = Verdict.ACCEPT if verdict else Verdict.REFUSE
        if not isinstance(verdict, Verdict) or not isinstance(text, str):
            return Review(Verdict.REFUSE, f'the validator {self.name} must return a Verdict, True or False, alone or with a '
                                          f'text, and returned {_shortly(answer)}')
        if not text and verdict is not Verdict.ACCEPT:
            text = 'it asks for another plan' if verdict is Verdict.ANOTHER else 'it refuses the plan'
        return Review(verdict, f'{self.name}: {" ".join(text.split())}' if text else '')


def _shortly(answer: object) -> str:
    """An answer as one short line."""
    text = ' '.join(repr(answer).split())
    return text if len(text) <= 80 else f'{text[:77]}...'


def load_validator(name: str) -> Validator:
    """The validator that is called `name`, as in 'package.module:function'; ValidatorError if it cannot be imported or called."""
    module_name, colon, path = name.partition(':')
    parts = [*module_name.split('.'), *path.split('.')]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValidatorError(f"a validator is named as in 'package.module:function', got {name!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        what = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValidatorError(f'the module of the validator {name} cannot be imported: {what}') from error
    for part in path.split('.'):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ValidatorError(f'there is no validator {name}: {" ".join(str(error).split())}') from error
    if not callable(found):
        raise ValidatorError(f'the validator {name} is {type(found).__name__}, which cannot be called')
    if inspect.isclass(found) or inspect.iscoroutinefunction(found):
        kind = 'a class' if inspect.isclass(found) else 'a coroutine'
        raise ValidatorError(f'the validator {name} is {kind}, not a function of a plan, an observation and a goal')
    try:
        inspect.signature(found).bind(None, None, None)
    except TypeError as error:
        raise ValidatorError(f'the validator {name} must take a plan, an observation and a goal: {error}') from error
    except ValueError:
        pass  # written in C, without a signature to look at
    return Validator(found, name)


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What came of drawing plans until one was accepted or refused.

    drawn     what was drawn last; to be followed only if it was accepted
    accepted  whether it was
    text      what the validator said last
    attempts  how many were drawn
    """

    drawn: T
    accepted: bool
    text: str
    attempts: int


@dataclass(frozen=True)
class Validated:
    """A validator that may ask for another plan, but not for ever.

    validator  None: everything is accepted
    most       how many plans may be drawn for one decision
    """

    validator: Validator | None
    most: int = 3

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f'at least one plan has to be drawn, got {self.most}')

    def review(self, plan: Plan | None, observation: Mapping[str, float], goal: Any, attempts: int) -> Review:
        """The verdict on the plan that was drawn as number `attempts`, counted from 1: where it asks for another one and no more
        may be drawn, it refuses. Without a plan there is nothing to object to: the robot is stopped, or held."""
        if self.validator is None or plan is None:
            return Review(Verdict.ACCEPT, '')
        found = self.validator(plan, observation, goal)
        if found.verdict is Verdict.ANOTHER and attempts >= self.most:
            return Review(Verdict.REFUSE, f'no plan was accepted out of {attempts}; {found.text}')
        return found

    def choose(self, draw: Callable[[], T], observation: Mapping[str, float], goal: Any,
               plan_of: Callable[[T], Plan | None] = attrgetter('plan')) -> Choice[T]:
        """Draw until the validator accepts or refuses; `plan_of` gives the plan of what `draw` drew."""
        attempts = 0
        while True:
            attempts += 1
            drawn = draw()
            found = self.review(plan_of(drawn), observation, goal, attempts)
            if found.verdict is not Verdict.ANOTHER:
                return Choice(drawn, found.verdict is Verdict.ACCEPT, found.text, attempts)
