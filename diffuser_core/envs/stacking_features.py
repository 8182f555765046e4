"""What the stacking model sees of a state: where the arm's tip and the blocks are, as seen from the base of the arm.

All of them are given in the same cylindrical coordinates, because picking up and carrying is then the simplest: a tip that grips
a block has its azimuth and radius, and a carried block moves as the tip does. Joint angles follow from the tip in closed form.
The model does not know blocks by name: a plan is always about one block that moves and three others that stay. Orientations
are left out: slabs are square and gripped at their middle, the tool points down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, nearest_joints, planar_tip
from diffuser_core.envs.stacking import BLOCKS, CHANNELS, Relation, standing_relations
from diffuser_core.trajectory import Channels, Plan

if TYPE_CHECKING:
    from diffuser_core.data.demonstrations import SegmentData

__all__ = ['ATTACHED', 'FEATURES', 'MOVED', 'OTHERS', 'PLACES', 'TIP', 'UNITS', 'Situation', 'as_features', 'cartesian',
           'cylindrical', 'features', 'named_plan', 'slots', 'state_by_name']

_FIELDS = ('azimuth', 'radius', 'z')
TIP = tuple(f'tip.{field}' for field in _FIELDS)
MOVED = tuple(f'moved.{field}' for field in _FIELDS)
ATTACHED = 'moved.attached'
OTHERS = ('first', 'second', 'third')
PLACES = (*MOVED, *(f'{other}.{field}' for other in OTHERS for field in _FIELDS))
"""Where blocks are: the moved one, then the others."""
FEATURES = (*TIP, *MOVED, ATTACHED, *PLACES[3:])
"""Names of the 16 channels of the model, in order."""
UNITS = (*('rad', 'm', 'm') * 2, '1', *('rad', 'm', 'm') * 3)

_JOINTS = [CHANNELS.index(name) for name in JOINT_NAMES]
_POSITIONS = np.array([[CHANNELS.index(f'{block}.{axis}') for axis in 'xyz'] for block in BLOCKS])
_HELD = [CHANNELS.index(f'{block}.attached') for block in BLOCKS]
_SLOTS = np.array([[moved, *(n for n in range(len(BLOCKS)) if n != moved)] for moved in range(len(BLOCKS))])


def cylindrical(positions: np.ndarray) -> np.ndarray:
    """(..., 3) x, y, z [m] -> azimuth [rad] in (-pi, pi], radius [m], z [m]."""
    x, y, z = np.moveaxis(positions, -1, 0)
    return np.stack([np.arctan2(y, x), np.hypot(x, y), z], axis=-1)


def cartesian(places: np.ndarray) -> np.ndarray:
    """(..., 3) azimuth [rad], radius [m], z [m] -> x, y, z [m]."""
    azimuth, radius, z = np.moveaxis(places, -1, 0)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=-1)


def slots(moved: int) -> list[int]:
    """Block indices in the order of the model's channels when block `moved` moves."""
    return _SLOTS[moved].tolist()


def features(states: np.ndarray, moved: np.ndarray | int) -> np.ndarray:
    """States (..., 39), columns as `CHANNELS`, in which block `moved` (...,) moves -> features (..., 16), as `FEATURES`."""
    order = _SLOTS[np.broadcast_to(moved, states.shape[:-1])]
    places = np.take_along_axis(cylindrical(states[..., _POSITIONS]), order[..., None], axis=-2)
    attached = np.take_along_axis(states[..., _HELD], order[..., :1], axis=-1)
    others = places[..., 1:, :].reshape(*states.shape[:-1], -1)
    return np.concatenate([planar_tip(states[..., _JOINTS]), places[..., 0, :], attached, others], axis=-1)


def state_by_name(observation: Mapping[str, float]) -> np.ndarray:
    """State (39,) given as channel name -> value, quaternions optional; KeyError naming the channels that are missing."""
    needed = [name for name in CHANNELS if name.rpartition('.')[2] not in ('qx', 'qy', 'qz', 'qw')]
    missing = [name for name in needed if name not in observation]
    if missing:
        raise KeyError(f'the observation lacks channel {", ".join(missing)}')
    return np.array([observation.get(name, 0.0) for name in CHANNELS])


@dataclass(frozen=True)
class Situation:
    """A state (39,), and what the rules see of it: centres (blocks, 3) [m], the block that is held, the relations that stand.

    Speeds are not known here: whatever lies right counts as standing.
    """

    state: np.ndarray
    centres: np.ndarray
    held: int | None
    standing: frozenset[Relation]

    @classmethod
    def of(cls, observation: Mapping[str, float]) -> Situation:
        """From channel name -> value; KeyError naming the channels that are missing."""
        state = state_by_name(observation)
        blocks = state[len(JOINT_NAMES):].reshape(len(BLOCKS), 8)
        attached = blocks[:, 7] > 0.5
        return cls(state, blocks[:, :3], int(attached.argmax()) if attached.any() else None,
                   standing_relations(blocks[:, :3], attached, np.zeros(len(BLOCKS))))

    @property
    def joints(self) -> np.ndarray:
        """Joint angles (7,) [rad]."""
        return self.state[:len(JOINT_NAMES)]


def as_features(data: SegmentData) -> SegmentData:
    """The same segments with features for observations; a row that two segments share stands there twice."""
    lengths = np.diff(data.bounds, axis=1)[:, 0]
    ends = np.cumsum(lengths)
    bounds = np.stack([ends - lengths, ends], axis=1)
    rows = np.arange(ends[-1]) + np.repeat(data.bounds[:, 0] - bounds[:, 0], lengths)
    moved = np.repeat(data.pairs[:, 0], lengths)
    parts = [features(data.observations[rows[n:n + 100_000]], moved[n:n + 100_000]).astype(np.float32)
             for n in range(0, len(rows), 100_000)]
    return dataclasses.replace(data, observations=np.concatenate(parts), bounds=bounds, channels=FEATURES, units=UNITS)


_PLAN_CHANNELS = Channels(
    (*JOINT_NAMES, *TIP, *(f'{block}.{field}' for block in BLOCKS for field in ('x', 'y', 'z', 'attached'))),
    (*('rad',) * 7, 'rad', 'm', 'm', *('m', 'm', 'm', '1') * len(BLOCKS)))


def named_plan(plan: Plan, moved: int) -> Plan:
    """A plan of the model's for people and other programs: joints, tip, and the blocks by name in Cartesian coordinates."""
    def column(names: tuple[str, ...]) -> np.ndarray:
        return plan.values[:, plan.channels.indices(names)]

    tip = column(TIP)
    blocks = np.zeros((plan.horizon, len(BLOCKS), 4))
    order = slots(moved)
    blocks[:, order, :3] = cartesian(column(PLACES).reshape(plan.horizon, len(BLOCKS), 3))
    blocks[:, moved, 3] = column((ATTACHED,))[:, 0]
    values = np.concatenate([nearest_joints(tip), tip, blocks.reshape(plan.horizon, -1)], axis=1)
    return Plan(values, _PLAN_CHANNELS, plan.t0, plan.step_dt, plan.provenance)
