"""Kinematics of the KUKA LBR iiwa of `pybullet_data/kuka_iiwa/model.urdf`, in closed form and without a simulator.

The *tip* is the suction point on the axis of link 7. The flange of the URDF's mesh ends 45.0 mm from the origin of
link 7; the tip lies 2 mm further out, so that a slab whose top face the tip touches is not penetrated by the mesh or
its collision margin.

With joints 3 and 5 at zero and the tool straight down the arm moves in one vertical plane, whose angle is joint 1, and
the rest is a planar two-link arm: shoulder at 0.36 m, upper arm 0.42 m, forearm 0.40 m, wrist 0.128 m above the tip.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

JOINT_NAMES: tuple[str, ...] = tuple(f"lbr_iiwa_joint_{number}" for number in range(1, 8))
JOINT_LIMIT = np.array(
    [2.96705972839, 2.09439510239, 2.96705972839, 2.09439510239, 2.96705972839, 2.09439510239, 3.05432619099]
)
JOINT_LOWER: NDArray[np.float64] = -JOINT_LIMIT
JOINT_UPPER: NDArray[np.float64] = JOINT_LIMIT
TIP_OFFSET = 0.047
"""Distance of the tip from the origin of link 7, along its axis [m]."""

SHOULDER_HEIGHT = 0.1575 + 0.2025
UPPER_ARM = 0.2045 + 0.2155
FOREARM = 0.1845 + 0.2155
WRIST_TO_TIP = 0.081 + TIP_OFFSET

_ORIGINS: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...] = (
    ((0.0, 0.0, 0.0), (0.0, 0.0, 0.1575)),
    ((math.pi / 2, 0.0, math.pi), (0.0, 0.0, 0.2025)),
    ((math.pi / 2, 0.0, math.pi), (0.0, 0.2045, 0.0)),
    ((math.pi / 2, 0.0, 0.0), (0.0, 0.0, 0.2155)),
    ((-math.pi / 2, math.pi, 0.0), (0.0, 0.1845, 0.0)),
    ((math.pi / 2, 0.0, 0.0), (0.0, 0.0, 0.2155)),
    ((-math.pi / 2, math.pi, 0.0), (0.0, 0.081, 0.0)),
)


def _transform(rpy: tuple[float, float, float], xyz: tuple[float, float, float]) -> NDArray[np.float64]:
    """Homogeneous transform (4, 4) of a URDF origin: R = Rz(yaw) Ry(pitch) Rx(roll)."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy), np.sin(rpy)
    transform = np.eye(4)
    transform[:3, :3] = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    transform[:3, 3] = xyz
    return transform


_FIXED = tuple(_transform(rpy, xyz) for rpy, xyz in _ORIGINS)


