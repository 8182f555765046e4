"""Reports: the pictures that they say, the right numbers beside them, from run logs and from bags."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Duration, Time
from diffuser_msgs.msg import NamedVector, PlannerStats
from diffuser_msgs.msg import Plan as PlanMessage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.writer import CompressionType, Writer
from PIL import Image
from rclpy.serialization import serialize_message
from run_rig import PERIOD, Kept, make_setup, record
from sensor_msgs.msg import JointState
from std_msgs.msg import Header, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from diffuser_core.trajectory import Channels, Plan
from diffuser_ros.message_definition import message_definition
from diffuser_ros.report import main, report
from diffuser_ros.report_data import read_drive
from diffuser_ros.report_figures import reason_names
from diffuser_ros.run_log import RunLog, RunLogError

ROOT = Path(__file__).parents[1]


def stamp(seconds):
    return Time(sec=int(seconds), nanosec=round(1e9 * (seconds % 1)))


def stats_at(seconds, **fields):
    return PlannerStats(header=Header(stamp=stamp(seconds)), **fields)


@pytest.fixture
def setup(tmp_path):
    return make_setup(tmp_path / 'checkpoint')


def drawn(path):
    """A picture's pixels; more than a background, or nothing was drawn."""
    with Image.open(path) as picture:
        assert picture.format == 'PNG'
        pixels = np.asarray(picture.convert('RGB'))
    assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    return pixels


# ---- Run logs ------------------------------------------------------------------------------------------------------------


