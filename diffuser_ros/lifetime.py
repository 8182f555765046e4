"""The life of a node from ROS's start to the exit code: what simulators and the nodes that run episodes share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

__all__ = ['run_bridge', 'start_ros']


def start_ros(name: str, args: list[str] | None) -> bool:
    """Start ROS for the node `name`, which then ends in order on SIGINT; False, after one sentence, for arguments it refuses."""
    # An interrupt waits until rclpy's own handler is there, which closes ROS, and calls ours; Python's would raise a
    # KeyboardInterrupt, which could strike inside rclpy's C++ code.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        rclpy.init(args=args)
    except RuntimeError as error:
        print(f'{name}: the ROS arguments cannot be used: {str(error).splitlines()[0]}', file=sys.stderr)
        return False
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return True


def run_bridge(name: str, args: list[str] | None, make: Callable[[], Node], mistake: type[Exception]) -> int:
    """Make a node and spin it until it is interrupted or terminated; the exit code is 1, after one sentence, if it cannot start.

    mistake  what `make` raises for an environment or a parameter that cannot be used
    """
    if not start_ros(name, args):
        return 1
    node = None
    try:
        node = make()
        rclpy.spin(node)
    except ExternalShutdownException:
        pass
    except (mistake, ParameterException) as error:
        print(f'{name}: {error}', file=sys.stderr)
        return 1
    except Exception:
        if rclpy.ok():  # otherwise a signal has closed ROS in the middle of a callback, and this is what it got to see
            raise
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
