"""Standard markers for RViz and Foxglove: what stands around the robot, its plan, its trail and its goal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from numpy.typing import NDArray
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

if TYPE_CHECKING:
    from diffuser_ros.bridges.gym_robot import StaticBox  # which imports simulators

__all__ = ['FRAME', 'Scene', 'box_markers', 'scene_markers']

FRAME = 'world'
WALL = ColorRGBA(r=0.55, g=0.58, b=0.62, a=1.0)
PLAN = ColorRGBA(r=0.30, g=0.61, b=0.91, a=1.0)
CANDIDATE = ColorRGBA(r=0.30, g=0.61, b=0.91, a=0.35)
TRAIL = ColorRGBA(r=0.12, g=0.16, b=0.20, a=0.8)
GOAL = ColorRGBA(r=0.84, g=0.16, b=0.15, a=0.9)
LINE_WIDTH, GOAL_SIZE = 0.05, 0.25
"""[m]"""


def box_markers(boxes: Iterable[StaticBox]) -> MarkerArray:
    """A cube a box, without a time limit."""
    return MarkerArray(markers=[
        Marker(header=Header(frame_id=FRAME), ns='walls', id=number, type=Marker.CUBE, action=Marker.ADD, text=box.name,
               pose=Pose(position=_point(box.place), orientation=Quaternion(**dict(zip('xyzw', box.orientation.tolist())))),
               scale=Vector3(**dict(zip('xyz', box.size.tolist()))), color=WALL)
        for number, box in enumerate(boxes)])


@dataclass(frozen=True)
class Scene:
    """What there is to draw of a robot at one moment; places (2,) on the ground or (3,) in space [m].

    place       where the robot, or its tip, is
    plan        (n, 2) or (n, 3), empty if there is none
    goal        or None
    candidates  plans that were drawn beside it
    """

    place: NDArray[np.float64]
    plan: NDArray[np.float64]
    goal: NDArray[np.float64] | None = None
    candidates: Sequence[NDArray[np.float64]] = ()


def scene_markers(scene: Scene, trail: NDArray[np.float64], stamp: Time) -> MarkerArray:
    """Plan, candidates and `trail` (n, 2 or 3) [m] as lines, the goal as a ball; what is not there is taken away."""
    header = Header(frame_id=FRAME, stamp=stamp)
    markers = []
    for name, points, colour in (('plan', scene.plan, PLAN), ('trail', trail, TRAIL)):
        drawn = len(points) > 1
        line = Marker(header=header, ns=name, type=Marker.LINE_STRIP, action=Marker.ADD if drawn else Marker.DELETE,
                      scale=Vector3(x=LINE_WIDTH), color=colour)
        line.points = [_point(point) for point in points] if drawn else []
        markers.append(line)
    several = Marker(header=header, ns='candidates', type=Marker.LINE_LIST, scale=Vector3(x=LINE_WIDTH / 3), color=CANDIDATE,
                     action=Marker.ADD if len(scene.candidates) else Marker.DELETE)
    several.points = [_point(point) for path in scene.candidates for pair in zip(path, path[1:]) for point in pair]
    ball = Marker(header=header, ns='goal', type=Marker.SPHERE, action=Marker.DELETE if scene.goal is None else Marker.ADD,
                  scale=Vector3(x=GOAL_SIZE, y=GOAL_SIZE, z=GOAL_SIZE), color=GOAL)
    if scene.goal is not None:
        ball.pose.position = _point(scene.goal)
    for marker in (*markers, several, ball):
        marker.pose.orientation.w = 1.0
    return MarkerArray(markers=[*markers, several, ball])


def _point(place: NDArray[np.float64]) -> Point:
    """A place (2,) or (3,) [m]."""
    return Point(**dict(zip('xyz', np.asarray(place, dtype=np.float64).tolist())))