def test_a_small_log_gives_the_pictures_that_are_said(setup, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = RunLog(tmp_path / 'small.mcap', on_end=print)
    record(log, setup, ticks=20)
    log.close()
    assert main(['small.mcap']) == 0
    out = Path('runs/report/small')
    said = capsys.readouterr().out.splitlines()
    assert said == ['20 ticks, latency p50 10.5 ms, p99 19.8 ms, OK 20', *(str(out / n) for n in ('latency.png', 'tracking.png',
                                                                                                'summary.json'))]
    assert sorted(os.listdir(out)) == ['latency.png', 'summary.json', 'tracking.png']
    drawn(out / 'latency.png')
    drawn(out / 'tracking.png')
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['pictures'] == ['latency.png', 'tracking.png'] and summary['command'] == 'report small.mcap'
    assert (summary['seed_start'], summary['device'], summary['complete']) == (7, 'a backend of the tests', True)
    assert summary['period_ms'] == pytest.approx(1e3 * PERIOD)
    assert set(summary['plans']) == {'x', 'y'} and all(error['max'] > 0.0 for error in summary['plans'].values())


def test_the_numbers_are_right(setup, tmp_path):
    """Latencies 1 to 100 ms and ages by hand; a joint measured 0.01 rad behind what was commanded for the moment before."""
    log = RunLog(tmp_path / 'run.mcap', on_end=print)
    log.start(make_setup(tmp_path / 'checkpoint', tick_rate=10.0))
    for tick in range(100):
        state = {'push.x': 0.1 * (tick - 1) - 0.01, 'push.y': 5.0}
        plan = Plan(0.1 * (tick + np.arange(16.0))[:, None], Channels(('push.x',), ('rad',)), 0.1 * tick, 0.1, {})
        motion = log.replan(state, 0.1 * tick, plan)
        log.tick(state, 0.1 * tick, motion, [[0.1 * tick, 5.5], [99.0, 99.0]], 0)
        reason = (PlannerStats.OK, PlannerStats.PLAN_LATE)[tick % 4 == 0]
        log.stats(stats_at(50.0 + 0.1 * tick, tick=tick + 1, replans=tick + 1, late_ticks=3, clamped=4, reason=reason,
                           latency_ms=tick + 1.0, plan_age_ms=2.0 * tick))
    for _ in range(7):
        log.stats(stats_at(60.0, reason=PlannerStats.STALE_STATE, replans=100, late_ticks=3, clamped=4))
    log.close()
    summary = report(tmp_path / 'run.mcap', tmp_path / 'out')
    assert summary['latency_ms'] == {'p50': 50.5, 'p99': pytest.approx(99.01)}
    assert summary['plan_age_ms'] == {'p50': 100.0, 'p99': pytest.approx(196.04)}
    assert summary['reasons'] == {'OK': 75, 'STALE_STATE': 7, 'PLAN_LATE': 25}
    assert (summary['ticks'], summary['replans'], summary['late_ticks'], summary['clamped']) == (107, 100, 3, 4)
    assert summary['wall_s'] == pytest.approx(10.0) and summary['period_ms'] == pytest.approx(100.0)
    assert summary['tracking']['push.x'] == {'rms': pytest.approx(0.01), 'max': pytest.approx(0.01)}
    assert summary['tracking']['push.y'] == {'rms': pytest.approx(0.5), 'max': pytest.approx(0.5)}
    assert summary['plans']['push.x'] == {'rms': pytest.approx(0.11), 'max': pytest.approx(0.11)}
    assert summary['plans']['push.y'] is None


def test_every_reason_has_its_name():
    names = reason_names()
    assert names[PlannerStats.OK] == 'OK' and names[PlannerStats.CLOCK_JUMPED] == 'CLOCK_JUMPED'
    assert sorted(names) == list(range(len(names))) and len(names) >= 15


def test_a_log_that_was_cut_off_is_drawn_so_far(setup, tmp_path, capsys):
    stream = Kept()
    log = RunLog(stream, on_end=print)
    record(log, setup, ticks=20)
    log.close()
    path = tmp_path / 'cut.mcap'
    path.write_bytes(stream.data[:stream.data.rindex(b'\x0f\x04' + bytes(7))])
    assert main([str(path), '--out', str(tmp_path / 'out'), '--ros-args', '-r', '__node:=x']) == 0
    assert capsys.readouterr().out.startswith('20 ticks (cut off: its complete part), latency p50')
    assert not json.loads((tmp_path / 'out' / 'summary.json').read_text())['complete']


EXTREME = st.sampled_from([0.0, -0.0, 1.0, -3.5, 1e13, -1e300, 1.7e308, 5e-324, float('nan'), float('inf'), -float('inf')])


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(EXTREME, EXTREME, EXTREME, EXTREME), min_size=1, max_size=6))
def test_any_numbers_can_be_drawn(setup, tmp_path, rows):
    path = tmp_path / 'run.mcap'
    path.unlink(missing_ok=True)
    log = RunLog(path, on_end=print)
    log.start(setup)
    for tick, (a, b, c, d) in enumerate(rows):
        t0 = d if np.isfinite(d) else 0.0
        motion = log.replan({'x': a, 'y': b}, c, Plan(np.array([[a, b], [c, d]]), Channels(('x', 'y'), ('m', 'm')), t0, 0.1, {}))
        log.tick({'x': a, 'y': b}, d, motion, [c, a], 200)
        log.stats(stats_at(float(tick), latency_ms=a, plan_age_ms=b, planning_ms=c, state_age_ms=d, reason=200))
    log.close()
    assert report(path, tmp_path / 'out')['reasons'] == {'200': len(rows)}
    drawn(tmp_path / 'out' / 'latency.png')


def test_what_cannot_be_read_is_one_sentence_and_leaves_nothing(tmp_path, capsys, setup):
    for name, data, why in (('none', None, 'cannot be read: No such file or directory'), ('other', b'something', 'is damaged: '),
                            ('empty', b'', 'holds no statistics of a planner (topic ~/stats, diffuser_msgs/msg/PlannerStats)')):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        assert main([str(path), '--out', str(tmp_path / 'out')]) == 1
        errors = capsys.readouterr().err
        assert errors.startswith(f'report: {path} {why}') and errors.count('\n') == 1
    log = RunLog(tmp_path / 'start.mcap', on_end=print)
    log.start(setup)
    log.close()
    with pytest.raises(RunLogError, match='holds neither statistics nor observations: there is nothing to draw$'):
        report(tmp_path / 'start.mcap', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    log = RunLog(tmp_path / 'run.mcap', on_end=print)
    record(log, setup)
    log.close()
    with pytest.raises(RunLogError, match='^the report cannot be written to .*run.mcap: '):
        report(tmp_path / 'run.mcap', tmp_path / 'run.mcap')


def test_the_executable_draws_without_a_display(setup, tmp_path):
    log = RunLog(tmp_path / 'run.mcap', on_end=print)
    record(log, setup)
    log.close()
    environment = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'MPLBACKEND')} | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, ROOT / 'scripts/diffuser_ros/report', 'run.mcap'], env=environment, cwd=tmp_path,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path / 'runs/report/run/tracking.png').is_file()


