"""The moves of the rules against the least number of moves, found by breadth-first search over all arrangements."""

import itertools
from collections import deque

import numpy as np
from test_stacking_moves import arrangements, centres_of

from diffuser_core.envs.stacking import standing_relations, tower_relations
from diffuser_core.envs.stacking_tasks import MOST_MOVES, draw_task, moves_to


def as_set(stacks):
    """An arrangement (stacks, bottom to top) as something that can be compared: stacks have no order among themselves."""
    return frozenset(tuple(stack) for stack in stacks if stack)


def relations(arrangement):
    return {pair for stack in arrangement for pair in zip(stack[1:], stack)}


def neighbours(arrangement):
    """Arrangements that one move makes: a top block on the ground, or on another stack."""
    for stack in arrangement:
        others = arrangement - {stack}
        yield as_set([*others, stack[:-1], stack[-1:]])
        for other in others:
            yield as_set([*(others - {other}), stack[:-1], (*other, stack[-1])])


def distances(goal):
    """Least number of moves to `goal` (relations) from every arrangement, counted from where it stands outwards."""
    starts = {as_set(stacks) for stacks in arrangements()}
    found = {start: 0 for start in starts if set(goal) <= relations(start)}
    waiting = deque(found)
    while waiting:
        arrangement = waiting.popleft()
        for before in neighbours(arrangement):  # a move can be taken back by a move
            if before not in found:
                found[before] = found[arrangement] + 1
                waiting.append(before)
    assert found.keys() == starts
    return found


def goals():
    """Every set of one to three relations that can stand, in every building order."""
    return {pairs for order in itertools.permutations(range(4)) for count in (1, 2, 3)
            for pairs in itertools.combinations(tower_relations(order), count)}


def test_the_rules_take_the_least_number_of_moves_but_for_one_kind_of_start():
    stacks_of = {as_set(stacks): stacks for stacks in arrangements()}
    assert len(stacks_of) == 73 and len(goals()) == 84
    for goal in goals():
        for arrangement, least in distances(goal).items():
            made = len(moves_to(goal, centres_of(stacks_of[arrangement]), most=9))
            if made != least:  # two stacks of two, two pairs apart: there one block could have gone straight to its place
                assert (least, made) == (3, 4)
                assert sorted(map(len, arrangement)) == [2, 2] and len({block for pair in goal for block in pair}) == 4


def test_rearrangements_need_as_many_moves_as_they_are_counted():
    for seed in range(200):
        task = draw_task('rearrangement', seed)
        centres = np.array(task.reset['blocks'])[:, :3]
        standing = standing_relations(centres, np.zeros(4), np.zeros(4))
        (arrangement,) = {start for start in map(as_set, arrangements()) if relations(start) == standing}
        least = distances(task.goal.relations)[arrangement]
        assert 1 <= least == len(moves_to(task.goal.relations, centres)) <= MOST_MOVES
