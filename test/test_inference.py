"""Where plans are made: in the tick, late, in a thread, in a process; and the session that they all run."""

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import untrained_maze

from diffuser_core.budget import SamePace
from diffuser_core.checkpoint import Checkpoint
from diffuser_core.envs.goals import GoalError
from diffuser_core.envs.maze_layout import CHANNELS
from diffuser_core.envs.maze_motion import MazeGoal
from diffuser_core.envs.policies import make_policy
from diffuser_core.envs.policy_settings import PolicySettings
from diffuser_core.latency import Injected
from diffuser_core.sampling import Sampling
from diffuser_core.trajectory import Channels, Plan
from diffuser_ros.inference import Beside, Change, Inline, Late, PlanningError, Ready, Request, Session, SessionSettings
from diffuser_ros.inference_process import PlanningProcess
from diffuser_ros.validator import Validated, Validator, Verdict

ROOT = Path(__file__).parents[1]
START = dict(zip(CHANNELS, (1.0, 1.0, 0.0, 0.0)))
GOAL = Change('goal', MazeGoal(3.0, 1.0), START, epoch=1)
X = Channels(('x',), ('m',))


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """A planning process finds the code that is tested."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT))


def save_maze(folder):
    checkpoint = untrained_maze()
    provenance = {**checkpoint.provenance, 'config': {'name': 'maze2d_umaze_untrained'}}
    replace(checkpoint, provenance=provenance).save(folder)
    return folder


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    folder = save_maze(tmp_path_factory.mktemp('inference') / 'maze')
    return SessionSettings(PolicySettings('gym', str(folder), seed=3, sampling=Sampling(4, 2)))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def parent(folder):
    """The id of a process's parent, 0 if it has ended meanwhile."""
    try:
        return int((folder / 'stat').read_text().rpartition(')')[2].split()[1])
    except OSError:
        return 0


def wait_for(condition, what, deadline=60.0):
    end = time.monotonic() + deadline
    while not (found := condition()):
        assert time.monotonic() < end, f'waited {deadline:g} s for {what}'
        time.sleep(0.005)
    return found


@dataclass(frozen=True)
class Counted:
    """A motion that is its number."""

    number: int
    plan: Plan
    waits: bool = False

    @property
    def shown(self):
        return self.plan

    def begun(self, now):
        return self


class Counting:
    """A policy whose plans say how often it has planned; tells what it is told."""

    def __init__(self):
        self.replans, self.told, self.error, self.seen_threads = 0, [], None, []
        self.go_on = threading.Event()
        self.go_on.set()

    def replan(self, observation, now, delay=0.0, budget=None):
        import torch
        self.seen_threads.append(torch.get_num_threads())
        assert self.go_on.wait(60.0)
        if self.error:
            raise self.error
        self.replans += 1
        self.told.append(('replan', now, delay))
        return Counted(self.replans, Plan(np.full((4, 1), float(self.replans)), X, now, 0.1, {}))

    def begin(self, now):
        self.told.append(('begin', now))

    def adopt(self, motion):
        self.told.append(('adopt', None if motion is None else motion.number))

    def set_goal(self, goal, observation):
        if goal == 'nowhere':
            raise GoalError('that is nowhere')
        self.told.append(('goal', goal))

    def clear_goal(self):
        self.told.append('clear')

    def reset(self, seed=0):
        self.replans = 0
        self.told.append(('reset', seed))


def ask(number, now=0.0, **more):
    return Request(number, 0, {}, now, **more)


# The session


def test_a_session_does_what_it_is_told_in_order():
    policy = Counting()
    session = Session(policy)
    session.change(Change('reset', seed=7))
    session.change(Change('goal', 'there'))
    result = session.answer(ask(1, 2.0, delay=0.3, began=1.9))
    assert (result.motion.number, result.why, result.refused, result.replans) == (1, '', False, 1)
    session.change(Change('clear'))
    assert policy.told == [('reset', 7), ('goal', 'there'), ('begin', 1.9), ('replan', 2.0, 0.3), 'clear']


