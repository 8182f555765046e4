"""Run logs: what goes in comes out to the last bit, and no damage, full disk or kill does worse than end them."""

import errno
import io
import os
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import PlannerStats, RunEvent
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message
from run_rig import BACKEND, Kept, make_setup, recorded
from std_msgs.msg import Header

from diffuser_core.trajectory import Channels, Plan
from diffuser_ros import run_log
from diffuser_ros.message_definition import message_definition
from diffuser_ros.run_log import RunLog, RunLogError
from diffuser_ros.run_reader import parse_run
from diffuser_ros.run_setup import Setup, backend_here, checkpoint_digest

PATTERNS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack('<d', struct.pack('<Q', bits))[0])
ANY = st.floats(width=64) | st.sampled_from([float('nan'), -0.0, float('inf'), -float('inf'), 5e-324]) | PATTERNS
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=12)
NAMES = st.lists(TEXT, max_size=5, unique=True)
OBSERVATIONS = NAMES.flatmap(lambda names: st.fixed_dictionaries({name: ANY for name in names}))
ARRAYS = st.lists(st.tuples(ANY, ANY, ANY), max_size=4).map(lambda rows: np.array(rows).reshape(-1, 3))
STAMPS = st.builds(Time, sec=st.integers(0, 2**31 - 1), nanosec=st.integers(0, 10**9 - 1))
JSON = FINITE | TEXT | st.booleans() | st.integers(-2**53, 2**53) | st.lists(FINITE | TEXT, max_size=3)
FIELDS = st.dictionaries(TEXT, JSON, max_size=3)


@st.composite
def plans(draw):
    names = draw(NAMES.filter(bool))
    rows = draw(st.lists(st.lists(ANY, min_size=len(names), max_size=len(names)), min_size=1, max_size=4))
    return Plan(np.array(rows), Channels(tuple(names), ('1',) * len(names)), draw(FINITE), draw(st.floats(1e-3, 10.0)), {})


CALLS = st.lists(st.one_of(
    st.tuples(st.just('load')), st.tuples(st.just('change'), FIELDS),
    st.tuples(st.just('goal'), FIELDS, OBSERVATIONS, st.booleans()),
    st.tuples(st.just('clear')), st.tuples(st.just('reset'), st.integers(0, 2**31 - 1)),
    st.tuples(st.just('replan'), OBSERVATIONS, ANY, st.none() | plans(), ANY, TEXT, st.none() | FINITE,
              st.none() | st.lists(st.booleans(), max_size=3), st.booleans()),
    st.tuples(st.just('tick'), OBSERVATIONS, ANY, ARRAYS, st.integers(0, 255), TEXT, st.booleans())), max_size=8)


@pytest.fixture(scope='module')
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp('checkpoint'))


