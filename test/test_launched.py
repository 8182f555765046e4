"""The launched stack without ROS 2's launch system; test/ros2 makes the same checks with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from launch_checks import ARGUMENTS, check_kuka_stack
from ros_client import Session

ROOT = Path(__file__).parents[1]


def test_the_launched_stack_moves_its_arm_and_ends_with_its_launch(tmp_path):
    words = [f'{name}:={value}' for name, value in {**ARGUMENTS, 'out': str(tmp_path / 'results')}.items()]
    launch = subprocess.Popen(
        [sys.executable, '-m', 'diffuser_ros.runner', 'launch', str(ROOT / 'launch/kuka_stack.launch.py'), *words],
        cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True)
    session = Session(120.0)
    try:
        check_kuka_stack(session)
        launch.send_signal(signal.SIGINT)
        output, _ = launch.communicate(timeout=60)
        assert launch.returncode in (0, 130) and 'Traceback' not in output, output
    finally:
        session.close()
        if launch.poll() is None:
            os.killpg(launch.pid, signal.SIGKILL)
            launch.wait()
