"""What recording costs a tick: the calls of one tick of the arm (a plan of 64 steps, a command of 12 points, statistics), at its
rate, and what it costs beside them: how late a 100 Hz timer is with and without a recording. One thread.

    python benchmarks/recording.py
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from diffuser_msgs.msg import PlannerStats

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.stacking import CHANNELS
from diffuser_core.envs.stacking_features import FEATURES, UNITS
from diffuser_core.shipped import checkpoint_folder
from diffuser_core.trajectory import Channels, Plan
from diffuser_ros.run_log import RunLog
from diffuser_ros.run_setup import Setup

RATE, TICKS = 24.0, 500
TIMER_RATE, TIMER_TICKS = 100.0, 1000


class Recorder:
    """Records ticks of made-up numbers."""

    def __init__(self, path: Path) -> None:
        rng = np.random.default_rng(0)
        self._state = dict(zip(CHANNELS, rng.normal(size=len(CHANNELS)).tolist()))
        self._channels = Channels(FEATURES, UNITS)
        self._values = rng.normal(size=(TIMER_TICKS, 64, len(FEATURES))).astype(np.float32)  # as networks give them
        self._ticks = 0
        self._command = rng.normal(size=(12, 8))
        self.log = RunLog(path, on_end=print)
        self.log.start(Setup({'tick_rate': RATE}, checkpoint_folder('kuka_stack'), 'none', 0, 'kuka', (*JOINT_NAMES, 'gripper')))

    def tick(self) -> None:
        """All that a tick records."""
        plan = Plan(self._values[self._ticks], self._channels, 0.0, 1 / 12, {})
        self._ticks += 1
        motion = self.log.replan(self._state, 0.0, plan)
        self.log.tick(self._state, 0.0, motion, self._command, PlannerStats.OK, 'building red on green')
        self.log.stats(PlannerStats(reason_text='building red on green'))


def paced(rate: float, ticks: int, recorder: Recorder | None) -> tuple[list[float], list[float]]:
    """Ticks at a rate [Hz]: how long each took and how late each began [us]."""
    took, late, due = [], [], time.perf_counter()
    for _ in range(ticks):
        due += 1.0 / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter()
        if recorder is not None:
            recorder.tick()
        took.append(1e6 * (time.perf_counter() - began))
        late.append(1e6 * (began - due))
    return took, late


def tell(what: str, values: list[float]) -> None:
    """Median and p99 in a line."""
    print(f'{what:<44} p50 {np.percentile(values, 50):7.0f} us   p99 {np.percentile(values, 99):7.0f} us')


def main() -> None:
    """Print what recording a tick takes, the bytes it makes, and how late a timer is beside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'run.mcap'
        recorder = Recorder(path)
        tell(f'recording a tick at {RATE:g} Hz takes', paced(RATE, TICKS, recorder)[0])
        recorder.log.close()
        print(f'a tick makes {path.stat().st_size / TICKS / 1e3:.1f} kB')
        tell(f'a timer of {TIMER_RATE:g} Hz is late, nothing recorded', paced(TIMER_RATE, TIMER_TICKS, None)[1])
        recorder = Recorder(Path(folder) / 'second.mcap')
        tell(f'a timer of {TIMER_RATE:g} Hz is late, each tick recorded', paced(TIMER_RATE, TIMER_TICKS, recorder)[1])
        recorder.log.close()


if __name__ == '__main__':
    main()
