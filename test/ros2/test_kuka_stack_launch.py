"""The stack under ROS 2's own launch system: `pytest test/ros2` where launch_pytest is installed (it is not on PyPI).

test_launched.py makes the same checks without it.
"""

import sys
from pathlib import Path

import launch_pytest
import pytest
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription

sys.path.insert(0, str(Path(__file__).parents[1]))

from launch_checks import ARGUMENTS, check_kuka_stack
from ros_client import Session

LAUNCH_FILE = Path(__file__).parents[2] / 'launch' / 'kuka_stack.launch.py'


@launch_pytest.fixture
def stack(tmp_path):
    """The launch file as users launch it."""
    arguments = {**ARGUMENTS, 'out': str(tmp_path / 'results')}
    return LaunchDescription([
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(LAUNCH_FILE)), launch_arguments=arguments.items()),
        launch_pytest.actions.ReadyToTest()])


@pytest.mark.launch(fixture=stack)
def test_the_launched_stack_moves_its_arm():
    session = Session(60.0)
    try:
        check_kuka_stack(session)
    finally:
        session.close()
