"""What is kept of an episode, and the files made of it."""

import json
import math

import numpy as np
import pytest

from diffuser_core.envs.kuka_stack import KukaStackEnv
from diffuser_core.envs.stacking import CHANNELS
from diffuser_core.evaluate.recording import (
    EpisodeLog,
    RecordingError,
    check_video_writer,
    write_json,
    write_plot,
    write_video,
)


@pytest.fixture(scope='module')
def log():
    """Half a second of a swinging arm at 120 states a second, and one plan."""
    env = KukaStackEnv()
    state, _ = env.reset(seed=0)
    env.close()
    log = EpisodeLog(0, 'red on green')
    for n in range(61):
        swung = state.copy()
        swung[0] += math.sin(n / 30)
        log.add_state(50.0 + n / 120, swung)
    log.add_plan(50.0, 1 / 12, CHANNELS, np.tile(state, (8, 1)).ravel())
    return log


def test_states_are_kept_once_a_tick_and_plans_once_a_second(log):
    assert len(log.states) == 13
    assert log.times() == pytest.approx(np.arange(13) / 24)
    assert not log.wants_plan(50.9) and log.wants_plan(51.0)
    assert log.plans[0].times[-1] == pytest.approx(50.0 + 7 / 12)
    assert log.plans[0].values['red.z'] == pytest.approx(np.full(8, 0.03))


def test_states_with_jittering_stamps_are_kept_all_the_same():
    log = EpisodeLog(0, 'stack')
    for stamp in np.arange(20) / 24 + np.random.default_rng(0).uniform(-0.002, 0.002, 20):
        log.add_state(stamp, np.zeros(39))
    assert len(log.states) == 20


def test_the_video_can_be_decoded_and_shows_the_motion(log, tmp_path):
    import imageio.v2 as imageio
    check_video_writer()
    path = tmp_path / 'new' / 'episode.mp4'
    write_video(path, log)
    with imageio.get_reader(path) as reader:
        description = reader.get_meta_data()
        frames = [np.asarray(frame, dtype=np.float64) for frame in reader]
    assert description['codec'] == 'h264' and description['pix_fmt'].startswith('yuv420p')
    assert description['fps'] == 12 and description['size'] == (480, 360)
    assert len(frames) == 7, 'half a second and the frame at its end'
    assert np.abs(frames[0] - frames[-1]).max() > 50
    assert list(path.parent.iterdir()) == [path], 'nothing temporary is left'


def test_the_plot_is_a_picture(log, tmp_path):
    import imageio.v2 as imageio
    write_plot(tmp_path / 'plot.png', log)
    picture = imageio.imread(tmp_path / 'plot.png')
    assert picture.shape[0] > 800 and picture.shape[1] > 800 and picture.std() > 10


def test_an_empty_log_is_refused(tmp_path):
    for write in (write_plot, write_video):
        with pytest.raises(RecordingError, match='seed 4'):
            write(tmp_path / 'file', EpisodeLog(4, 'stack'))
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / 'summary.json'
    write_json(path, {'score': 1.0})
    with pytest.raises(TypeError):
        write_json(path, {'score': object()})
    assert json.loads(path.read_text()) == {'score': 1.0}
    assert list(tmp_path.iterdir()) == [path]
