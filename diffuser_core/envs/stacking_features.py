"""What the stacking model sees of a state: where the arm's tip and the blocks are, as seen from the base of the arm.

All of them are given in the same cylindrical coordinates, because picking up and carrying is then the simplest: a tip that grips
a block has its azimuth and radius, and a carried block moves as the tip does. Orientations are left out: slabs are square and
gripped at their middle, the tool points down. Joint angles follow from the tip in closed form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from diffuser_core.data.demonstrations import SegmentData
from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, planar_tip
from diffuser_core.envs.stacking import BLOCKS, CHANNELS

__all__ = ['ATTACHED', 'FEATURES', 'PLACES', 'TIP', 'UNITS', 'as_features', 'cartesian', 'cylindrical', 'features', 'features_by_name']

TIP = ('tip.azimuth', 'tip.radius', 'tip.z')
FEATURES = (*TIP, *(f'{block}.{field}' for block in BLOCKS for field in ('azimuth', 'radius', 'z', 'attached')))
"""Names of the 19 channels of the model, in order."""
UNITS = ('rad', 'm', 'm') + ('rad', 'm', 'm', '1') * len(BLOCKS)
PLACES = tuple(f'{block}.{field}' for block in BLOCKS for field in ('azimuth', 'radius', 'z'))
ATTACHED = tuple(f'{block}.attached' for block in BLOCKS)

_JOINTS = [CHANNELS.index(name) for name in JOINT_NAMES]
_POSITIONS = np.array([[CHANNELS.index(f'{block}.{axis}') for axis in 'xyz'] for block in BLOCKS])
_ATTACHED = [CHANNELS.index(name) for name in ATTACHED]


def cylindrical(positions: np.ndarray) -> np.ndarray:
    """(..., 3) x, y, z [m] -> azimuth [rad] in (-pi, pi], radius [m], z [m]."""
    x, y, z = np.moveaxis(positions, -1, 0)
    return np.stack([np.arctan2(y, x), np.hypot(x, y), z], axis=-1)


def cartesian(places: np.ndarray) -> np.ndarray:
    """(..., 3) azimuth [rad], radius [m], z [m] -> x, y, z [m]."""
    azimuth, radius, z = np.moveaxis(places, -1, 0)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=-1)


def features(states: np.ndarray) -> np.ndarray:
    """States (..., 39), columns as `CHANNELS` -> features (..., 19), columns as `FEATURES`."""
    blocks = np.concatenate([cylindrical(states[..., _POSITIONS]), states[..., _ATTACHED][..., None]], axis=-1)
    return np.concatenate([planar_tip(states[..., _JOINTS]), blocks.reshape(*states.shape[:-1], -1)], axis=-1)


def features_by_name(observation: Mapping[str, float]) -> np.ndarray:
    """Features (19,) of a state given as channel name -> value; KeyError naming the channels that are missing."""
    needed = [name for name in CHANNELS if name.rpartition('.')[2] not in ('qx', 'qy', 'qz', 'qw')]
    missing = [name for name in needed if name not in observation]
    if missing:
        raise KeyError(f'the observation lacks channel {", ".join(missing)}')
    return features(np.array([observation.get(name, 0.0) for name in CHANNELS]))


def as_features(data: SegmentData) -> SegmentData:
    """The same segments with features for observations."""
    return dataclasses.replace(data, observations=features(data.observations).astype(np.float32), channels=FEATURES, units=UNITS)
