"""Any Gymnasium environment with Box spaces as a robot with named channels. Nothing here talks to ROS."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

import diffuser_core.envs  # noqa: F401  (registers the ids that begin with 'diffuser/')
from diffuser_core.config import ConfigError, parse_yaml
from diffuser_core.messages import shown

__all__ = ['EnvError', 'GymRobot', 'Joint', 'Recording', 'StaticBox', 'parse_kwargs']

HINGE, SLIDE, BOX = 3, 2, 6
"""MuJoCo's numbers for types of joints and geoms (mjtJoint, mjtGeom)."""


class EnvError(ValueError):
    """An environment that cannot be used as a robot; the message is one sentence that says why."""


@dataclass(frozen=True)
class Joint:
    """A hinge or slide joint: its name, and where its position and velocity stand in MuJoCo's qpos and qvel."""

    name: str
    position: int
    velocity: int


@dataclass(frozen=True)
class StaticBox:
    """A box of the scene that never moves: place (3,) [m], orientation (4,) as x, y, z, w, and lengths of its edges (3,) [m]."""

    name: str
    place: NDArray[np.float64]
    orientation: NDArray[np.float64]
    size: NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """An episode as what it takes to run it again: seed, goal (empty for the environment's own) and actions (steps, actions);
    `last` is the state vector that it ended in."""

    env: str
    kwargs: Mapping[str, Any]
    seed: int
    goal: Sequence[float]
    actions: NDArray[np.float64]
    last: NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write as .npz."""
        described = json.dumps({'env': self.env, 'kwargs': dict(self.kwargs), 'seed': self.seed,
                                'goal': list(self.goal)})
        with open(path, 'wb') as file:
            np.savez_compressed(file, described=np.array(described), actions=self.actions, last=self.last)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            described = json.loads(str(arrays['described']))
            return cls(**described, actions=arrays['actions'], last=arrays['last'])


def parse_kwargs(text: str) -> dict[str, Any]:
    """Arguments of an environment from YAML or JSON, empty for none; EnvError if the text is not a mapping from names."""
    try:
        given = parse_yaml(text) if text.strip() else {}
    except ConfigError as error:
        raise EnvError(f'kwargs is not YAML: {error}') from None
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise EnvError(f"kwargs must be a mapping such as '{{max_episode_steps: 300}}', not {shown(text)}")
    return given


CAMERA = 'track'
"""What Gymnasium's models call it."""


