"""Replaying a run: the same policy gives the same bits, and whatever changed is found and named."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from diffuser_msgs.msg import PlannerStats
from hypothesis import given, settings
from hypothesis import strategies as st
from run_rig import BACKEND, Kept, SmallPolicy, Within, make_setup, record, recorded

from diffuser_ros.inference import Session
from diffuser_ros.replay import UNREADABLE, Replay, difference, replay_file
from diffuser_ros.run_log import RunLog, RunLogError
from diffuser_ros.run_reader import RunReader, parse_run

ROOT = Path(__file__).parents[1]
BITS = st.integers(0, 63)


@pytest.fixture
def setup(tmp_path):
    return make_setup(tmp_path / 'checkpoint')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The events of a run."""
    return parse_run(recorded(make_setup(tmp_path_factory.mktemp('run') / 'checkpoint'))).events


def player(policy=SmallPolicy, backend=BACKEND, **options):
    return Replay(make_session=lambda parameters: Session(policy(parameters['seed'])), make_goal=lambda goal, parameters: goal,
                  make_prepare=lambda parameters: Within(parameters['limit']), backend=lambda _: backend, **options)


@pytest.mark.parametrize(('seed', 'backend'), [(0, 'eager'), (7, 'eager'), (7, 'traced')])
def test_an_untouched_log_is_the_same(setup, tmp_path, seed, backend):
    path = tmp_path / 'run.mcap'
    log, policy = RunLog(path, on_end=print), partial(SmallPolicy, backend=backend)
    commands = record(log, replace(setup, seed=seed, parameters={**setup.parameters, 'seed': seed}), ticks=20, policy=policy)
    log.close()
    comparison = replay_file(path, player(policy))
    assert comparison.same and comparison.complete
    assert (comparison.commands, comparison.held) == (commands, 20 - commands) and comparison.plans == 11
    assert comparison.summary() == (f'{commands} commands and 11 plans computed again, {20 - commands} ticks held: '
                                    'the same to the last bit')


def flipped(events, kind, which, at, bit):
    """`events` with a bit of the command of the `which`th event of a kind flipped, counted among those that have numbers."""
    changed = [e.number for e in events if e.kind == kind and len(e.command)]
    number = changed[which % len(changed)]
    command = events[number].command.copy()
    at %= len(command)
    command.view(np.uint64)[at] ^= np.uint64(1 << bit)
    return [replace(e, command=command) if e.number == number else e for e in events], events[number], at, float(command[at])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(0, 99), BITS)
def test_a_single_flipped_bit_of_a_command_is_found(run, which, at, bit):
    changed, event, at, logged = flipped(run, 'tick', which, at, bit)
    comparison = player().run(changed)
    assert (comparison.different_commands, comparison.different_plans) == (1, 0)
    tick = sum(e.kind == 'tick' for e in run[:event.number + 1])
    assert comparison.first == (
        f'tick {tick} (event {event.number}, at {event.now:.3f} s) differs in 1 of 6 numbers, first in row {at // 2}, '
        f'{("push.x", "push.y")[at % 2]}: {logged!r} logged, {float(event.command[at])!r} here')
    assert comparison.summary().endswith('different: 1 commands and 0 plans')


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(0, 999), BITS)
def test_a_single_flipped_bit_of_a_plan_is_found(run, which, at, bit):
    changed, event, at, logged = flipped(run, 'replan', which, at, bit)
    comparison = player().run(changed)
    assert (comparison.different_commands, comparison.different_plans) == (0, 1)
    assert comparison.first == (
        f'plan {event.motion} (event {event.number}, at {event.now:.3f} s) differs in 1 of 64 numbers, first in row {at // 4}, '
        f'{("push.x", "push.y", "x", "y")[at % 4]}: {logged!r} logged, {float(event.command[at])!r} here')


