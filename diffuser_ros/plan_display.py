"""Draws plan, trail and goal for RViz and Foxglove, while somebody looks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.node import Node
from visualization_msgs.msg import MarkerArray

from diffuser_core.trajectory import Plan
from diffuser_ros.markers import path_markers
from diffuser_ros.qos import EVENT_QOS

__all__ = ['PlanDisplay']

INTERVAL = 0.1
"""Seconds between two drawings."""
TRAIL = 300
"""Places of the trail, one a drawing."""
PLACE = ('x', 'y')


class PlanDisplay:
    """Publishes `~/plan_markers` for a robot that moves in the plane; without subscribers it only asks whether there are any."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(MarkerArray, '~/plan_markers', EVENT_QOS)
        self._trail: deque[Sequence[float]] = deque(maxlen=TRAIL)
        self._drawn = -INTERVAL

    def close(self, node: Node) -> None:
        """Publish no more."""
        node.destroy_publisher(self._publisher)

    def forget(self) -> None:
        """Begin the trail again."""
        self._trail.clear()

    def show(self, plan: Plan | None, place: Sequence[float] | None, goal: Any, stamp: Time) -> None:
        """Draw the plan from the robot's `place` (x, y) [m] to the goal's; nothing without a place."""
        now = time.monotonic()
        if place is None or now < self._drawn + INTERVAL or not self._publisher.get_subscription_count():
            return
        self._drawn = now
        self._trail.append(place)
        points = np.zeros((0, 2)) if plan is None else plan.values[:, plan.channels.indices(PLACE)]
        at = None if goal is None else np.array([goal.x, goal.y])
        self._publisher.publish(path_markers(points, np.array(self._trail), at, stamp))
