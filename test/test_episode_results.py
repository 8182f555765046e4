"""What the episode node is asked for."""

from pathlib import Path

import pytest

from diffuser_core.envs.stacking_goal import GoalError
from diffuser_core.envs.stacking_tasks import TASKS, draw_task
from diffuser_ros.episode_results import Settings


def settings(task, *relations):
    return Settings(1, 3, task, relations, Path('unused'), False, False, '')


@pytest.mark.parametrize('task', TASKS)
def test_an_evaluation_task_is_that_of_the_seed(task):
    asked = settings(task)
    assert asked.drawn(3) == draw_task(task, 3) and asked.drawn(4) == draw_task(task, 4)
    assert asked.goal == task


def test_relations_of_a_user_are_scored_by_their_share():
    asked = settings('relations', 'red on green', 'blue on red')
    drawn = asked.drawn(3)
    assert drawn == asked.drawn(4) and drawn.goal.task == 'relations' and drawn.reset is None
    assert drawn.score({(0, 1)}) == 50.0 and drawn.score({(0, 1), (2, 0)}) == 100.0
    assert asked.goal == drawn.describe() == 'red on green, blue on red'


@pytest.mark.parametrize(('given', 'message'), [
    (('stack',), "unknown task 'stack'; there are unconditional, conditional, rearrangement and relations"),
    (('relations',), "the task 'relations' needs at least one relation"),
    (('relations', 'red on green', 'green on red'), 'the relations form a cycle'),
    (('conditional', 'red on green'), "the task 'conditional' takes no relations"),
])
def test_what_cannot_be_asked_for_is_refused(given, message):
    with pytest.raises(GoalError, match=message):
        settings(*given)
