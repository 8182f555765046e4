"""Mazes from above as pictures, without OpenGL: rows go down, columns to the right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from diffuser_core.envs.maze_layout import BALL_RADIUS, LOWER_EDGE, MazeLayout

__all__ = ['draw']

WALL, FLOOR, BALL = (92, 96, 110), (244, 244, 240), (38, 92, 190)
GOAL, TRAIL, PLAN = (200, 60, 50), (150, 178, 226), (230, 150, 40)


def draw(maze: MazeLayout, ball: ArrayLike | None = None, goal: ArrayLike | None = None, *, trail: ArrayLike | None = None,
         plans: Sequence[ArrayLike] = (), scale: int = 48) -> NDArray[np.uint8]:
    """A picture (height, width, 3) with `scale` pixels a metre.

    ball, goal  positions (2,); trail (steps, 2) where the ball has been; plans: each (steps, 2), where it may go
    """
    rows, columns = maze.walls.shape
    image = Image.new('RGB', (columns * scale, rows * scale), FLOOR)
    pen = ImageDraw.Draw(image)

    def pixels(points: ArrayLike) -> list[tuple[float, float]]:
        at = (np.asarray(points, dtype=np.float64).reshape(-1, 2) + LOWER_EDGE) * scale
        return [(float(y), float(x)) for x, y in at]

    def disc(centre: ArrayLike, radius: float, colour: tuple[int, int, int]) -> None:
        (u, v), = pixels(centre)
        r = radius * scale
        pen.ellipse((u - r, v - r, u + r, v + r), fill=colour)

    for low_x, low_y, high_x, high_y in maze.wall_boxes:
        (u0, v0), (u1, v1) = pixels([[low_x, low_y], [high_x, high_y]])
        pen.rectangle((u0, v0, u1 - 1, v1 - 1), fill=WALL)
    if goal is not None:
        disc(goal, 0.16, GOAL)
        disc(goal, 0.10, FLOOR)
    if trail is not None and len(np.asarray(trail)) > 1:
        pen.line(pixels(trail), fill=TRAIL, width=max(2, scale // 16), joint='curve')
    for plan in plans:
        pen.line(pixels(plan), fill=PLAN, width=max(1, scale // 24), joint='curve')
    if ball is not None:
        disc(ball, BALL_RADIUS, BALL)
    return np.asarray(image)