@pytest.mark.parametrize(('kind', 'change'), [
    ('start', lambda e: replace(e, data={**e.data, 'parameters': {**e.data['parameters'], 'seed': 8}})),
    ('change', lambda e: replace(e, data={'parameters': {'limit': 0.25}})),
    ('goal', lambda e: replace(e, data={'goal': {'x': 1.0, 'y': -0.99}})),
    ('reset', lambda e: replace(e, data={'seed': 4})),
    ('replan', lambda e: replace(e, delay=e.delay + 1e-9)),
    ('replan', lambda e: replace(e, data={**e.data, 't0': e.data['t0'] + 1e-9})),
    ('tick', lambda e: replace(e, now=np.nextafter(e.now, np.inf))),
    ('tick', lambda e: replace(e, values=np.nextafter(e.values, np.inf))),
])
def test_every_input_matters(setup, kind, change):
    """A replay with one input changed differs: so each of them is used, and none is guessed."""
    events = list(parse_run(recorded(setup, ticks=20)).events)
    number = next(e.number for e in events if e.kind == kind and (kind != 'tick' or (e.motion and np.abs(e.command).min() < 0.5)))
    events[number] = change(events[number])
    assert not player().run(events).same


@pytest.mark.parametrize('kind', ['goal', 'clear', 'change', 'reset'])
def test_every_event_matters(setup, kind):
    events = [e for e in parse_run(recorded(setup, ticks=20)).events if e.kind != kind]
    assert not player().run(events).same


def test_the_same_numbers_are_the_same_bits():
    nan = np.array([0x7ff8_0000_0000_0001, 0x7ff8_0000_0000_0002], dtype=np.uint64).view(np.float64)
    assert difference([nan[0], -0.0, np.inf], [nan[0], -0.0, np.inf], ['a']) == ''
    assert difference([0.0], [-0.0], []) == 'differs in 1 of 1 numbers, first in number 0: 0.0 logged, -0.0 here'
    assert difference(nan[:1], nan[1:], ['a']).startswith('differs in 1 of 1')
    assert difference([1.0, 2.0], [1.0], ['a']) == 'has 2 numbers, here 1'


class Other(SmallPolicy):
    """Plans and goals fail here."""

    def set_goal(self, goal, observation):
        raise ValueError('there is no such place')

    def replan(self, observation, now, delay=0.0, budget=None):
        raise FloatingPointError('the network returned nonsense')


def test_what_fails_here_and_did_not_there_is_told(setup):
    events = parse_run(recorded(setup)).events
    comparison = player(Other).run(events)
    first = next(e for e in events if e.kind == 'replan')
    assert comparison.first == (f'plan 1 (event {first.number}, at {first.now:.3f} s) was made, here it fails: planning '
                                'failed: the network returned nonsense')
    assert comparison.different_plans == comparison.plans, 'the one that failed there failed otherwise'
    assert comparison.different_commands == comparison.commands
    goal = next(e for e in events if e.kind == 'goal')
    only = [e for e in events if e.kind in ('start', 'goal')]
    assert player(Other).run(only).first == (f'event {goal.number}: the goal was accepted, here it is refused: there is no such '
                                             'place')


def test_a_command_that_the_safety_filter_refused_is_refused_again(setup):
    stream = Kept()
    log = RunLog(stream, on_end=print)
    log.start(setup)
    state = {'x': 0.0, 'y': 0.0}
    policy = SmallPolicy(setup.seed)
    number = log.replan(state, 0.0, policy.replan(state, 0.0).plan)
    log.tick({'x': 1e5, 'y': 0.0}, 0.0, number, (), PlannerStats.UNSAFE_COMMAND, 'the command is far beyond the limit')
    log.close()
    events = list(parse_run(stream.data).events)
    assert player().run(events).same
    events[-1] = replace(events[-1], command=np.zeros(6))
    assert player().run(events).first.endswith('has 6 numbers, here 0: the command is far beyond the limit')


