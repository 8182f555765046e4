"""What the nodes that run episodes share: waiting, calling services, and a life from start to exit code."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from diffuser_core.evaluate.recording import RecordingError
from diffuser_ros.lifetime import start_ros

__all__ = ['ANSWER_TIMEOUT', 'EpisodeClient', 'EpisodeError', 'run_client']

ANSWER_TIMEOUT = 10.0
"""Seconds that a service may take to answer, and a reset to show in the states."""


class EpisodeError(RuntimeError):
    """An episode that cannot go on; the message is one sentence that says why."""


class EpisodeClient(Node):
    """A node that spins itself while it waits."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._spinner = SingleThreadedExecutor(context=self.context)
        self._spinner.add_node(self)

    def _parameter(self, name: str, default: Any, description: str) -> Any:
        descriptor = ParameterDescriptor(description=description, read_only=True)
        return self.declare_parameter(name, default, descriptor).value

    def _wait(self, condition: Callable[[], bool], timeout: float, complaint: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise EpisodeError(complaint)
            self._spin()

    def _spin(self) -> None:
        if not self.context.ok():
            raise ExternalShutdownException
        self._spinner.spin_once(timeout_sec=0.1)

    def _call(self, client: Any, request: Any) -> Any:
        answer = client.call_async(request)
        self._wait(answer.done, ANSWER_TIMEOUT, f'{client.srv_name} did not answer within {ANSWER_TIMEOUT:.0f} s')
        return answer.result()

    def _call_until_accepted(self, client: Any, request: Any, patience: float, complaint: str) -> Any:
        """Offer a request for `patience` [s] until it is accepted; EpisodeError, `complaint` and the reason, if it is not."""
        deadline = time.monotonic() + patience
        while True:
            answer = self._call(client, request)
            if answer.success:
                return answer
            if time.monotonic() > deadline:
                raise EpisodeError(f'{complaint}: {answer.message}')
            pause = time.monotonic() + 0.25
            while time.monotonic() < pause:
                self._spin()


C = TypeVar('C', bound=EpisodeClient)


def run_client(name: str, args: list[str] | None, make: Callable[[], C], work: Callable[[C], Callable[[], None]]) -> int:
    """Make a node and let `work` run with it; what that returns is called when ROS is shut down. Returns the exit code: 0, 1
    after one sentence on stderr, or 130 if it was interrupted."""
    if not start_ros(name, args):
        return 1
    node = None
    try:
        try:
            node = make()
            finish = work(node)
        except (EpisodeError, RecordingError, ParameterException, OSError):
            raise
        except Exception:
            if rclpy.ok():
                raise
            raise ExternalShutdownException from None  # a signal has closed ROS in the middle of a callback
        finally:
            if node is not None:
                node.destroy_node()
            rclpy.try_shutdown()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        finish()
    except (KeyboardInterrupt, ExternalShutdownException):
        print(f'{name}: interrupted before everything was written', file=sys.stderr)
        return 130
    except (EpisodeError, RecordingError, ParameterException, OSError) as error:
        print(f'{name}: {error}', file=sys.stderr)
        return 1
    return 0
