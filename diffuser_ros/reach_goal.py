"""The action `~/reach_goal`: set a goal and wait until it is reached, for those who do not want to watch `~/goal_status`."""

from __future__ import annotations

import time
from typing import Any

from diffuser_msgs.action import ReachGoal
from diffuser_msgs.msg import GoalStatus, PlannerStats
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from rclpy.task import Future

from diffuser_core.envs.goals import GoalError
from diffuser_ros.conversions import StateError

__all__ = ['ReachGoalServer']

FEEDBACK_INTERVAL = 0.1
"""Seconds between two feedbacks."""


class ReachGoalServer:
    """Serves `~/reach_goal` on a planner node, which tells it of every tick and of every change of the goal's status.

    The goals are those of `~/set_goal`: whoever sets one last, by whichever way, replaces the one before, which then ends
    unreached. Canceling clears the goal, if it is still in force, so that the robot holds.
    """

    def __init__(self, node: Node, planner: Any) -> None:
        self._node, self._planner = node, planner
        self._waiting: dict[str, tuple[ServerGoalHandle, Future, float]] = {}
        self._told = 0.0
        self._server = ActionServer(node, ReachGoal, '~/reach_goal', self._execute, goal_callback=self._asked,
                                    cancel_callback=self._cancel)

    def close(self) -> None:
        """Serve no more; goals that are waited for end unreached."""
        self._end_all('the planner was closed')
        self._server.destroy()

    def status(self, status: GoalStatus) -> None:
        """The goal's status has changed."""
        for goal_id in list(self._waiting):
            if goal_id != status.goal_id:
                self._end(goal_id, False, f'{goal_id} was replaced by {status.goal_id}' if status.goal_id else status.message)
            elif status.status == GoalStatus.REACHED:
                self._end(goal_id, True, status.message)
            elif status.status == GoalStatus.CLEARED:
                self._end(goal_id, False, status.message)

    def ticked(self, stats: PlannerStats) -> None:
        """Feedback, now and then."""
        now = time.monotonic()
        if not self._waiting or now - self._told < FEEDBACK_INTERVAL:
            return
        self._told = now
        for goal_id, (handle, _, began) in self._waiting.items():
            handle.publish_feedback(ReachGoal.Feedback(goal_id=goal_id, reason=stats.reason, reason_text=stats.reason_text,
                                                       elapsed=now - began))

    def _asked(self, request: ReachGoal.Goal) -> GoalResponse:
        """Every request is taken: a goal that cannot be pursued is told in the result, with the reason."""
        return GoalResponse.ACCEPT

    def _cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        for goal_id, (waiting, _, _) in list(self._waiting.items()):
            if waiting is handle:
                self._planner.drop(f'{goal_id} was canceled')
        return CancelResponse.ACCEPT

    async def _execute(self, handle: ServerGoalHandle) -> ReachGoal.Result:
        try:
            goal_id = self._planner.pursue(handle.request)
        except (GoalError, StateError) as error:
            handle.abort()
            return ReachGoal.Result(success=False, message=str(error))
        done: Future = Future(executor=self._node.executor)
        self._waiting[goal_id] = handle, done, time.monotonic()
        await done
        success, message = done.result() or (False, 'the planner was closed')
        if success:
            handle.succeed()
        elif handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        return ReachGoal.Result(success=success, message=message, goal_id=goal_id)

    def _end(self, goal_id: str, success: bool, message: str) -> None:
        _, done, _ = self._waiting.pop(goal_id)
        done.set_result((success, message))

    def _end_all(self, why: str) -> None:
        for goal_id in list(self._waiting):
            self._end(goal_id, False, why)
