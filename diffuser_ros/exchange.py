"""The service `~/load_checkpoint`: another planner is made ready beside the one in use and replaces it between two ticks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffuser_msgs.srv import LoadCheckpoint
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.task import Future

from diffuser_core.envs.goals import GoalError
from diffuser_ros.inference import Inference, PlanningError
from diffuser_ros.parameters import PlannerParameters
from diffuser_ros.places import Starting, start

__all__ = ['CheckpointExchange']

LOOK_INTERVAL = 0.05
"""Seconds between two looks whether a checkpoint has been loaded."""


class CheckpointExchange:
    """Serves `~/load_checkpoint` on a node.

    settings_for  the node's parameters with another checkpoint folder
    exchange      changes over to what was made by such parameters; GoalError if that cannot pursue the goal in force
    """

    def __init__(self, node: Node, settings_for: Callable[[str], PlannerParameters],
                 exchange: Callable[[PlannerParameters, Inference], None]) -> None:
        self._node, self._settings_for, self._exchange = node, settings_for, exchange
        self._loading: tuple[Starting, PlannerParameters, Future] | None = None
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._service = node.create_service(  # a group of its own: while it waits, everything else goes on
            LoadCheckpoint, '~/load_checkpoint', self._asked, callback_group=ReentrantCallbackGroup())

    def close(self) -> None:
        """Serve no more, and give up what is being loaded."""
        if self._loading is not None:
            self._loading[0].close()
            self._loading = None
        self._node.destroy_service(self._service)

    async def _asked(self, request: LoadCheckpoint.Request, response: LoadCheckpoint.Response) -> LoadCheckpoint.Response:
        if self._loading is not None:
            response.message = f'{self._loading[1].checkpoint} is being loaded already'
            return response
        if not request.path:
            response.message = 'the path of a checkpoint folder is needed'
            return response
        settings = self._settings_for(str(Path(request.path).expanduser()))
        done: Future = Future(executor=self._node.executor)
        self._loading = start(settings), settings, done
        look = self._node.create_timer(LOOK_INTERVAL, self._look, clock=self._steady)
        await done
        self._node.destroy_timer(look)
        response.success, response.message = done.result() or (False, 'the planner was closed')
        if response.success:
            self._node.get_logger().info(response.message)
        else:
            self._node.get_logger().error(f'the checkpoint before stays in use: {response.message}')
        return response

    def _look(self) -> None:
        """Change over to what has been loaded: between two ticks, for callbacks run one after the other."""
        if self._loading is None:
            return
        starting, settings, done = self._loading
        try:
            ready = starting.poll()
            if ready is None:
                return
            self._exchange(settings, ready)
        except (PlanningError, GoalError) as error:
            starting.close()
            self._loading = None
            done.set_result((False, str(error)))
            return
        self._loading = None
        done.set_result((True, f'planning with {settings.checkpoint}'))
