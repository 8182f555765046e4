"""Run logs that were cut off, damaged or made up: the complete part, or one sentence, and never other events."""

import io
import json
import struct

import numpy as np
import pytest
from diffuser_msgs.msg import RunEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.writer import CompressionType, Writer
from rclpy.serialization import serialize_message
from run_rig import make_setup, recorded

from diffuser_ros import run_log
from diffuser_ros.message_definition import message_definition
from diffuser_ros.run_reader import RunLogError, parse_run

NO_PLAN = '{"error": "", "began": null, "pace": null, "refused": false}'
PLAN = NO_PLAN[:-1] + ', "channels": [%s], "t0": 0.0, "step_dt": 1.0}'
GOAL = '{"goal": {}, "follows": 0}'
TICK = '{"reason": 0, "reason_text": "", "adopted": 0}'


@pytest.fixture(scope='module')
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp('checkpoint'))


@pytest.fixture(scope='module')
def whole(setup):
    """The bytes of a run, in one chunk a message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log, 'CHUNK', 1)
        return recorded(setup, ticks=8)


def described(event):
    """All of an event, numbers as their bits."""
    numbers = [np.float64(n).tobytes() for n in (event.now, event.delay, event.values, event.command)]
    return event.number, event.stamp, event.kind, json.dumps(event.data), event.motion, event.names, *numbers


def prefix(data, events):
    """What can be read of `data`: events, which must be the first of `events`, and whether it was complete; None if nothing."""
    try:
        run = parse_run(data)
    except RunLogError as error:
        assert '\n' not in str(error) and str(error)
        return None
    found = [described(e) for e in run.events]
    assert found == events[:len(found)]
    if run.complete:
        assert found == events
    return len(found), run.complete


def boundaries(data):
    """Where records begin: after the magic, each is an opcode, a length of 8 bytes and so many bytes (MCAP's specification)."""
    at, found = 8, []
    while at < len(data) - 8:
        found.append(at)
        at += 9 + struct.unpack_from('<Q', data, at + 1)[0]
    assert at == len(data) - 8
    return found


def test_cut_off_anywhere_the_complete_part_is_read(whole):
    events = [described(e) for e in parse_run(whole).events]
    before, counts = 0, set()
    edges = boundaries(whole)
    near = {at + off for at in edges for off in (-9, -1, 0, 1, 8, 9, 10)}
    for cut in sorted({*range(0, len(whole), 23), *(at for at in near if 0 <= at < len(whole))}):
        found = prefix(whole[:cut], events)
        if found is None:
            assert before == 0
            continue
        count, complete = found
        assert before <= count, 'more is cut off, and more is read'
        before = count
        if not complete:
            counts.add(count)
    assert before == len(events) and counts >= set(range(1, len(events) + 1)), 'every message had its chunk'


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_never_give_other_events(whole, data):
    events = [described(e) for e in parse_run(whole).events]
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=9))
        how = data.draw(st.sampled_from(['over', 'in', 'out']))
        damaged[at:at + (len(piece) if how != 'in' else 0)] = b'' if how == 'out' else piece
    prefix(bytes(damaged), events)


@pytest.mark.parametrize('bit', range(8))
def test_a_flipped_bit_anywhere_never_gives_other_events(whole, bit):
    """Every 83rd byte, all kinds of records among them."""
    events = [described(e) for e in parse_run(whole).events]
    end_of_data = whole.rindex(b'\x0f' + struct.pack('<Q', 4))
    for at in range(bit, len(whole), 83):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        found = prefix(bytes(damaged), events)
        assert found is None or not found[1] or at >= end_of_data


@pytest.mark.parametrize('bit', range(8))
def test_a_flipped_bit_in_a_log_that_was_cut_off_never_gives_other_events(whole, bit):
    """There is no checksum of the whole then: those of the chunks must do."""
    events = [described(e) for e in parse_run(whole).events]
    cut = whole[:whole.rindex(b'\x0f' + struct.pack('<Q', 4))]
    assert prefix(cut, events) == (len(events), False)
    for at in range(bit, len(cut), 83):
        damaged = bytearray(cut)
        damaged[at] ^= 1 << bit
        prefix(bytes(damaged), events)


