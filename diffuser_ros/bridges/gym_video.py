"""Video of a recorded episode: the environment runs it again and draws it, off any control path."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffuser_core.evaluate.recording import RecordingError, check_video_writer, replacing
from diffuser_ros.bridges.gym_robot import EnvError, GymRobot, Recording

__all__ = ['check_drawing', 'write_episode_video']

FRAMES_PER_SECOND = 25


def _drawing_robot(env: str, kwargs: Mapping[str, Any]) -> GymRobot:
    if sys.platform == 'linux' and not os.environ.get('DISPLAY'):
        os.environ.setdefault('MUJOCO_GL', 'egl')  # without a display, MuJoCo would look for one all the same
    return GymRobot(env, kwargs, render=True)


def check_drawing(env: str, kwargs: Mapping[str, Any]) -> None:
    """RecordingError, one sentence, if this machine can draw no picture of the environment, or write no video."""
    check_video_writer()
    try:
        robot = _drawing_robot(env, kwargs)
        try:
            robot.reset(0)
            robot.render()
        finally:
            robot.close()
    except Exception as error:  # OpenGL's libraries fail with errors of many kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecordingError(f'no pictures of {env!r} can be drawn here; do without the video, or install EGL (libegl1) or '
                             f'OSMesa (libosmesa6, MUJOCO_GL=osmesa): {said}') from error


def write_episode_video(path: Path, recording: Recording) -> None:
    """Run the recording again and write it as MP4 (H.264, yuv420p), in one step; RecordingError if it ends elsewhere."""
    import imageio.v2

    robot = _drawing_robot(recording.env, recording.kwargs)
    try:
        state = robot.reset(recording.seed, recording.goal)
        every = max(1, round(1.0 / (FRAMES_PER_SECOND * robot.dt)))
        with replacing(path) as fresh:
            writer = imageio.v2.get_writer(fresh, fps=1.0 / (every * robot.dt), codec='libx264', pixelformat='yuv420p', quality=7,
                                           macro_block_size=2, output_params=['-movflags', '+faststart'])
            with writer:
                writer.append_data(robot.render())
                for step, action in enumerate(recording.actions, start=1):
                    state, *_ = robot.step(action)
                    if step % every == 0:
                        writer.append_data(robot.render())
            if not np.array_equal(state, recording.last):
                raise RecordingError(f'{recording.env!r} went another way when the episode of seed {recording.seed} was run '
                                     'again: no video of it can be made')
    except EnvError as error:
        raise RecordingError(str(error)) from error
    finally:
        robot.close()
