"""On what does the moved block stand? The classifier that guides block stacking (paper, appendix B).

The paper's reports 'i on j' for all pairs of blocks. Our plans are about one block that moves, so four answers say the same:
on the first, second or third other block, or on the ground.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from diffuser_core.checkpoint import CheckpointError
from diffuser_core.envs.stacking import GROUND, HORIZONTAL_TOLERANCE, SLAB_HEIGHT, VERTICAL_TOLERANCE, Relation
from diffuser_core.envs.stacking_features import ATTACHED, FEATURES, PLACES, cartesian, slots
from diffuser_core.value_network import StepClassifier

__all__ = ['CLASSES', 'class_of', 'labels', 'load_classifier']

CLASSES = ('moved on first', 'moved on second', 'moved on third', 'moved on ground')


def class_of(move: Relation) -> int:
    """Which of the classes holds when the move is made."""
    upper, lower = move
    return CLASSES.index('moved on ground') if lower == GROUND else slots(upper)[1:].index(lower)


def labels(rows: np.ndarray) -> np.ndarray:
    """What the moved block stands on in states (n, 16), columns as `FEATURES` -> (n, 4) of 0 and 1; all 0 while it is held or in
    the air."""
    places = cartesian(rows[:, [FEATURES.index(name) for name in PLACES]].reshape(len(rows), -1, 3))
    free = rows[:, FEATURES.index(ATTACHED)] < 0.5
    offset = places[:, :1] - places[:, 1:]
    on = (np.abs(offset[..., :2]) < HORIZONTAL_TOLERANCE).all(-1) & (np.abs(offset[..., 2] - SLAB_HEIGHT) < VERTICAL_TOLERANCE)
    grounded = np.abs(places[:, 0, 2] - SLAB_HEIGHT / 2.0) < VERTICAL_TOLERANCE
    return np.column_stack([on, grounded]) & free[:, None]


def load_classifier(path: Path) -> StepClassifier:
    """Read what `train_stacking_classifier` wrote; CheckpointError naming a file that is missing, damaged or of other classes."""
    if not path.is_file():
        raise CheckpointError(f'no classifier at {path}')
    try:
        with safe_open(path, 'pt') as opened:
            described = opened.metadata()
        network = StepClassifier(len(FEATURES), len(CLASSES), int(described['width']))
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'{path} is damaged or no classifier: {" ".join(str(error).split())[:200]}') from error
    if tuple(json.loads(described['classes'])) != CLASSES:
        raise CheckpointError(f'{path} has the classes {described["classes"]}, not {", ".join(CLASSES)}')
    return network.eval().requires_grad_(False)
