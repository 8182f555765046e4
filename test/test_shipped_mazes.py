"""The maze planners that come with the package: what they say of themselves."""

import datetime
import re

import pytest

from diffuser_core.envs.maze_layout import CHANNELS, FORCES, LAYOUTS
from diffuser_core.envs.maze_policy import MazePolicy
from diffuser_core.planner import Planner
from diffuser_core.shipped import checkpoint_folder


@pytest.mark.parametrize('size', LAYOUTS)
def test_it_is_small_and_says_where_it_came_from(size):
    folder = checkpoint_folder(f'maze2d_{size}')
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    planner = Planner.from_checkpoint(folder)
    made = planner.checkpoint.provenance
    assert made['command'].startswith(f'python -m diffuser_core train config/maze2d_{size}.yaml')
    assert re.fullmatch('[0-9a-f]{64}', made['data_fingerprint'])
    assert made['steps'] >= 20_000 and made['held_out_loss'] < 0.01
    datetime.date.fromisoformat(made['date'])
    assert MazePolicy.maze_of(planner) is LAYOUTS[size]
    assert planner.channels.names == (*FORCES, *CHANNELS) and planner.checkpoint.goal == CHANNELS