def test_a_length_beyond_the_end_of_a_closed_log_is_damage(whole):
    """Not the mark of a log that was cut off: then its last bytes would be missing."""
    third = boundaries(whole)[2]
    damaged = whole[:third + 1] + struct.pack('<Q', len(whole)) + whole[third + 9:]
    with pytest.raises(RunLogError, match='^the log is damaged: a length in it points beyond its end$'):
        parse_run(damaged)
    assert not parse_run(damaged[:-1]).complete


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b'\x89MCAP0\r\n' + tail))
def test_bytes_that_are_no_log_are_refused(data):
    with pytest.raises(RunLogError, match=r'^the log (is damaged: .+|is no run log: it holds no event)$'):
        parse_run(data)


def log_of(*events, schema=None, encoding='ros2msg', checksum=True, compression=CompressionType.NONE):
    """The bytes of a file with these RunEvents, whole and with right checksums."""
    stream = io.BytesIO()
    writer = Writer(stream, compression=compression, enable_data_crcs=checksum)
    writer.start(profile='ros2')
    text = message_definition('diffuser_msgs/msg/RunEvent') if schema is None else schema
    described_by = writer.register_schema('diffuser_msgs/msg/RunEvent', encoding, text.encode())
    channel = writer.register_channel('run_events', 'cdr', described_by)
    for event in events:
        writer.add_message(channel, 1, serialize_message(event), 1)
    writer.finish()
    return stream.getvalue()


@pytest.fixture(scope='module')
def start(setup):
    return RunEvent(kind='start', text=json.dumps(setup.described()))


def test_a_made_up_log_is_read_if_it_fits_itself(start):
    run = parse_run(log_of(start, RunEvent(number=1, kind='clear', text='{}')))
    assert [e.kind for e in run.events] == ['start', 'clear'] and run.complete