def test_another_policy_can_be_loaded_on_the_way(setup, tmp_path):
    other = make_setup(tmp_path / 'other', seed=1)
    (other.checkpoint / 'config.yaml').write_text('horizon: 32\n')
    stream, state = Kept(), {'x': 0.5, 'y': 0.0}
    log = RunLog(stream, on_end=print)
    for begin, made in ((log.start, setup), (log.load, other)):
        begin(made)
        policy = SmallPolicy(made.parameters['seed'])
        for tick in range(3):
            motion = policy.replan(state, 0.1 * tick)
            number = log.replan(state, 0.1 * tick, motion.plan)
            log.tick(state, 0.1 * tick, number, motion.decide(state, 0.1 * tick).clip(-1, 1), PlannerStats.OK)
    log.close()
    events = parse_run(stream.data).events
    comparison = player().run(events)
    assert comparison.same and comparison.commands == comparison.plans == 6
    assert not player().run([e for e in events if e.kind != 'load']).same
    (other.checkpoint / 'config.yaml').write_text('horizon: 33\n')
    with pytest.raises(RunLogError, match='other: the digest differs$'):
        player().run(events)


def test_logs_of_another_checkpoint_or_backend_are_refused_in_one_sentence(setup, tmp_path):
    events = parse_run(recorded(setup)).events
    with pytest.raises(RunLogError, match='^the log was made with the backend a backend of the tests, here it is another: '):
        player(backend='another').run(events)
    assert player(backend='another', anyway=True).run(events).same
    moved = setup.checkpoint.rename(tmp_path / 'moved')
    with pytest.raises(RunLogError, match='^the checkpoint .*checkpoint of the log is not here: name its folder with --chec'):
        player().run(events)
    assert player(checkpoints=[tmp_path, moved]).run(events).same
    with open(moved / 'model.safetensors', 'ab') as file:
        file.write(b'!')
    with pytest.raises(RunLogError, match='^the log was made with another checkpoint than .*moved: the digest differs$'):
        player(checkpoints=[moved]).run(events)


def test_a_policy_that_cannot_be_made_is_one_sentence(setup):
    def fail(seed):
        raise ValueError('the GPU is on strike')
    with pytest.raises(RunLogError, match='^the policy of the log cannot be made: the GPU is on strike$'):
        player(fail).run(parse_run(recorded(setup)).events)


def test_a_log_that_was_cut_off_is_replayed_so_far(setup, tmp_path):
    path, data = tmp_path / 'run.mcap', recorded(setup)
    path.write_bytes(data[:data.rindex(b'\x0f\x04' + bytes(7))])  # before the record that ends the data
    comparison = replay_file(path, player())
    assert comparison.same and not comparison.complete and comparison.commands == 10
    assert comparison.summary().endswith('the same to the last bit; the log was cut off, this is its complete part')


def test_a_tick_after_a_plan_that_was_replaced_is_refused(setup):
    events = list(parse_run(recorded(setup)).events)
    last = max(e.number for e in events if e.kind == 'tick' and e.motion)
    events[last] = replace(events[last], motion=1)
    with pytest.raises(RunLogError, match=r'^tick \d+ \(event \d+, at .* s\) follows the plan 1, which later ones had replaced$'):
        player().run(events)


# ---- The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def parameters():
    """The node's parameters for the shipped planner of the small maze."""
    from diffuser_ros.parameters import PlannerParameters
    made = PlannerParameters(checkpoint=str(ROOT / 'config/checkpoints/maze2d_umaze'), seed=5, tick_rate=100.0)
    return {name: getattr(made, name) for name in made.__dataclass_fields__}


def ros_free(path, *arguments):
    """`ros2 run diffuser_ros replay` on a log: exit code, output, errors."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, ROOT / 'scripts/diffuser_ros/replay', path, *arguments], env=environment,
                          cwd=path.parent, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_command_refuses_what_is_no_log_with_code_2(tmp_path):
    path = tmp_path / 'run.mcap'
    assert ros_free(path) == (UNREADABLE, '', f'replay: {path} cannot be read: No such file or directory\n')
    path.write_bytes(b'this is none')
    code, output, errors = ros_free(path, '--ros-args', '-r', '__node:=x')
    assert (code, output) == (UNREADABLE, '') and re.fullmatch(rf'replay: {path} is damaged: .+\n', errors)


def test_a_reader_is_a_stream(setup):
    """Events come before the end of the file is read: a damaged end costs nothing of the beginning."""
    data = recorded(setup)
    reader = iter(RunReader(io.BytesIO(data[:-2000])))
    assert next(reader).kind == 'start'