# ---- Bags ----------------------------------------------------------------------------------------------------------------


def write_bag(folder, *parts, storage='mcap', encoding='ros2msg', compression=CompressionType.ZSTD):
    """A bag as rosbag2 lays it out: metadata.yaml and one MCAP file a part, which is a list of (topic, message)."""
    folder.mkdir()
    names = [f'{folder.name}_{n}.mcap' for n in range(len(parts))]
    (folder / 'metadata.yaml').write_text(yaml.safe_dump({'rosbag2_bagfile_information': {
        'version': 9, 'storage_identifier': storage, 'relative_file_paths': names}}))
    for name, messages in zip(names, parts):
        with open(folder / name, 'wb') as stream:
            writer = Writer(stream, compression=compression)
            writer.start(profile='ros2')
            channels: dict = {}
            for topic, message in messages:
                kind = f'{type(message).__module__.split(".")[0]}/msg/{type(message).__name__}'
                if topic not in channels:
                    schema = writer.register_schema(kind, encoding, message_definition(kind).encode())
                    channels[topic] = writer.register_channel(topic, 'cdr', schema)
                writer.add_message(channels[topic], 1, serialize_message(message), 1)
            writer.finish()
    return folder


def arm_messages(space='', ticks=20):
    """An arm whose joint is always 0.02 rad behind; a camera's topic that is none of ours."""
    for tick in range(ticks):
        time = 100.0 + 0.1 * tick
        header = Header(stamp=stamp(time))
        yield f'{space}/joint_states', JointState(header=header, name=['joint_1', 'joint_2'],
                                                  position=[0.3 * (tick - 1) - 0.02, 1.0])
        point = JointTrajectoryPoint(positions=[0.3 * tick], time_from_start=Duration(nanosec=100_000_000))
        yield f'{space}/command', JointTrajectory(header=header, joint_names=['joint_1'], points=[point, point])
        yield f'{space}/diffuser_planner/plan', PlanMessage(header=header, channels=['joint_1'], horizon=2, step_dt=0.1,
                                                            values=[0.3 * tick, 0.3 * (tick + 1)])
        yield f'{space}/diffuser_planner/stats', stats_at(time, latency_ms=7.0, replans=tick + 1)
        yield f'{space}/camera', String(data='a picture')


@pytest.mark.parametrize('compression', [CompressionType.NONE, CompressionType.LZ4, CompressionType.ZSTD])
def test_a_bag_of_an_arm(tmp_path, compression):
    messages = list(arm_messages())
    bag = write_bag(tmp_path / 'bag', messages[:50], messages[50:], compression=compression)
    summary = report(bag, tmp_path / 'out')
    assert summary['tracking'] == {'joint_1': {'rms': pytest.approx(0.02), 'max': pytest.approx(0.02)}}
    assert summary['plans']['joint_1']['max'] == pytest.approx(0.32)
    assert summary['latency_ms'] == {'p50': 7.0, 'p99': 7.0} and summary['reasons'] == {'OK': 20}
    assert summary['period_ms'] == pytest.approx(100.0) and summary['complete']
    drawn(tmp_path / 'out' / 'tracking.png')
    one_file = read_drive(bag / 'bag_0.mcap')
    assert len(one_file.stats) == 10