def test_what_goes_wrong_is_told_in_the_result():
    policy = Counting()
    policy.error = FloatingPointError('the network returned a plan with non-finite values')
    result = Session(policy).answer(ask(1))
    assert result.motion is None and not result.refused
    assert result.why == 'planning failed: the network returned a plan with non-finite values'


@pytest.mark.parametrize('verdicts, followed, told', [
    ([Verdict.ACCEPT], 2, []),
    ([Verdict.ANOTHER, Verdict.ACCEPT], 3, [('adopt', 1)]),
    ([Verdict.REFUSE], None, [('adopt', 1)]),
    ([Verdict.ANOTHER] * 3, None, [('adopt', 1)] * 3)])
def test_plans_that_are_not_accepted_were_never_followed(verdicts, followed, told):
    answers = [Verdict.ACCEPT, *verdicts]
    seen = []

    def validate(plan, observation, goal):
        seen.append((plan.values[0, 0], goal))
        return answers.pop(0), 'the floor is wet'

    policy = Counting()
    session = Session(policy, Validated(Validator(validate, 'mine'), 3))
    session.change(Change('goal', 'there'))
    assert session.answer(ask(1)).motion.number == 1
    result = session.answer(ask(2))
    assert (None if result.motion is None else result.motion.number) == followed
    assert result.refused is (followed is None) and ('the floor is wet' in result.why) is result.refused
    assert [entry for entry in policy.told if entry[0] == 'adopt'] == told
    assert answers == [] and {goal for _, goal in seen} == {'there'}


def test_a_plan_that_was_cut_short_can_be_made_again(settings):
    def plan(budget):
        policy = make_policy(settings.policy)
        policy.set_goal(GOAL.goal, START)
        return policy.replan(START, 0.0, 0.0, budget).plan.values

    session = Session(make_policy(settings.policy))
    session.change(GOAL)
    result = session.answer(Request(1, 1, START, 0.0, budget=1e-9))
    assert result.pace == (False,) and len(result.motion.plan.provenance['levels']) == 1
    np.testing.assert_array_equal(plan(SamePace(result.pace)), result.motion.plan.values)
    assert np.abs(plan(None) - result.motion.plan.values).max() > 1e-3
    with pytest.raises(ValueError, match='takes more denoising steps'):
        plan(SamePace([]))


# In the tick


def test_inline_a_plan_is_there_at_once():
    inline = Inline(Session(Counting()))
    inline.offer(ask(1))
    assert not inline.busy and [r.motion.number for r in inline.results(0.0)] == [1] and inline.results(0.0) == []
    with pytest.raises(GoalError, match='nowhere'):
        inline.change(Change('goal', 'nowhere'))


def test_late_plans_come_when_their_simulated_delay_is_over_and_never_after_a_change():
    late = Late(Session(Counting()), Injected(delay=0.15))
    late.offer(ask(1, 1.0))
    assert late.busy and late.results(1.1) == []
    assert [r.motion.number for r in late.results(1.15)] == [1] and not late.busy
    late.offer(ask(2, 1.2))
    late.change(Change('goal', 'there'))
    assert not late.busy
    assert [(r.request.number, r.lost) for r in late.results(1.2)] == [(2, True)] and late.results(9.0) == []


# In a thread


@pytest.fixture
def beside():
    policy = Counting()
    beside = Beside(Session(policy), Ready(lambda goal: policy.set_goal(goal, {}) if goal == 'nowhere' else None), threads=3)
    yield beside, policy
    policy.go_on.set()
    beside.close()
    assert not [thread for thread in threading.enumerate() if thread.name == 'replan']


