"""Block stacking with a KUKA iiwa and a suction gripper, simulated in PyBullet.

Four slabs of 0.2 x 0.2 x 0.06 m lie around the arm. The observation is the full state that plans are made of (39
numbers, see `CHANNELS`), an action is seven joint position targets and a gripper command. One control tick is 1/24 s,
ten simulation substeps at 240 Hz. Scores follow `diffuser_core.envs.stacking`.

Joint control: each substep a joint's motor closes `POSITION_GAIN` = 0.35 of the remaining error (limited by the URDF's
effort), so that a target 0.05 rad away is reached to 95 % or more within one tick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import pybullet
    import pybullet_data
except ImportError as error:
    raise ImportError("the Kuka environment needs PyBullet: pip install pybullet (wheels: Python <= 3.11)") from error

from diffuser_core.envs import stacking
from diffuser_core.envs.kuka_kinematics import (
    JOINT_LOWER,
    JOINT_NAMES,
    JOINT_UPPER,
    forward_kinematics,
    inverse_kinematics,
)
from diffuser_core.envs.stacking import (
    AZIMUTH_RANGE,
    AZIMUTH_SEPARATION,
    BLOCKS,
    CHANNELS,
    CIRCLE_RADIUS,
    SLAB_HEIGHT,
    SLAB_SIZE,
)

SUBSTEP = 1.0 / 240.0
SUBSTEPS_PER_TICK = 10
EPISODE_STEPS = 384
OBSERVATION_SIZE = len(CHANNELS)
HOME_TIP: tuple[float, float, float] = (0.0, 0.45, 0.45)
"""Tip of the home pose: azimuth [rad], radius [m], height [m]."""
REACH_HEIGHT = 0.03
"""The gripper holds on only if the tip is this close to the plane of a slab's top face [m]."""
REACH_RADIUS = 0.06
"""... and this close to the slab's vertical axis [m]."""

POSITION_GAIN = 0.35
JOINT_EFFORT = 300.0
GRIP_FORCE = 500.0
SLAB_MASS = 0.5
SLAB_FRICTION = 0.8
LIMIT_SLACK = 1e-5
"""Targets may exceed a limit by this much [rad], which forgives rounding to 32 bits, and are then cut."""
IMAGE_SIZE = (480, 360)
_COLOURS = ((0.85, 0.16, 0.15, 1.0), (0.18, 0.63, 0.25, 1.0), (0.16, 0.38, 0.85, 1.0), (0.96, 0.79, 0.13, 1.0))
_JOINTS = tuple(range(7))
_FLANGE = 6


class _Client:
    """PyBullet's functions bound to one simulation of its own, looked up once."""

    def __init__(self, mode: int) -> None:
        self._id = pybullet.connect(mode)
        if self._id < 0:
            raise RuntimeError("PyBullet could not start a simulation; its window needs a display, headless runs none")

    def __getattr__(self, name: str) -> Any:
        bound = partial(getattr(pybullet, name), physicsClientId=self._id)
        setattr(self, name, bound)
        return bound


class KukaStackEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """Gymnasium environment `diffuser/KukaStack-v0`; each instance owns its simulation.

    gui: open PyBullet's window (one such instance a process) instead of simulating headless.
    render_mode: None or 'rgb_array' (480 x 360, software renderer, no GL needed).
    episode_steps: ticks after which `step` reports truncation; episodes never terminate by themselves.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 24}

    def __init__(
        self, *, gui: bool = False, render_mode: str | None = None, episode_steps: int = EPISODE_STEPS
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is unknown: use None or 'rgb_array'")
        if episode_steps < 1:
            raise ValueError(f"episode_steps must be at least 1, got {episode_steps}")
        self.render_mode = render_mode
        self.episode_steps = episode_steps
        block_low, block_high = [-100.0] * 3 + [-1.001] * 4 + [0.0], [100.0] * 3 + [1.001] * 4 + [1.0]
        joint_bound = JOINT_UPPER + 0.5
        self.observation_space = gymnasium.spaces.Box(
            np.concatenate([-joint_bound, block_low * len(BLOCKS)]),
            np.concatenate([joint_bound, block_high * len(BLOCKS)]),
            dtype=np.float64,
        )
        limits = np.append(JOINT_LOWER, 0.0), np.append(JOINT_UPPER, 1.0)
        self.action_space = gymnasium.spaces.Box(*limits, dtype=np.float64)
        self._legacy = stacking.LegacyScore()
        self._constraint: int | None = None
        self._held: int | None = None
        self._steps = 0
        self._relation_count = 0
        self._quaternions = np.tile([0.0, 0.0, 0.0, 1.0], (len(BLOCKS), 1))
        self._bullet: _Client | None = _Client(pybullet.GUI if gui else pybullet.DIRECT)
        self._build_world()
        self._place(inverse_kinematics(*HOME_TIP), self._resting_layout(np.arange(4) * math.pi / 4 - 3 * math.pi / 8))

    # ---- Gymnasium interface -------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start an episode and return its first observation (39,) and the info of `step`.

        options: 'joints' (7,) [rad] and 'blocks' (4, 4), rows x, y, z [m], yaw [rad]. What is left out is the home
        pose, and slabs on a circle of 0.6 m at random azimuths and yaws drawn from the seed.
        """
        super().reset(seed=seed)
        given = dict(options or {})
        joints = _checked(given.pop("joints", inverse_kinematics(*HOME_TIP)), (7,), "reset option 'joints'")
        _check_joint_limits(joints, "reset option 'joints'")
        blocks = given.pop("blocks", None)
        if given:
            raise ValueError(f"reset option {sorted(given)[0]!r} is unknown: use 'joints' or 'blocks'")
        if blocks is None:
            layout = self._random_layout()
        else:
            rows = _checked(blocks, (4, 4), "reset option 'blocks'")
            half = np.remainder(rows[:, 3:] + math.pi, 2.0 * math.pi) / 2.0 - math.pi / 2.0
            layout = np.hstack([rows[:, :3], np.zeros((4, 2)), np.sin(half), np.cos(half)])
        self._place(joints, layout)
        self._legacy.reset()
        self._steps = 0
        relations = self.relations()
        self._relation_count = stacking.tallest_chain(relations)
        return self.observe(), self._info(relations)

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Apply an action (8,) for one tick. The reward is the growth of the tallest chain, in relations.

        ValueError for an action of another shape, with a number that is not finite, or beyond a limit.
        """
        self.apply(action)
        self.advance(SUBSTEPS_PER_TICK)
        self._steps += 1
        relations = self.relations()
        count = stacking.tallest_chain(relations)
        reward = float(count - self._relation_count)
        self._relation_count = count
        return self.observe(), reward, False, self._steps >= self.episode_steps, self._info(relations)

    def render(self) -> NDArray[np.uint8] | None:
        """The scene as (360, 480, 3) RGB for render_mode 'rgb_array', else None."""
        if self.render_mode is None:
            return None
        bullet, (width, height) = self._client, IMAGE_SIZE
        view = bullet.computeViewMatrixFromYawPitchRoll((0.0, 0.0, 0.22), 2.3, 78.0, -40.0, 0.0, 2)
        projection = bullet.computeProjectionMatrixFOV(42.0, width / height, 0.1, 40.0)
        pixels = bullet.getCameraImage(
            width,
            height,
            view,
            projection,
            lightDirection=(1.0, -1.2, 3.0),
            lightAmbientCoeff=0.55,
            lightDiffuseCoeff=0.45,
            lightSpecularCoeff=0.05,
            shadow=0,
            renderer=pybullet.ER_TINY_RENDERER,
        )[2]
        return np.asarray(pixels, dtype=np.uint8).reshape(height, width, 4)[..., :3].copy()

    def close(self) -> None:
        """End the simulation; harmless when called again."""
        if self._bullet is not None:
            bullet, self._bullet = self._bullet, None
            if bullet.isConnected():
                bullet.disconnect()

    # ---- For a real-time bridge ----------------------------------------------------------------------------------

    def apply(self, action: ArrayLike) -> None:
        """Set the joint motors' targets and the gripper from an action (8,), without passing time.

        A gripper value above 0.5 closes it: it takes hold of the nearest slab within reach, if it holds none.
        """
        target = _checked(action, (8,), "action")
        _check_joint_limits(target[:7], "action")
        if not 0.0 <= target[7] <= 1.0:
            raise ValueError(f"action: gripper is {target[7]:g}, outside its limits 0 and 1")
        self._set_targets(np.clip(target[:7], JOINT_LOWER, JOINT_UPPER))
        if target[7] <= 0.5:
            self._release()
        elif self._held is None:
            self._take_hold()

    def advance(self, substeps: int) -> None:
        """Simulate `substeps` steps of 1/240 s."""
        bullet = self._client
        for _ in range(substeps):
            bullet.stepSimulation()
        positions = [bullet.getBasePositionAndOrientation(body)[0] for body in self._slabs]
        self._legacy.update(positions, self._attached())

    def observe(self) -> NDArray[np.float64]:
        """The state (39,), channels as in `CHANNELS`.

        A rotation has two quaternions; of these the one nearer to the previous observation's is given, so that
        trajectories are continuous. The first one after a reset has qw >= 0.
        """
        bullet = self._client
        observation = np.empty(OBSERVATION_SIZE)
        observation[:7] = [state[0] for state in bullet.getJointStates(self._arm, _JOINTS)]
        blocks = observation[7:].reshape(len(BLOCKS), 8)
        for index, body in enumerate(self._slabs):
            position, quaternion = bullet.getBasePositionAndOrientation(body)
            blocks[index, :3] = position
            blocks[index, 3:7] = quaternion
        blocks[:, 3:7] *= np.where((blocks[:, 3:7] * self._quaternions).sum(axis=1) < 0.0, -1.0, 1.0)[:, None]
        self._quaternions = blocks[:, 3:7].copy()
        blocks[:, 7] = self._attached()
        return observation

    def relations(self) -> frozenset[stacking.Relation]:
        """The relations standing now, as `(upper, lower)` block indices."""
        bullet = self._client
        positions = [bullet.getBasePositionAndOrientation(body)[0] for body in self._slabs]
        velocities = np.array([bullet.getBaseVelocity(body) for body in self._slabs])
        linear, angular = np.linalg.norm(velocities, axis=-1).T
        return stacking.standing_relations(positions, self._attached(), linear + angular * SLAB_SIZE[0] / 2.0)

    def scores(self) -> dict[str, float]:
        """`score` (unconditional) and `legacy_score` (the original's rule, see `LegacyScore`), both 0 to 100."""
        return {"score": stacking.unconditional_score(self.relations()), "legacy_score": self._legacy.score}

    @property
    def held(self) -> str | None:
        """Name of the block the gripper holds, or None."""
        return None if self._held is None else BLOCKS[self._held]

    def set_state(self, observation: ArrayLike) -> None:
        """Put the arm and the slabs where an observation (39,) says, at rest, without passing time."""
        state = _checked(observation, (OBSERVATION_SIZE,), "state")
        blocks = state[7:].reshape(len(BLOCKS), 8)
        norms = np.linalg.norm(blocks[:, 3:7], axis=1)
        if (norms < 1e-3).any():
            raise ValueError(f"state: the quaternion of block {BLOCKS[int(norms.argmin())]!r} has length zero")
        holding = np.flatnonzero(blocks[:, 7] > 0.5)
        if holding.size > 1:
            raise ValueError(f"state: {holding.size} blocks are attached and the gripper holds one at most")
        self._place(state[:7], np.hstack([blocks[:, :3], blocks[:, 3:7] / norms[:, None]]))
        if holding.size:
            self._attach(int(holding[0]))

    def displace(self, block: int, dx: float, dy: float) -> None:
        """Move a slab sideways by (dx, dy) [m] at once, at rest, as if it had been knocked away; ValueError if it is held."""
        if block == self._held:
            raise ValueError(f"{BLOCKS[block]} is held and cannot be displaced")
        bullet, slab = self._client, self._slabs[block]
        (x, y, z), quaternion = bullet.getBasePositionAndOrientation(slab)
        bullet.resetBasePositionAndOrientation(slab, (x + dx, y + dy, z), quaternion)
        bullet.resetBaseVelocity(slab, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))

    # ---- Simulation ----------------------------------------------------------------------------------------------

    @property
    def _client(self) -> _Client:
        if self._bullet is None:
            raise RuntimeError("this KukaStackEnv has been closed")
        return self._bullet

    def _build_world(self) -> None:
        bullet = self._client
        bullet.setTimeStep(SUBSTEP)
        bullet.setGravity(0.0, 0.0, -9.81)
        bullet.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        ground_shape = bullet.createCollisionShape(pybullet.GEOM_PLANE)
        ground_look = bullet.createVisualShape(
            pybullet.GEOM_BOX,
            halfExtents=(12.0, 12.0, 0.005),
            rgbaColor=(0.86, 0.87, 0.89, 1.0),
            visualFramePosition=(0.0, 0.0, -0.005),
        )
        ground = bullet.createMultiBody(0.0, ground_shape, ground_look)
        bullet.changeDynamics(ground, -1, lateralFriction=SLAB_FRICTION)
        model = Path(pybullet_data.getDataPath()) / "kuka_iiwa" / "model.urdf"
        self._arm = bullet.loadURDF(str(model), useFixedBase=True)
        half = [edge / 2.0 for edge in SLAB_SIZE]
        box = bullet.createCollisionShape(pybullet.GEOM_BOX, halfExtents=half)
        self._slabs: list[int] = []
        for colour in _COLOURS:
            look = bullet.createVisualShape(pybullet.GEOM_BOX, halfExtents=half, rgbaColor=colour)
            self._slabs.append(bullet.createMultiBody(SLAB_MASS, box, look))
            bullet.changeDynamics(self._slabs[-1], -1, lateralFriction=SLAB_FRICTION)

    def _random_layout(self) -> NDArray[np.float64]:
        """Slab poses (4, 7) at rest on the circle; azimuths are uniform among all that keep the separation."""
        low, high = AZIMUTH_RANGE
        count = len(BLOCKS)
        azimuths = np.sort(self.np_random.uniform(low, high - (count - 1) * AZIMUTH_SEPARATION, count))
        azimuths = self.np_random.permutation(azimuths + AZIMUTH_SEPARATION * np.arange(count))
        return self._resting_layout(azimuths, self.np_random.uniform(-math.pi, math.pi, count))

    @staticmethod
    def _resting_layout(azimuths: NDArray[np.float64], yaws: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Slab poses (4, 7), position and quaternion, flat on the ground at the circle's radius."""
        layout = np.zeros((len(BLOCKS), 7))
        half = (azimuths if yaws is None else yaws) / 2.0
        layout[:, 0], layout[:, 1] = CIRCLE_RADIUS * np.cos(azimuths), CIRCLE_RADIUS * np.sin(azimuths)
        layout[:, 2] = SLAB_HEIGHT / 2.0
        layout[:, 5], layout[:, 6] = np.sin(half), np.cos(half)
        return layout

    def _place(self, joints: NDArray[np.float64], layout: NDArray[np.float64]) -> None:
        """Put the arm and the slabs at rest at the given poses.

        Slabs are first lifted out of all contacts: the simulator would otherwise start from those of the previous
        episode where a slab returns to nearly the same place, and the same seed would not give the same episode.
        """
        bullet = self._client
        self._release()
        for index, slab in enumerate(self._slabs):
            bullet.resetBasePositionAndOrientation(slab, (0.0, 0.0, 10.0 + index), (0.0, 0.0, 0.0, 1.0))
        bullet.performCollisionDetection()
        for joint, angle in enumerate(joints):
            bullet.resetJointState(self._arm, joint, float(angle), 0.0)
        for slab, position, quaternion in zip(self._slabs, layout[:, :3], layout[:, 3:], strict=True):
            bullet.resetBasePositionAndOrientation(slab, position, quaternion)
            bullet.resetBaseVelocity(slab, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        self._quaternions = layout[:, 3:].copy()
        self._set_targets(joints)

    def _set_targets(self, joints: NDArray[np.float64]) -> None:
        self._client.setJointMotorControlArray(
            self._arm,
            _JOINTS,
            pybullet.POSITION_CONTROL,
            targetPositions=joints,
            positionGains=[POSITION_GAIN] * 7,
            velocityGains=[1.0] * 7,
            forces=[JOINT_EFFORT] * 7,
        )

    def _attached(self) -> NDArray[np.bool_]:
        return np.arange(len(BLOCKS)) == (-1 if self._held is None else self._held)

    def _take_hold(self) -> None:
        """Attach the nearest slab whose top face is within the tip's reach, if there is one."""
        bullet = self._client
        tip, _ = forward_kinematics([state[0] for state in bullet.getJointStates(self._arm, _JOINTS)])
        nearest, nearest_distance = None, math.inf
        for index, body in enumerate(self._slabs):
            position, quaternion = bullet.getBasePositionAndOrientation(body)
            rotation = np.array(bullet.getMatrixFromQuaternion(quaternion)).reshape(3, 3)
            x, y, z = rotation.T @ (tip - position)
            top = math.copysign(SLAB_HEIGHT / 2.0, rotation[2, 2])
            across, along = math.hypot(x, y), abs(z - top)
            if across <= REACH_RADIUS and along <= REACH_HEIGHT and math.hypot(across, along) < nearest_distance:
                nearest, nearest_distance = index, math.hypot(across, along)
        if nearest is not None:
            self._attach(nearest)

    def _attach(self, block: int) -> None:
        """Fix a slab to the flange at its present relative pose, with a limited force."""
        bullet = self._client
        link = bullet.getLinkState(self._arm, _FLANGE, computeForwardKinematics=True)
        inverse = bullet.invertTransform(link[0], link[1])
        position, quaternion = bullet.multiplyTransforms(
            *inverse, *bullet.getBasePositionAndOrientation(self._slabs[block])
        )
        self._constraint = bullet.createConstraint(
            self._arm,
            _FLANGE,
            self._slabs[block],
            -1,
            pybullet.JOINT_FIXED,
            (0.0, 0.0, 0.0),
            parentFramePosition=position,
            childFramePosition=(0.0, 0.0, 0.0),
            parentFrameOrientation=quaternion,
        )
        bullet.changeConstraint(self._constraint, maxForce=GRIP_FORCE)
        self._held = block

    def _release(self) -> None:
        if self._constraint is not None:
            self._client.removeConstraint(self._constraint)
        self._constraint = self._held = None

    def _info(self, relations: frozenset[stacking.Relation]) -> dict[str, Any]:
        return {
            "relations": sorted(stacking.format_relation(relation) for relation in relations),
            "score": stacking.unconditional_score(relations),
            "legacy_score": self._legacy.score,
            "held": self.held,
        }


def _checked(value: ArrayLike, shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    """`value` as a finite float64 array of the given shape, or a ValueError that names it."""
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array.tolist()}")
    return array


def _check_joint_limits(joints: NDArray[np.float64], name: str) -> None:
    beyond = np.flatnonzero((joints < JOINT_LOWER - LIMIT_SLACK) | (joints > JOINT_UPPER + LIMIT_SLACK))
    if beyond.size:
        joint = int(beyond[0])
        raise ValueError(
            f"{name}: {JOINT_NAMES[joint]} is {joints[joint]:.4f} rad, outside its limits "
            f"{JOINT_LOWER[joint]:.4f} and {JOINT_UPPER[joint]:.4f} rad"
        )