def test_a_bag_of_a_ball_in_a_maze(tmp_path):
    messages = [message for tick in range(20) for message in (
        ('/state', NamedVector(header=Header(stamp=stamp(3.0 + tick)), names=['x', 'y'], values=[float(tick), 2.0 * tick])),
        ('/command', NamedVector(header=Header(stamp=stamp(3.0 + tick)), names=['force.x'], values=[0.5])),
        ('/diffuser_planner/stats', stats_at(3.0 + tick)))]
    drive = read_drive(write_bag(tmp_path / 'bag', messages))
    assert drive.measured.names == ['x', 'y'] and np.array_equal(drive.measured['y'][1], 2.0 * np.arange(20))
    assert drive.commanded.names == ['force.x'] and np.array_equal(drive.commanded['force.x'][0], 3.0 + np.arange(20))
    assert report(tmp_path / 'bag', tmp_path / 'out')['tracking'] == {'x': None, 'y': None}


def test_of_several_planners_one_is_named(tmp_path, capsys):
    bag = write_bag(tmp_path / 'bag', [*arm_messages('/left'), *arm_messages('/right', ticks=5)])
    assert main([str(bag), '--out', str(tmp_path / 'out')]) == 1
    assert capsys.readouterr().err == (f'report: {bag} holds statistics of /left/diffuser_planner, /right/diffuser_planner: name '
                                       'one with --node\n')
    assert report(bag, tmp_path / 'out', node='/right/diffuser_planner')['ticks'] == 5
    with pytest.raises(RunLogError, match='holds no statistics of the node /middle; there are those of /left/diffuser_planner, '):
        report(bag, tmp_path / 'out', node='/middle')


def test_a_bag_that_was_cut_off_is_drawn_so_far(tmp_path):
    bag = write_bag(tmp_path / 'bag', list(arm_messages()), list(arm_messages(ticks=30)))
    (bag / 'metadata.yaml').unlink()
    last = bag / 'bag_1.mcap'
    last.write_bytes(last.read_bytes()[:1000])
    summary = report(bag, tmp_path / 'out')
    assert not summary['complete'] and summary['ticks'] == 20


def test_bags_that_cannot_be_read_are_one_sentence(tmp_path):
    whole = write_bag(tmp_path / 'whole', list(arm_messages()))

    def refused(bag, why):
        with pytest.raises(RunLogError, match=why) as caught:
            report(bag, tmp_path / 'out')
        assert '\n' not in str(caught.value)

    refused(write_bag(tmp_path / 'sqlite', [], storage='sqlite3'), 'is a bag of sqlite3; only MCAP can be read: see `ros2 bag')
    refused(write_bag(tmp_path / 'idl', list(arm_messages()), encoding='ros2idl'), "messages described by 'ros2msg' can be read")
    refused(write_bag(tmp_path / 'silent', [('/camera', String())]), 'holds no statistics of a planner')
    (tmp_path / 'nothing').mkdir()
    refused(tmp_path / 'nothing', r'holds no files \*.mcap')
    for text, why in (('a: [', 'does not describe a bag: ParserError'), ('{}', 'does not describe a bag: KeyError'),
                      ('- 1', 'does not describe a bag: TypeError')):
        (tmp_path / 'nothing' / 'metadata.yaml').write_text(text)
        refused(tmp_path / 'nothing', why)
    missing = shutil.copytree(whole, tmp_path / 'missing')
    (missing / 'whole_0.mcap').unlink()
    refused(missing, 'whole_0.mcap cannot be read: No such file or directory')
    assert not (tmp_path / 'out').exists()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_bags_are_one_sentence(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('bag')
    bag = write_bag(folder / 'bag', list(arm_messages(ticks=3)), compression=data.draw(st.sampled_from(CompressionType)))
    file = bag / 'bag_0.mcap'
    content = bytearray(file.read_bytes())
    share = st.floats(0.0, 1.0, exclude_max=True)
    for place in data.draw(st.lists(share, min_size=1, max_size=5)):
        content[int(place * len(content))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(content[:int(data.draw(share | st.just(1.0)) * len(content))]))
    try:
        drive = read_drive(bag)
    except RunLogError as error:
        assert '\n' not in str(error)
    else:
        assert all(s.latency_ms == 7.0 for s in drive.stats)
    shutil.rmtree(folder)