class GymRobot:
    """An environment made by its id. EnvError if it cannot be made or is none of those with Box (or Dict of Box) observations and
    Box actions.

    state_names   of the state vector: the environment's own `channels` where it says them, else 'obs.0', 'obs.1', ...; those of a
                  Dict space are '<key>.0', '<key>.1', ...
    action_names  of the action vector: its own `actions`, else 'action.0', 'action.1', ...
    low, high     (actions,) limits of the action space
    neutral       (actions,) what is done when nothing is commanded: its own `neutral_action`, else zero, inside the limits
    dt            seconds between two steps, of simulated time
    limit         steps after which the environment cuts an episode off; 0 if it never does
    joints        its hinge and slide joints, if it has a MuJoCo model
    """

    def __init__(self, env: str, kwargs: Mapping[str, Any] | None = None, *, step_dt: float | None = None,
                 render: bool = False) -> None:
        self.id, self.kwargs = env, dict(kwargs or {})
        asked = {'render_mode': 'rgb_array'} if render else {}
        try:
            self._env = gymnasium.make(env, disable_env_checker=True, **{**self.kwargs, **asked})
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EnvError(f'the environment {env!r} cannot be made: {said}') from error
        try:
            self._read(step_dt)
        except Exception:
            self._env.close()
            raise
        if render:
            self._follow()

    def _read(self, step_dt: float | None) -> None:
        """Find out what the environment is like."""
        own, action = self._env.unwrapped, self._env.action_space
        if not isinstance(action, spaces.Box):
            raise EnvError(f'the environment {self.id!r} cannot be driven: its action space is {_kind(action)}, not Box')
        self._action = action
        self.state_names = tuple(_names(self._env.observation_space, '', self.id))
        if isinstance(self._env.observation_space, spaces.Box):
            self.state_names = self._own_names('channels', self.state_names)
        self.action_names = self._own_names('actions', tuple(f'action.{n}' for n in range(_size(action))))
        self.low = action.low.ravel().astype(np.float64)
        self.high = action.high.ravel().astype(np.float64)
        self.neutral = np.clip(np.ravel(getattr(own, 'neutral_action', np.zeros(_size(action)))), self.low, self.high)
        self.dt = self._step_dt(step_dt)
        self.limit = int((self._env.spec.max_episode_steps if self._env.spec is not None else 0) or 0)
        self.joints = self._joints()

    def _own_names(self, attribute: str, numbered: tuple[str, ...]) -> tuple[str, ...]:
        names = getattr(self._env.unwrapped, attribute, None)
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            return numbered
        if len(set(names)) != len(numbered):
            raise EnvError(f'the environment {self.id!r} names {len(set(names))} {attribute} ({", ".join(names)}) for '
                           f'{len(numbered)} numbers')
        return tuple(names)

    def _step_dt(self, asked: float | None) -> float:
        if asked is not None:
            return asked
        said = [env.dt for env in self._environments() if isinstance(getattr(env, 'dt', None), (int, float))]
        fps = self._env.metadata.get('render_fps')  # pictures need not come once a step, so this is second best
        dt = said[0] if said else 1.0 / fps if fps else 0.0
        if not 0.0 < dt < float('inf'):
            raise EnvError(f'the environment {self.id!r} does not say how long a step lasts: set step_dt')
        return float(dt)

    # ---- Episodes ------------------------------------------------------------------------------------------------

    def reset(self, seed: int, goal: Sequence[float] = ()) -> NDArray[np.float64]:
        """Start the episode of this seed, with the environment's own goal or this one; the state vector (states,). EnvError, and
        nothing is reset, for a goal that the environment does not take."""
        options = None
        if len(goal):
            self._check_goal(goal)
            options = {'goal': np.array(goal, dtype=np.float64)}
        observation, _ = self._env.reset(seed=seed, options=options)
        return self._vector(observation)

    def _check_goal(self, goal: Sequence[float]) -> None:
        """The environment's `set_goal` says with a ValueError what is wrong with a goal."""
        own: Any = self._env.unwrapped
        if not self.goal()[0] or not hasattr(own, 'set_goal'):
            raise EnvError(f'the environment {self.id!r} takes no goal')
        before = own.goal
        try:
            own.set_goal(np.array(goal, dtype=np.float64))
        except ValueError as error:
            raise EnvError(str(error)) from error
        own.goal = before

    def step(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool]:
        """One step with an action (actions,) inside the limits: state vector, reward, terminated, truncated."""
        shaped = action.reshape(self._action.shape).astype(self._action.dtype)
        observation, reward, terminated, truncated, _ = self._env.step(shaped)
        return self._vector(observation), float(reward), bool(terminated), bool(truncated)

    def _follow(self) -> None:
        """Pictures from the model's camera that follows the robot, if it has one: Gymnasium's stands still and loses a runner."""
        renderer = getattr(self._env.unwrapped, 'mujoco_renderer', None)
        if renderer is not None and not {'camera_name', 'camera_id'} & set(self.kwargs):
            import mujoco

            found = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERA)
            if found >= 0:
                renderer.camera_id = found

    def render(self) -> NDArray[np.uint8]:
        """A picture (height, width, 3) of the state it is in; only if made with `render`."""
        picture: Any = self._env.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise EnvError(f'the environment {self.id!r} draws no pictures')
        return picture

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()

    def _vector(self, observation: Any) -> NDArray[np.float64]:
        return np.concatenate([np.ravel(part) for part in _parts(self._env.observation_space, observation)], dtype=np.float64)

    # ---- What is inside ------------------------------------------------------------------------------------------

    def goal(self) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """The environment's own goal by channel names, both empty if it names none."""
        goal = getattr(self._env.unwrapped, 'goal', None)
        names = getattr(self._env.unwrapped, 'channels', None)
        if goal is None or names is None:
            return (), np.zeros(0)
        values = np.ravel(goal).astype(np.float64)
        return tuple(names[:len(values)]), values

    def score(self, returned: float) -> float:
        """The normalised score of a return, 100 for the reference controller's; nan if the environment knows none."""
        scale = getattr(getattr(self._env.unwrapped, 'layout', None), 'score', None)
        return math.nan if scale is None else float(scale(returned))

    def joint_values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions and velocities of `joints`, each (joints,), in rad and m and per second."""
        data: Any = self._simulation()[1]
        return (data.qpos[[joint.position for joint in self.joints]], data.qvel[[joint.velocity for joint in self.joints]])

    def static_boxes(self) -> list[StaticBox]:
        """The boxes fixed to the world, such as the walls of a maze; none without a MuJoCo model."""
        model, _ = self._simulation()
        if model is None:
            return []
        import mujoco

        data = mujoco.MjData(model)  # places in the environment's own data hold only after its first step
        mujoco.mj_kinematics(model, data)
        boxes = []
        for geom in range(model.ngeom):
            if model.geom_type[geom] == BOX and model.body_weldid[model.geom_bodyid[geom]] == 0:
                quaternion = np.zeros(4)
                mujoco.mju_mat2Quat(quaternion, data.geom_xmat[geom])
                boxes.append(StaticBox(model.geom(geom).name or f'geom_{geom}', data.geom_xpos[geom].copy(),
                                       np.roll(quaternion, -1), 2.0 * model.geom_size[geom]))
        return boxes

    def _simulation(self) -> tuple[Any, Any]:
        """MuJoCo's model and data, both None if there are none."""
        holder = self._simulated()
        return (None, None) if holder is None else (holder.model, holder.data)

    def _simulated(self) -> Any:
        """The environment that has a MuJoCo model; None if none has."""
        return next((env for env in self._environments() if _has_model(env)), None)

    def _environments(self) -> list[Any]:
        """This environment, and those inside it (as in gymnasium-robotics' mazes)."""
        own = self._env.unwrapped
        return [own, *(part for part in vars(own).values() if isinstance(part, gymnasium.Env))]

    def _joints(self) -> tuple[Joint, ...]:
        model, _ = self._simulation()
        return tuple(Joint(model.joint(n).name or f'joint_{n}', int(model.jnt_qposadr[n]), int(model.jnt_dofadr[n]))
                     for n in range(0 if model is None else model.njnt) if model.jnt_type[n] in (HINGE, SLIDE))


def _has_model(env: Any) -> bool:
    return hasattr(getattr(env, 'model', None), 'jnt_type') and hasattr(getattr(env, 'data', None), 'qpos')


def _kind(space: Any) -> str:
    return type(space).__name__


def _size(space: spaces.Box) -> int:
    return int(np.prod(space.shape))


def _names(space: Any, prefix: str, env: str) -> Iterator[str]:
    """Names of the numbers of an observation, in the order of `_parts`."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _names(part, f'{prefix}.{key}' if prefix else str(key), env)
    elif isinstance(space, spaces.Box):
        yield from (f'{prefix or "obs"}.{n}' for n in range(_size(space)))
    else:
        where = f' at {prefix}' if prefix else ''
        raise EnvError(f'the environment {env!r} cannot be observed: its observation space is {_kind(space)}{where}, not Box or '
                       'Dict of Box')


def _parts(space: Any, observation: Any) -> Iterator[Any]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _parts(part, observation[key])
    else:
        yield observation