def forward_kinematics(joints: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tip position (3,) [m] and rotation (3, 3) of link 7, in the robot's base frame, for joints (7,) [rad]."""
    angles = np.asarray(joints, dtype=np.float64)
    if angles.shape != (7,):
        raise ValueError(f"forward kinematics needs 7 joint angles, got an array of shape {angles.shape}")
    pose = np.eye(4)
    for fixed, angle in zip(_FIXED, angles, strict=True):
        c, s = math.cos(angle), math.sin(angle)
        turn = np.array([[c, -s, 0.0, 0.0], [s, c, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        pose = pose @ fixed @ turn
    return pose[:3, 3] + TIP_OFFSET * pose[:3, 2], pose[:3, :3]


def inverse_kinematics(azimuth: float, radius: float, height: float) -> NDArray[np.float64]:
    """Joints (7,) [rad] that put the tip at cylindrical `(azimuth [rad], radius [m], height [m])`, tool straight down.

    Joints 3, 5 and 7 are zero and the elbow is up. ValueError says which number is out of reach.
    """
    if not (math.isfinite(azimuth) and math.isfinite(radius) and math.isfinite(height)):
        raise ValueError(f"tip target (azimuth {azimuth}, radius {radius}, height {height}) must be finite")
    if abs(azimuth) > JOINT_UPPER[0]:
        raise ValueError(f"azimuth {azimuth:.4f} rad is out of reach: joint 1 turns at most +-{JOINT_UPPER[0]:.4f} rad")
    rise = height + WRIST_TO_TIP - SHOULDER_HEIGHT
    longest = UPPER_ARM + FOREARM
    if abs(rise) > longest:
        raise ValueError(
            f"tip height {height:.4f} m is out of reach: it must lie between "
            f"{SHOULDER_HEIGHT - WRIST_TO_TIP - longest:.4f} and {SHOULDER_HEIGHT - WRIST_TO_TIP + longest:.4f} m"
        )
    distance_squared = radius**2 + rise**2
    if radius < 0.0 or distance_squared > longest**2:
        raise ValueError(
            f"radius {radius:.4f} m is out of reach: at tip height {height:.4f} m it must lie between 0 and "
            f"{math.sqrt(longest**2 - rise**2):.4f} m"
        )
    cosine = (distance_squared - UPPER_ARM**2 - FOREARM**2) / (2.0 * UPPER_ARM * FOREARM)
    bend = math.acos(max(-1.0, min(1.0, cosine)))
    lean = math.atan2(radius, rise) - math.atan2(FOREARM * math.sin(bend), UPPER_ARM + FOREARM * math.cos(bend))
    joints = np.array([azimuth, lean, 0.0, -bend, 0.0, math.pi - lean - bend, 0.0])
    beyond = np.flatnonzero(np.abs(joints) > JOINT_UPPER)
    if beyond.size:
        joint = int(beyond[0])
        raise ValueError(
            f"radius {radius:.4f} m is out of reach at tip height {height:.4f} m: joint {joint + 1} would have to turn "
            f"to {joints[joint]:.4f} rad and its limit is +-{JOINT_UPPER[joint]:.4f} rad"
        )
    return joints


REACH = np.array([[-JOINT_LIMIT[0], 0.425, 0.03], [JOINT_LIMIT[0], 0.72, 0.62]])
"""Lowest and highest azimuth [rad], radius [m] and height [m] of a box whose every point the tip can reach."""


def nearest_joints(tips: ArrayLike) -> NDArray[np.float64]:
    """Joints (..., 7) [rad], tool straight down, for tips (..., 3) in cylindrical coordinates.

    A tip outside `REACH` is first brought to its edge. ValueError for another shape and numbers that are not finite.
    """
    wanted = np.asarray(tips, dtype=np.float64)
    if wanted.ndim < 1 or wanted.shape[-1] != 3 or not np.isfinite(wanted).all():
        raise ValueError(f"tips must be finite numbers of shape (..., 3), got shape {wanted.shape}")
    azimuth, radius, height = np.moveaxis(np.clip(wanted, *REACH), -1, 0)
    rise = height + WRIST_TO_TIP - SHOULDER_HEIGHT
    cosine = (radius**2 + rise**2 - UPPER_ARM**2 - FOREARM**2) / (2.0 * UPPER_ARM * FOREARM)
    bend = np.arccos(cosine)
    lean = np.arctan2(radius, rise) - np.arctan2(FOREARM * np.sin(bend), UPPER_ARM + FOREARM * np.cos(bend))
    zero = np.zeros_like(azimuth)
    return np.stack([azimuth, lean, zero, -bend, zero, math.pi - lean - bend, zero], axis=-1)


def planar_tip(joints: ArrayLike) -> NDArray[np.float64]:
    """Tip (..., 3) as azimuth [rad], radius [m] and height [m] for joints (..., 7) [rad] whose joints 3 and 5 are zero.

    The inverse of `inverse_kinematics` wherever the tool points straight down. What joints 3, 5 and 7 hold is not looked at.
    """
    angles = np.asarray(joints, dtype=np.float64)
    if angles.ndim < 1 or angles.shape[-1] != 7:
        raise ValueError(f"the planar tip needs 7 joint angles, got an array of shape {angles.shape}")
    upper = angles[..., 1]
    fore = upper - angles[..., 3]
    tool = fore + angles[..., 5]
    radius = UPPER_ARM * np.sin(upper) + FOREARM * np.sin(fore) + WRIST_TO_TIP * np.sin(tool)
    height = SHOULDER_HEIGHT + UPPER_ARM * np.cos(upper) + FOREARM * np.cos(fore) + WRIST_TO_TIP * np.cos(tool)
    return np.stack([angles[..., 0], radius, height], axis=-1)


def tip_cylindrical(joints: ArrayLike) -> tuple[float, float, float]:
    """Tip as `(azimuth [rad], radius [m], height [m])` for joints (7,) [rad]."""
    (x, y, z), _ = forward_kinematics(joints)
    return math.atan2(y, x), math.hypot(x, y), float(z)
