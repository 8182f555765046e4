"""What is kept of an episode, and how it is shown afterwards: a video, and a plot of plans against what was executed.

Nothing here needs ROS or a display.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.stacking import BLOCKS, TICK

__all__ = ['EpisodeLog', 'RecordingError', 'check_video_writer', 'write_json', 'write_plot', 'write_video']

PLAN_INTERVAL = 1.0
"""Seconds between logged plans."""
TOLERANCE = 0.006
"""A state or plan may come this much early [s], because its stamp jitters."""
FRAMES_PER_SECOND = 12
BLOCK_COLOURS = {'red': '#d62a26', 'green': '#2ea043', 'blue': '#2962c2', 'yellow': '#d9a400'}
EXECUTED, PLANNED = '#1f2933', '#4c9be8'


class RecordingError(ValueError):
    """A recording that cannot be made; the message says why."""


@dataclass(frozen=True)
class LoggedPlan:
    """A plan.

    times   (horizon,) [s], on the states' clock
    values  channel name -> (horizon,) in the channel's unit
    """

    times: NDArray[np.float64]
    values: Mapping[str, NDArray[np.float64]]


@dataclass
class EpisodeLog:
    """One episode.

    seed    seed of the start layout
    goal    what was asked for, for people
    note    what else a video of it says
    stamps  times of the states [s]
    states  observations (39,) of the Kuka environment, one a control tick
    plans   one about every second
    """

    seed: int
    goal: str
    note: str = ''
    stamps: list[float] = field(default_factory=list)
    states: list[NDArray[np.float64]] = field(default_factory=list)
    plans: list[LoggedPlan] = field(default_factory=list)

    def add_state(self, stamp: float, observation: ArrayLike) -> None:
        """Keep the state (39,) of time `stamp` [s], unless the one before is less than a control tick old."""
        if not self.stamps or stamp >= self.stamps[-1] + TICK - TOLERANCE:
            self.stamps.append(stamp)
            self.states.append(np.array(observation, dtype=np.float64))

    def wants_plan(self, stamp: float) -> bool:
        """Whether a plan that starts at `stamp` [s] would be kept."""
        return not self.plans or stamp >= self.plans[-1].times[0] + PLAN_INTERVAL - TOLERANCE

    def add_plan(self, stamp: float, step_dt: float, channels: Sequence[str], values: ArrayLike) -> None:
        """Keep a plan of row-major values, horizon x channels, whose first row is at `stamp` [s]."""
        rows = np.asarray(values, dtype=np.float64).reshape(-1, len(channels))
        times = stamp + step_dt * np.arange(len(rows), dtype=np.float64)
        self.plans.append(LoggedPlan(times, dict(zip(channels, rows.T, strict=True))))

    def times(self) -> NDArray[np.float64]:
        """Times of the states from the first one on, (states,) [s]; RecordingError if there is none."""
        if not self.stamps:
            raise RecordingError(f'no state was recorded of the episode with seed {self.seed}')
        return np.array(self.stamps) - self.stamps[0]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` at the end of the block and vanishes on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{path.stem}-', dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        yield fresh
        os.replace(fresh, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write one JSON object, in one step."""
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')


# ---- Video -----------------------------------------------------------------------------------------------------------


def check_video_writer() -> None:
    """RecordingError, saying what to install, if this Python can write no MP4."""
    try:
        import imageio.v2  # noqa: F401
        import imageio_ffmpeg
        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise RecordingError('a video needs imageio and imageio-ffmpeg: pip install imageio imageio-ffmpeg, or '
                             f'do without videos ({error})') from error


def write_video(path: Path, log: EpisodeLog) -> None:
    """Render the logged states again and write them as MP4 (H.264, yuv420p), 12 frames a second, in one step."""
    import imageio.v2

    from diffuser_core.envs.kuka_stack import KukaStackEnv
    times = log.times()
    frames = np.arange(0.0, times[-1] + 0.5 / FRAMES_PER_SECOND, 1.0 / FRAMES_PER_SECOND)
    env = KukaStackEnv(render_mode='rgb_array')
    try:
        with replacing(path) as fresh:
            writer = imageio.v2.get_writer(
                fresh, fps=FRAMES_PER_SECOND, codec='libx264', pixelformat='yuv420p', quality=7, macro_block_size=2,
                output_params=['-movflags', '+faststart'])
            with writer:
                for time in frames:
                    state = log.states[int(np.abs(times - time).argmin())]
                    env.set_state(state)
                    image = env.render()
                    assert image is not None
                    caption = f'{time:4.1f} s    goal: {log.goal}    seed {log.seed}\n{log.note}'
                    writer.append_data(_captioned(image, caption))
    finally:
        env.close()


