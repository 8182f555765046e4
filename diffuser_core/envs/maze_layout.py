"""The mazes of Maze2D: which cells are walls, where a ball may be, shortest ways, and what a return scores. No simulator.

Cells are (row, column), positions (x, y) [m] with x along the rows and y along the columns, as in D4RL: the position (1.0, 1.0)
belongs to the cell (1, 1). A cell is one metre wide, but its square is not centred on its integer position: D4RL puts the ball's
body at +1.2 and the walls at +1.0, so that row i reaches from i - 0.7 to i + 0.3. Maps, goals, time limits and reference returns
are D4RL's (Fu et al. 2020, arXiv 2004.07219, and its released environments).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ['BALL_RADIUS', 'CHANNELS', 'FORCES', 'GOAL_RADIUS', 'LAYOUTS', 'LOWER_EDGE', 'TICK', 'UNITS', 'MazeLayout', 'layout']

CHANNELS = ('x', 'y', 'vx', 'vy')
UNITS = ('m', 'm', 'm/s', 'm/s')
FORCES = ('force.x', 'force.y')
"""The actions, shares of the largest force, in [-1, 1]."""
TICK = 0.01
"""Time between two states [s]."""
BALL_RADIUS = 0.1
GOAL_RADIUS = 0.5
"""The goal is reached, and rewarded, within this distance [m]."""
LOWER_EDGE = 0.7
"""A cell's free square begins this far below its integer position [m]."""

Cell = tuple[int, int]


@dataclass(frozen=True)
class MazeLayout:
    """A maze.

    rows          text, a '#' for a wall, anything else is free
    goal          cell of the goal where it is not drawn
    limit         steps of an episode
    return_range  returns that score 0 and 100
    """

    name: str
    rows: tuple[str, ...]
    goal: Cell
    limit: int
    return_range: tuple[float, float]

    @cached_property
    def walls(self) -> NDArray[np.bool_]:
        """(rows, columns)."""
        return np.array([[mark == '#' for mark in row] for row in self.rows])

    @cached_property
    def free_cells(self) -> tuple[Cell, ...]:
        """All cells that are not walls, row by row."""
        return tuple((int(i), int(j)) for i, j in np.argwhere(~self.walls))

    def score(self, returned: ArrayLike) -> NDArray[np.float64]:
        """D4RL's normalised score of undiscounted returns."""
        low, high = self.return_range
        return 100.0 * (np.asarray(returned, dtype=np.float64) - low) / (high - low)

    def cell(self, position: ArrayLike) -> Cell:
        """The cell in which (2,) lies."""
        i, j = np.floor(np.asarray(position, dtype=np.float64) + LOWER_EDGE).astype(int)
        return int(i), int(j)

    def inside(self, cell: Cell) -> bool:
        """Whether there is such a cell."""
        return 0 <= cell[0] < self.walls.shape[0] and 0 <= cell[1] < self.walls.shape[1]

    @cached_property
    def wall_boxes(self) -> NDArray[np.float64]:
        """Walls as squares (walls, 4): lowest x, lowest y, highest x, highest y [m], in the coordinates of positions."""
        low = np.argwhere(self.walls) - LOWER_EDGE
        return np.concatenate([low, low + 1.0], axis=1)

    def clearance(self, positions: ArrayLike) -> NDArray[np.float64]:
        """Distance [m] from positions (..., 2) to the nearest wall, 0 inside one."""
        points = np.asarray(positions, dtype=np.float64)
        x, y = points[..., 0, None], points[..., 1, None]
        low_x, low_y, high_x, high_y = self.wall_boxes.T  # an axis of two would be slow to sum over
        beside = np.maximum(np.maximum(low_x - x, x - high_x), 0.0)
        above = np.maximum(np.maximum(low_y - y, y - high_y), 0.0)
        return np.sqrt((beside * beside + above * above).min(-1))

    def why_not(self, position: ArrayLike) -> str:
        """What keeps the ball from being at this position (2,), as one sentence; empty if nothing does."""
        point = np.asarray(position, dtype=np.float64)
        if point.shape != (2,):
            return f'a position in the maze is two numbers, x and y, got {point.size}'
        if not np.isfinite(point).all():
            return f'the position ({point[0]:g}, {point[1]:g}) is not finite'
        x, y = point
        cell = self.cell(point)
        if not self.inside(cell):
            return f'({x:g}, {y:g}) lies outside the maze {self.name}'
        if self.walls[cell]:
            return f'({x:g}, {y:g}) lies in a wall of the maze {self.name}, in row {cell[0]}, column {cell[1]}'
        distance = float(self.clearance(point))
        if distance < BALL_RADIUS:
            return f'({x:g}, {y:g}) is {distance:.2f} m from a wall of the maze {self.name}; the ball needs {BALL_RADIUS} m'
        return ''

    def steps_to(self, cell: Cell) -> NDArray[np.int64]:
        """Length of the shortest way from every cell to this one [cells], (rows, columns); -1 where there is none."""
        steps = np.full(self.walls.shape, -1, dtype=np.int64)
        steps[cell] = 0
        queue = deque([cell])
        while queue:
            i, j = queue.popleft()
            for other in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if self.inside(other) and not self.walls[other] and steps[other] < 0:
                    steps[other] = steps[i, j] + 1
                    queue.append(other)
        return steps

    def way(self, start: Cell, end: Cell) -> list[Cell]:
        """A shortest way from `start` (left out) to `end`; of equally short ones the first by rows and columns.

        ValueError if there is none.
        """
        steps = self.steps_to(end)
        if steps[start] < 0:
            raise ValueError(f'there is no way from cell {start} to cell {end} in the maze {self.name}')
        way: list[Cell] = []
        i, j = start
        while (i, j) != end:
            i, j = min(((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)),
                       key=lambda c: (steps[c] if self.inside(c) and steps[c] >= 0 else math.inf, c))
            way.append((i, j))
        return way


LAYOUTS: dict[str, MazeLayout] = {maze.name: maze for maze in (
    MazeLayout('umaze', ('#####',
                         '#   #',
                         '### #',
                         '#   #',
                         '#####'), (1, 1), 300, (23.85, 161.86)),
    MazeLayout('medium', ('########',
                          '#  ##  #',
                          '#  #   #',
                          '##   ###',
                          '#  #   #',
                          '# #  # #',
                          '#   #  #',
                          '########'), (6, 6), 600, (13.13, 277.39)),
    MazeLayout('large', ('############',
                         '#    #     #',
                         '# ## # # # #',
                         '#      #   #',
                         '# #### ### #',
                         '#  # #     #',
                         '## # # # ###',
                         '#  #   #   #',
                         '############'), (7, 9), 800, (6.7, 273.99)),
)}


def layout(name: str) -> MazeLayout:
    """The maze of this name; ValueError naming what there is."""
    if name not in LAYOUTS:
        raise ValueError(f'there is no maze {name!r}; there are {", ".join(LAYOUTS)}')
    return LAYOUTS[name]

