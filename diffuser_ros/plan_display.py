"""Draws plan, trail and goal for RViz and Foxglove, while somebody looks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from rclpy.node import Node
from visualization_msgs.msg import MarkerArray

from diffuser_ros.markers import Scene, scene_markers
from diffuser_ros.qos import EVENT_QOS

__all__ = ['PlanDisplay']

INTERVAL = 0.1
"""Seconds between two drawings."""
TRAIL = 300
"""Places of the trail, one a drawing."""


class PlanDisplay:
    """Publishes `~/plan_markers`; without subscribers it only asks whether there are any."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(MarkerArray, '~/plan_markers', EVENT_QOS)
        self._trail: deque[NDArray[np.float64]] = deque(maxlen=TRAIL)
        self._drawn = -INTERVAL

    def close(self, node: Node) -> None:
        """Publish no more."""
        node.destroy_publisher(self._publisher)

    def forget(self) -> None:
        """Begin the trail again."""
        self._trail.clear()

    def show(self, scene: Callable[[], Scene | None], stamp: Time) -> None:
        """Draw the scene, if somebody looks and it is time."""
        now = time.monotonic()
        if now < self._drawn + INTERVAL or not self._publisher.get_subscription_count():
            return
        self._drawn = now
        drawn = scene()
        if drawn is None:
            return
        self._trail.append(drawn.place)
        self._publisher.publish(scene_markers(drawn, np.array(self._trail), stamp))