def _captioned(image: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).text((10, 8), caption, fill=(40, 44, 52))
    return np.asarray(picture)


# ---- Plot ------------------------------------------------------------------------------------------------------------


def write_plot(path: Path, log: EpisodeLog) -> None:
    """Plot joints, block heights and gripper: executed against planned, as PNG, in one step."""
    times = log.times()
    states = np.stack(log.states)
    blocks = states[:, 7:].reshape(len(states), len(BLOCKS), 8)
    figure = Figure(figsize=(13.0, 12.0), layout='constrained')
    axes = figure.subplot_mosaic(
        [['0', '1'], ['2', '3'], ['4', '5'], ['6', 'heights'], ['gripper', 'gripper']],
        sharex=True, gridspec_kw={'height_ratios': [1.0, 1.0, 1.0, 1.0, 0.55]})
    starts = [plan.times[0] - log.stamps[0] for plan in log.plans]
    for joint, name in enumerate(JOINT_NAMES):
        panel = axes[str(joint)]
        _plot_plans(panel, log, name, PLANNED)
        panel.plot(times, states[:, joint], color=EXECUTED, linewidth=1.8)
        panel.set_title(name, fontsize=10, loc='left')
        panel.set_ylabel('rad')
        low, high = panel.get_ylim()
        if high - low < 0.2:
            panel.set_ylim((low + high) / 2 - 0.1, (low + high) / 2 + 0.1)
    for index, block in enumerate(BLOCKS):
        _plot_plans(axes['heights'], log, f'{block}.z', BLOCK_COLOURS[block])
        axes['heights'].plot(times, blocks[:, index, 2], color=BLOCK_COLOURS[block], linewidth=1.8, label=block)
    axes['heights'].set_title('height of the block centres', fontsize=10, loc='left')
    axes['heights'].set_ylabel('m')
    axes['heights'].set_ylim(-0.02, max(0.32, blocks[:, :, 2].max() + 0.08))
    axes['heights'].legend(ncols=4, fontsize=8, loc='upper left', frameon=False)
    _plot_gripper(axes['gripper'], times, blocks[:, :, 7] > 0.5)
    for name, panel in axes.items():
        panel.grid(alpha=0.25)
        panel.set_xlim(0.0, max(times[-1], TICK))
        if name not in ('gripper', 'heights'):
            panel.vlines(starts, 0.0, 0.03, transform=panel.get_xaxis_transform(), color=PLANNED, linewidth=1.0)
    for name in ('6', 'heights'):
        axes[name].tick_params(labelbottom=True)
    axes['gripper'].set_xlabel('time since the goal was set [s]')
    figure.suptitle(f'Plans against execution: goal {log.goal}, seed {log.seed}\n'
                    f'thick: executed    thin: {len(log.plans)} plans, made where the small ticks are', fontsize=11)
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=110)


def _plot_plans(panel: Any, log: EpisodeLog, channel: str, colour: str) -> None:
    for plan in log.plans:
        if channel in plan.values:
            panel.plot(plan.times - log.stamps[0], plan.values[channel], color=colour, linewidth=0.8, alpha=0.55)


def _plot_gripper(panel: Any, times: NDArray[np.float64], attached: NDArray[np.bool_]) -> None:
    """A bar in the block's colour for as long as the gripper holds it."""
    for index, block in enumerate(BLOCKS):
        panel.fill_between(times, index - 0.35, index + 0.35, where=attached[:, index], step='post',
                           color=BLOCK_COLOURS[block], linewidth=0.0)
    panel.set_yticks(range(len(BLOCKS)), BLOCKS)
    panel.set_ylim(len(BLOCKS) - 0.5, -0.5)
    panel.set_title('held by the gripper', fontsize=10, loc='left')