def test_nobody_waits_for_a_thread_that_plans_and_it_has_the_threads_it_was_given(beside):
    beside, policy = beside
    policy.go_on.clear()
    beside.offer(ask(1))
    beside.change(Change('goal', 'there'))
    beside.offer(ask(2))
    with pytest.raises(GoalError, match='nowhere'):
        beside.change(Change('goal', 'nowhere'))
    assert beside.busy and beside.results(0.0) == []
    policy.go_on.set()
    got = []
    wait_for(lambda: got.extend(beside.results(0.0)) or len(got) == 2, 'two plans')
    assert [result.request.number for result in got] == [1, 2] and not beside.busy
    assert [entry[0] for entry in policy.told] == ['replan', 'goal', 'replan'] and set(policy.seen_threads) == {3}


def test_a_change_that_fails_beside_the_ticks_is_told(beside):
    beside, policy = beside
    beside.ready = Ready()
    beside.change(Change('goal', 'nowhere', epoch=5))
    (result,) = wait_for(lambda: beside.results(0.0), 'what is wrong')
    assert result.motion is None and result.request.epoch == 5
    assert result.why == 'the goal cannot be pursued: that is nowhere' and policy.told == ['clear']


# In a process


@pytest.fixture
def process(settings):
    process = PlanningProcess(settings)
    yield process
    process.close()
    assert not alive(process.pid)


def plans(process, number, now=0.0, epoch=1):
    wait_for(lambda: not process.busy or process.results(0.0) is None, 'the process')
    process.offer(Request(number, epoch, START, now))
    return wait_for(lambda: process.results(0.0), 'a plan')[0]


def test_a_process_plans_as_this_one_would(process, settings):
    policy = make_policy(settings.policy)
    policy.set_goal(GOAL.goal, START)
    process.change(GOAL)
    for number in range(1, 4):
        result = plans(process, number, 0.05 * number)
        np.testing.assert_array_equal(result.motion.plan.values, policy.replan(START, 0.05 * number).plan.values)
        assert result.replans == number and result.motion.decide(START, 0.05 * number).actions.shape == (5, 2)
    with pytest.raises(GoalError, match='lies in a wall'):
        process.change(Change('goal', MazeGoal(0.0, 0.0), START))
    assert plans(process, 4).motion.plan.states[-1, :2].tolist() == [3.0, 1.0]


def test_a_process_that_is_killed_is_started_again_and_goes_on_with_its_goal(process):
    process.change(GOAL)
    assert plans(process, 1).motion is not None
    killed = process.pid
    os.kill(killed, signal.SIGKILL)
    assert wait_for(lambda: process.results(0.0) == [] and process.trouble, 'its death')
    assert process.trouble == 'the planning process has ended and is being started again' and process.busy
    wait_for(lambda: process.results(0.0) == [] and not process.trouble, 'its return')
    assert process.generation == 1 and process.pid != killed and not alive(killed)
    assert plans(process, 2).motion.plan.states[-1, :2].tolist() == [3.0, 1.0]


def test_a_process_goes_when_its_node_has_gone(settings):
    process = PlanningProcess(settings)
    process._connection.close()  # as when the node was killed
    assert process._process.wait(60.0) == 0


def test_a_process_that_cannot_start_says_why(tmp_path, settings):
    with pytest.raises(PlanningError, match=r'no checkpoint at .*nowhere'):
        PlanningProcess(SessionSettings(PolicySettings('gym', str(tmp_path / 'nowhere'))))
    with pytest.raises(PlanningError, match='the module of the validator no.such:thing cannot be imported'):
        PlanningProcess(SessionSettings(settings.policy, 'no.such:thing'))
    commands = [path.read_bytes() for path in Path('/proc').glob('[0-9]*/cmdline') if parent(path.parent) == os.getpid()]
    assert not any(b'inference_process' in command for command in commands)


def test_shipped_checkpoints_of_one_robot_have_the_same_channels():
    """So that a planner can be exchanged for another while the robot goes on."""
    folders = sorted((ROOT / 'config/checkpoints').glob('maze2d_*'))
    assert len(folders) == 3 and len({Checkpoint.load(folder).channels for folder in folders}) == 1