@pytest.fixture(scope='module')
def whole(setup):
    """The bytes of a run, in one chunk a message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log, 'CHUNK', 1)
        return recorded(setup, ticks=8)


def no_end(sentence):
    raise AssertionError(sentence)


def bits(values):
    return np.ascontiguousarray(values, dtype=np.float64).tobytes()


@settings(max_examples=60, deadline=None)
@given(CALLS, STAMPS)
@example([('goal', {}, {}, False)], Time())
def test_every_kind_of_event_comes_back_to_the_last_bit(setup, calls, stamp):
    stream = Kept()
    log = RunLog(stream, on_end=no_end)
    log.start(setup, stamp=stamp)
    motions = 0
    for kind, *rest in calls:
        if kind == 'load':
            log.load(setup, stamp=stamp)
        elif kind == 'replan':
            observation, now, plan, delay, error, began, pace, refused = rest
            motions += 1
            assert motions == log.replan(observation, now, plan, delay=delay, error=error, began=began, pace=pace,
                                         refused=refused, stamp=stamp)
        elif kind == 'goal':
            log.goal(*rest[:2], follows=motions * rest[2], stamp=stamp)
        elif kind == 'tick':
            observation, now, command, reason, text, arrived = rest
            log.tick(observation, now, motions, command, reason, text, adopted=motions * arrived, stamp=stamp)
        else:
            getattr(log, kind)(*rest, stamp=stamp)
    log.close()
    run = parse_run(stream.data)
    assert run.complete and [e.kind for e in run.events] == ['start', *(kind for kind, *_ in calls)]
    motions = 0
    for number, (event, (kind, *rest)) in enumerate(zip(run.events, [('start',), *calls])):
        assert (event.number, event.stamp) == (number, stamp.sec * 10**9 + stamp.nanosec)
        motions += kind == 'replan'
        seen, numbers, times, command = {}, (), (0.0, 0.0), np.empty(0)
        if kind in ('start', 'load'):
            assert event.data['parameters'] == setup.parameters and event.data['digest'] == checkpoint_digest(setup.checkpoint)
            assert (event.data['backend'], event.data['seed'], event.data['robot']) == (BACKEND, 7, 'gym')
        elif kind == 'change':
            assert event.data == {'parameters': rest[0]}
        elif kind == 'goal':
            assert event.data == {'goal': rest[0], 'follows': motions * rest[2]}
            seen = rest[1]
        elif kind == 'reset':
            assert event.data == {'seed': rest[0]}
        elif kind == 'replan':
            seen, plan = rest[0], rest[2]
            times, numbers = (rest[1], rest[3]), event.plan
            assert event.data['error'] == rest[4] and ('t0' in event.data) == (plan is not None)
            assert [event.data[name] for name in ('began', 'pace', 'refused')] == rest[5:]
            if plan is not None:
                command = plan.values
                assert (event.data['t0'], event.data['step_dt']) == (plan.t0, plan.step_dt)
                assert tuple(event.data['channels']) == plan.channels.names and numbers.shape == plan.values.shape
        elif kind == 'tick':
            seen, times, command = rest[0], (rest[1], 0.0), rest[2]
            assert event.data == {'reason': rest[3], 'reason_text': rest[4], 'adopted': motions * rest[5]}
        assert event.motion == (motions if kind in ('replan', 'tick') else 0)
        assert (event.names, bits(event.values)) == (tuple(seen), bits(list(seen.values())))
        assert (bits(event.now), bits(event.delay)) == (bits(times[0]), bits(times[1]))
        assert bits(event.command) == bits(command)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ANY, ANY, ANY, ANY, TEXT, st.integers(0, 255), st.integers(0, 2**32 - 1)), max_size=4))
def test_statistics_come_back_to_the_last_bit(setup, rows):
    stream = Kept()
    log = RunLog(stream, on_end=no_end)
    log.start(setup)
    for latency, planning, state_age, plan_age, text, reason, count in rows:
        log.stats(PlannerStats(
            header=Header(stamp=Time(sec=3, nanosec=5)), goal_id=text, tick=count, replans=count + 1, late_ticks=count + 2,
            reason=reason, reason_text=text, latency_ms=latency, planning_ms=planning, state_age_ms=state_age,
            plan_age_ms=plan_age, clamped=count))
    log.close()
    stats = parse_run(stream.data).stats
    assert len(stats) == len(rows)
    for found, (latency, planning, state_age, plan_age, text, reason, count) in zip(stats, rows):
        assert bits([found.latency_ms, found.planning_ms, found.state_age_ms, found.plan_age_ms]) == bits(
            [latency, planning, state_age, plan_age])
        assert (found.stamp, found.goal_id, found.tick, found.replans, found.late_ticks, found.reason, found.reason_text,
                found.clamped) == (3 * 10**9 + 5, text, count, count + 1, count + 2, reason, text, count)


def test_other_readers_and_ros_read_it(whole):
    """MCAP's own reader, by the index; messages by ROS's own decoder."""
    reader = make_reader(io.BytesIO(whole), validate_crcs=True)
    heard = [(channel.topic, schema.name, message.data) for schema, channel, message in reader.iter_messages()]
    events = [deserialize_message(data, RunEvent) for topic, name, data in heard if topic == 'run_events']
    stats = [deserialize_message(data, PlannerStats) for topic, name, data in heard if topic == 'stats']
    assert {(topic, name) for topic, name, _ in heard} == {
        ('run_events', 'diffuser_msgs/msg/RunEvent'), ('stats', 'diffuser_msgs/msg/PlannerStats')}
    run = parse_run(whole)
    assert [e.kind for e in events] == [e.kind for e in run.events] and len(stats) == len(run.stats) == 8
    for event, ours in zip(events, run.events):
        assert bits(event.values) == bits(ours.values) and bits(event.command) == bits(ours.command)


# ---- Disks and kills -----------------------------------------------------------------------------------------------------


class Small(Kept):
    """A disk with so much room [bytes]."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def write(self, data):
        """As much as there is room for, as a file does."""
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(bytes(data)[:self.room])
        self.room -= written
        return written


