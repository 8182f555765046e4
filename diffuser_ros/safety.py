"""The last check before a command leaves: finite, inside the joint limits, no faster than allowed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ['UnsafeCommand', 'limit_joints']

ROUNDING = 1e-6
"""A change smaller than this is rounding of the network's 32-bit numbers and not counted as a clamp [rad]."""


class UnsafeCommand(ValueError):
    """A command that no clamping makes safe; the message says why."""


def limit_joints(joints: NDArray[np.float64], start: NDArray[np.float64], *, lower: NDArray[np.float64],
                 upper: NDArray[np.float64], max_step: float) -> tuple[NDArray[np.float64], int]:
    """Joint positions (points, joints) that can be sent, and how many of their values had to be clamped.

    No value moves more than `max_step` [rad] from the point before, the first one from `start` (joints,), the joints as
    measured; all lie in [lower, upper] (joints,) [rad], which comes first if a joint was measured outside.
    UnsafeCommand for a wrong shape and for numbers that are not finite.
    """
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 2 or len(joints) == 0 or joints.shape[1:] != lower.shape or start.shape != lower.shape:
        raise UnsafeCommand(f'a command needs rows of {len(lower)} joints, got shape {joints.shape} from {start.shape}')
    if not (np.isfinite(joints).all() and np.isfinite(start).all()):
        raise UnsafeCommand('the command holds numbers that are not finite')
    limited = np.empty_like(joints)
    before = start
    for n, wanted in enumerate(joints):
        before = limited[n] = np.clip(np.clip(wanted, before - max_step, before + max_step), lower, upper)
    return limited, int((np.abs(limited - joints) > ROUNDING).sum())