@pytest.mark.parametrize(('event', 'why'), [
    (dict(number=2, kind='clear', text='{}'), 'event 1 is missing'),
    (dict(number=1, kind='start', text='{}'), "event 1 is of the kind 'start', which it cannot be"),
    (dict(number=1, kind='dance', text='{}'), "event 1 is of the kind 'dance', which it cannot be"),
    (dict(number=1, kind='clear', text='[]'), r'event 1 \(clear\) holds no JSON object'),
    (dict(number=1, kind='clear', text='{'), 'Expecting property name'),
    (dict(number=1, kind='clear', text='[' * 100_000), 'recursion'),
    (dict(number=1, kind='reset', text='{"seed": 1.5}'), r'event 1 \(reset\) lacks seed, or has another type'),
    (dict(number=1, kind='reset', text='{"seed": true}'), r'event 1 \(reset\) lacks seed, or has another type'),
    (dict(number=1, kind='reset', text='{"seed": 1' + 40 * '0' + '}'), r'event 1 \(reset\) lacks seed, or has another type'),
    (dict(number=1, kind='goal', text='{}'), r'event 1 \(goal\) lacks goal, or has another type'),
    (dict(number=1, kind='goal', text=GOAL, names=['x', 'x'], values=[1.0, 2.0]),
     r'event 1 \(goal\) has 2 values for the channels x, x'),
    (dict(number=1, kind='goal', text=GOAL, names=['x', 'y'], values=[1.0]),
     r'event 1 \(goal\) has 1 values for the channels x, y'),
    (dict(number=1, kind='tick', text=TICK, motion=1),
     r'event 1 \(tick\) is about the plan 1 when there were 0'),
    (dict(number=1, kind='tick', text=TICK.replace('0}', '1}')), r'event 1 \(tick\) is about the plan 1 when there were 0'),
    (dict(number=1, kind='tick', text=TICK.replace('0}', '[]}')), r'event 1 \(tick\) lacks adopted, or has another type'),
    (dict(number=1, kind='tick', text=TICK.replace('0}', 'false}')), r'event 1 \(tick\) lacks adopted, or has another type'),
    (dict(number=1, kind='goal', text=GOAL.replace('0}', '-1}')), r'event 1 \(goal\) is about the plan -1 when there were 0'),
    (dict(number=1, kind='replan', text=NO_PLAN.replace('"pace": null', '"pace": [true, 1]'), motion=1),
     r'event 1 \(replan\) has a pace that is not of true and false'),
    (dict(number=1, kind='replan', text=NO_PLAN.replace('"began": null', '"began": true'), motion=1),
     r'event 1 \(replan\) lacks began, or has another type'),
    (dict(number=1, kind='replan', text=NO_PLAN.replace('"began": null, ', ''), motion=1),
     r'event 1 \(replan\) lacks began, or has another type'),
    (dict(number=1, kind='replan', text=NO_PLAN, motion=2), r'event 1 \(replan\) is about the plan 2 when there were 0'),
    (dict(number=1, kind='replan', text=NO_PLAN, motion=1, command=[1.0]), r'event 1 \(replan\) lacks channels'),
    (dict(number=1, kind='replan', text=PLAN % '"a", 2', motion=1, command=[1.0, 2.0]),
     r'event 1 \(replan\) has channels that are no names'),
    (dict(number=1, kind='replan', text=PLAN % '"a", "b"', motion=1, command=[1.0]),
     r'event 1 \(replan\) has 1 values for 2 channels'),
])
def test_events_that_do_not_fit_are_refused_by_name(start, event, why):
    with pytest.raises(RunLogError, match=f'^the log is no run log of this version: .*{why}'):
        parse_run(log_of(start, RunEvent(**event)))


def test_files_that_are_something_else_are_refused(start):
    with pytest.raises(RunLogError, match='it lacks its checksum'):
        parse_run(log_of(start, checksum=False))
    with pytest.raises(RunLogError, match="only messages described by 'ros2msg' can be read"):
        parse_run(log_of(start, encoding='ros2idl'))
    with pytest.raises(RunLogError, match='is no run log of this version: .*number'):
        parse_run(log_of(start, schema='string kind'))
    with pytest.raises(RunLogError, match='is damaged'):
        parse_run(log_of(start, schema='diffuser_msgs/RunEvent again'))
    with pytest.raises(RunLogError, match='it holds no event'):
        parse_run(log_of())


@pytest.mark.parametrize('compression', [CompressionType.NONE, CompressionType.ZSTD])
def test_a_chunk_that_says_it_is_huge_is_refused_before_it_is_unpacked(start, compression):
    data = bytearray(log_of(start, compression=compression))
    chunk = data.index(b'\x06', 8 + 9)
    data[chunk + 25:chunk + 33] = struct.pack('<Q', 1 << 50)
    with pytest.raises(RunLogError, match=f'a chunk says that it holds {1 << 50} bytes'):
        parse_run(bytes(data))


def test_packed_data_that_say_they_are_huge_are_refused_before_they_are_unpacked():
    """A zstd frame of a single segment with a content size of 8 bytes (RFC 8878, section 3.1.1.1)."""
    frame = struct.pack('<IBQ', 0xFD2FB528, 0b1110_0000, 1 << 50)
    chunk = struct.pack('<QQQI', 0, 0, 10, 0) + struct.pack('<I4sQ', 4, b'zstd', len(frame)) + frame
    header = struct.pack('<II', 0, 0)
    data = b'\x89MCAP0\r\n' + b''.join(struct.pack('<BQ', code, len(body)) + body for code, body in ((1, header), (6, chunk)))
    with pytest.raises(RunLogError, match=f'a chunk says that it holds {1 << 50} bytes'):
        parse_run(data)