def drive(log, setup, ticks=30):
    log.start(setup)
    for tick in range(ticks):
        plan = Plan(np.full((8, 1), float(tick)), Channels(('x',), ('m',)), 0.0, 0.1, {})
        motion = log.replan({'x': float(tick)}, 0.1 * tick, plan)
        log.tick({'x': float(tick)}, 0.1 * tick, motion, [float(tick)], PlannerStats.OK)
        log.stats(PlannerStats(tick=tick))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12_000))
def test_a_full_disk_ends_the_recording_with_one_sentence_and_leaves_what_was_written(setup, room):
    stream, ends = Small(room), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log, 'CHUNK', 400)
        log = RunLog(stream, on_end=ends.append)
        drive(log, setup)
        log.close()
        log.tick({}, 0.0, 0, (), 0)
        log.close()
    assert ends == ['recording to the log has ended: No space left on device']
    assert len(stream.data) == room
    try:
        events = parse_run(stream.data).events
    except RunLogError as error:
        assert str(error) == 'the log is no run log: it holds no event' and room < 6000
        return
    assert [e.number for e in events] == list(range(len(events))) and events[0].kind == 'start'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='/dev/full is a device of Linux')
def test_a_full_device_ends_the_recording(setup):
    ends = []
    log = RunLog(open('/dev/full', 'wb', buffering=0), on_end=ends.append)
    drive(log, setup, ticks=1)
    log.close()
    assert ends == ['recording to the log has ended: No space left on device']
    assert not log._thread.is_alive()


class Slow(Kept):
    """A stream that takes little at a time, as a pipe may."""

    def write(self, data):
        return super().write(bytes(data)[:100])


def test_what_a_stream_takes_in_parts_is_written_whole(setup):
    stream = Slow()
    log = RunLog(stream, on_end=no_end)
    drive(log, setup)
    log.close()
    run = parse_run(stream.data)
    assert run.complete and (len(run.events), len(run.stats)) == (61, 30)


class Stuck(Small):
    """A disk that answers when it is told to."""

    def __init__(self, room=1 << 20):
        super().__init__(room)
        self.answer = threading.Event()

    def write(self, data):
        self.answer.wait()
        return super().write(data)


@pytest.mark.parametrize('room', [1 << 20, 4000])
def test_a_disk_that_does_not_keep_up_ends_the_recording_and_delays_nobody(setup, monkeypatch, room):
    monkeypatch.setattr(run_log, 'WAITING', 20)
    stream, ends = Stuck(room), []
    log = RunLog(stream, on_end=ends.append)
    drive(log, setup)
    assert ends == ['recording to the log has ended: the disk does not keep up, 20 entries are waiting']
    stream.answer.set()
    log.close()
    assert len(ends) == 1, 'told once, though the disk then turns out to be full as well'
    if room == 1 << 20:
        run = parse_run(stream.data)
        assert run.complete and len(run.events) + len(run.stats) == 20


def test_a_disk_that_never_answers_does_not_keep_the_node_from_ending(setup, monkeypatch):
    monkeypatch.setattr(run_log, 'PATIENCE', 0.0)
    stream, ends = Stuck(), []
    log = RunLog(stream, on_end=ends.append)
    drive(log, setup, ticks=1)
    log.close()
    assert ends == ['recording to the log has ended: the disk does not answer']
    stream.answer.set()
    log._thread.join()


