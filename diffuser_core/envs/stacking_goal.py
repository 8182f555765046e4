"""What a user may ask of the stacking robot. Loads neither torch nor a simulator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffuser_core.envs.goals import GoalError
from diffuser_core.envs.stacking import BLOCKS, Relation, format_relation, parse_relation, tallest_chain

__all__ = ['TASKS', 'GoalError', 'StackingGoal']

TASKS = ('stack', 'relations')


@dataclass(frozen=True)
class StackingGoal:
    """What shall stand at the end: 'stack' = a tower as tall as possible, 'relations' = every pair, in building order."""

    task: str
    relations: tuple[Relation, ...] = ()

    @classmethod
    def parse(cls, task: str, relations: Sequence[str]) -> StackingGoal:
        """From the words of a user; GoalError naming an unknown task or block, a contradiction or a cycle."""
        if task not in TASKS:
            raise GoalError(f'unknown task {task!r}; this robot knows {", ".join(TASKS)}')
        if task == 'stack':
            if relations:
                raise GoalError("the task 'stack' takes no relations; use the task 'relations' for a given arrangement")
            return cls(task)
        if not relations:
            raise GoalError("the task 'relations' needs at least one relation, for example 'red on green'")
        try:
            pairs = list(dict.fromkeys(parse_relation(text) for text in relations))
        except ValueError as error:
            raise GoalError(str(error)) from error
        for n, (upper, lower) in enumerate(pairs):
            for other_upper, other_lower in pairs[:n]:
                if other_upper == upper:
                    raise GoalError(f'{BLOCKS[upper]} cannot stand on both {BLOCKS[other_lower]} and {BLOCKS[lower]}')
                if other_lower == lower:
                    raise GoalError(f'{BLOCKS[lower]} cannot carry both {BLOCKS[other_upper]} and {BLOCKS[upper]}')
        ordered: list[Relation] = []
        waiting = pairs
        while waiting:
            uppers = {upper for upper, _ in waiting}
            ready = [pair for pair in waiting if pair[1] not in uppers]
            if not ready:
                raise GoalError(f'the relations form a cycle: {", ".join(map(format_relation, waiting))}')
            ordered += ready
            waiting = [pair for pair in waiting if pair not in ready]
        return cls(task, tuple(ordered))

    def reached(self, standing: Iterable[Relation]) -> bool:
        """Whether the relations that stand fulfil this goal."""
        if self.task == 'stack':
            return tallest_chain(standing) == len(BLOCKS) - 1
        return set(self.relations) <= set(standing)