def test_what_is_no_message_ends_the_recording_and_not_the_node(setup):
    stream, ends = Kept(), []
    log = RunLog(stream, on_end=ends.append)
    log.start(setup)
    log.stats('all is well')
    log.close()
    assert len(ends) == 1 and ends[0].startswith('recording to the log has ended: ')


KILLED = '''
import os, signal, sys
from pathlib import Path
from run_rig import make_setup
from test_run_log import drive
from diffuser_ros import run_log

class Fatal:
    """A file whose process is killed in the middle of a write."""
    def __init__(self, path):
        self.file, self.left = open(path, 'xb', buffering=0), 9000
    def write(self, data):
        self.left -= len(data)
        if self.left < 0:
            self.file.write(data[:len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)
    def flush(self):
        pass
    def close(self):
        self.file.close()

run_log.CHUNK = 400
folder = Path(sys.argv[1])
drive(log := run_log.RunLog(Fatal(folder / 'run.mcap'), on_end=print), make_setup(folder / 'checkpoint'), ticks=100)
log.close()
'''


def test_a_killed_run_leaves_its_complete_part(tmp_path):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, '-c', KILLED, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = parse_run((tmp_path / 'run.mcap').read_bytes())
    assert not run.complete and len(run.events) > 5
    assert [e.values[0] for e in run.events if e.kind == 'replan'] == list(range(sum(e.kind == 'replan' for e in run.events)))


def test_a_run_is_recorded_to_a_new_file_only(setup, tmp_path):
    path = tmp_path / 'runs' / 'run.mcap'
    log = RunLog(path, on_end=no_end)
    drive(log, setup)
    log.close()
    data = path.read_bytes()
    assert parse_run(data).complete
    with pytest.raises(RunLogError, match='^.*run.mcap exists; a run is recorded to a new file$'):
        RunLog(path, on_end=no_end)
    assert path.read_bytes() == data
    with pytest.raises(RunLogError, match='cannot be written: '):
        RunLog(path / 'below.mcap', on_end=no_end)


# ---- What a policy is made of --------------------------------------------------------------------------------------------


def test_the_digest_is_of_names_and_contents(setup, tmp_path):
    same, other, renamed = (make_setup(tmp_path / name).checkpoint for name in ('same', 'other', 'renamed'))
    (other / 'config.yaml').write_text('horizon: 17\n')
    (renamed / 'config.yaml').rename(renamed / 'config.yml')
    digests = {checkpoint_digest(folder) for folder in (other, renamed, setup.checkpoint)}
    assert checkpoint_digest(same) == checkpoint_digest(setup.checkpoint) and len(digests) == 3
    with pytest.raises(OSError, match='is no folder'):
        checkpoint_digest(tmp_path / 'none')


def test_the_backend_says_all_that_decides_the_bits():
    import torch
    line = backend_here({'backend': 'traced', 'device': 'cpu', 'threads': 2})
    assert line == f'traced on cpu with {torch.backends.cpu.get_cpu_capability()}, threads 2, torch {torch.__version__}'
    assert 'openvino 20' in backend_here({'backend': 'openvino', 'device': 'cpu', 'threads': 1})
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="^the device 'cuda' is not on this machine$"):
            backend_here({'backend': 'traced', 'device': 'cuda', 'threads': 1})


def test_a_setup_without_its_checkpoint_is_refused(tmp_path):
    log = RunLog(Kept(), on_end=no_end)
    with pytest.raises(OSError, match='is no folder'):
        log.start(Setup({}, tmp_path / 'none', BACKEND, 0, 'kuka'))
    log.close()


def test_definitions_hold_what_they_refer_to():
    text = message_definition('diffuser_msgs/msg/PlannerStats')
    first, *others = text.split('=' * 80 + '\n')
    assert 'uint8 PLAN_LATE=8' in first
    assert [other.splitlines()[0] for other in others] == ['MSG: std_msgs/Header', 'MSG: builtin_interfaces/Time']
