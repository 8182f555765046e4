"""How learned baselines see the stacking task: observations, actions and rewards as one-step transitions.

An observation (20 numbers) is what the planner's network gets for the same subgoal: the features of the state for the block
that is moved, the place where it shall go, and whether that place is on the ground. An action is how far the tip shall move in
the next tick, and the gripper. A segment, 'put block upper on lower', is an episode: its last transition is terminal and has the
reward 1, every other has the reward 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffuser_core.data.demonstrations import SegmentData, find_data_file, load_segments
from diffuser_core.envs.kuka_kinematics import JOINT_NAMES, nearest_joints, planar_tip
from diffuser_core.envs.stacking import GROUND
from diffuser_core.envs.stacking_features import FEATURES, cylindrical, features

__all__ = ['ACTIONS', 'ACTION_SCALE', 'OBSERVATIONS', 'Transitions', 'decode_action', 'encode_actions', 'encode_observation',
           'load_transitions', 'transitions']

OBSERVATIONS = (*FEATURES, 'goal.azimuth', 'goal.radius', 'goal.z', 'goal.ground')
"""Names of the numbers of an observation, in order; 'goal' is where the moved block's centre shall be."""
ACTIONS = ('tip.azimuth', 'tip.radius', 'tip.z', 'gripper')
"""Names of the numbers of an action, in order, each in [-1, 1]; the gripper is closed above 0."""
ACTION_SCALE = np.array([0.2, 0.06, 0.06])
"""How far the tip is to move in a tick for an action of 1: azimuth [rad], radius [m], height [m]."""
STANDSTILL = 0.005
"""The arm is told to stay where each of the first three numbers of an action is smaller than this."""

_JOINTS = len(JOINT_NAMES)


def encode_observation(states: np.ndarray, moved: np.ndarray | int, places: np.ndarray,
                       grounded: np.ndarray | bool) -> np.ndarray:
    """Observations (..., 20), named by `OBSERVATIONS`.

    states (..., 39): columns as `CHANNELS`; moved (...,): index of the block to be moved; places (..., 3): x, y, z [m] where its
    centre shall be; grounded (...,): whether that is on the ground.
    """
    flag = np.broadcast_to(np.asarray(grounded, dtype=np.float64), states.shape[:-1])[..., None]
    return np.concatenate([features(states, moved), cylindrical(places), flag], axis=-1)


def encode_actions(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Actions (..., 4), named by `ACTIONS`, of recorded ones (..., 8) in states (..., 39).

    Recorded are joint targets [rad] and the gripper, 0 or 1. ValueError for a motion of the tip by more than `ACTION_SCALE`.
    """
    motion = (planar_tip(actions[..., :_JOINTS]) - planar_tip(states[..., :_JOINTS])) / ACTION_SCALE
    if np.abs(motion).max(initial=0.0) > 1.0:
        raise ValueError(f'a recorded action moves the tip by {np.abs(motion).max():.2f} times the largest step, {ACTION_SCALE}')
    return np.concatenate([motion, np.where(actions[..., _JOINTS:] > 0.5, 1.0, -1.0)], axis=-1)


def decode_action(action: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, bool]:
    """Joint targets (7,) [rad] and whether to close the gripper, for an action (4,) where the joints measured are (7,) [rad].

    Numbers beyond [-1, 1] count as -1 or 1; a tip out of reach is brought to the edge of the reach.
    """
    step = np.clip(action[:3], -1.0, 1.0) * ACTION_SCALE
    return nearest_joints(planar_tip(joints) + step), bool(action[3] > 0.0)


@dataclass(frozen=True)
class Transitions:
    """One-step transitions of all segments, in order.

    observations, next_observations (n, observations), of stacking as `OBSERVATIONS`, actions (n, actions) as `ACTIONS`, rewards
    (n,), terminals (n,) 0 or 1; all float32. fingerprint: that of the demonstrations. return_span: by how much the best episode's
    return is larger than the worst one's, for tasks that are judged by returns, or None.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminals: np.ndarray
    fingerprint: str
    return_span: float | None = None

    def __len__(self) -> int:
        return len(self.actions)


def load_transitions(path: str | Path) -> Transitions:
    """The transitions of a collected data set; FileNotFoundError where there is none, ValueError where it is damaged."""
    import h5py

    data = load_segments(path)
    with h5py.File(find_data_file(path), 'r') as file:
        episodes = [file[f'episode_{number}'] for number in range(len(file))]
        actions = np.concatenate([episode['actions'][:len(episode['truncations'])] for episode in episodes])
    return transitions(data, actions)


def transitions(data: SegmentData, actions: np.ndarray) -> Transitions:
    """The transitions of segments and of the recorded actions (rows, 8), one for each row of their observations."""
    if actions.shape != (len(data.observations), _JOINTS + 1):
        raise ValueError(f'actions must have shape {(len(data.observations), _JOINTS + 1)}, got {actions.shape}')
    parts = [_segment(data, actions, segment) for segment in range(len(data))]
    seen, done = zip(*parts)
    rewards = np.concatenate([np.eye(1, len(part), len(part) - 1, dtype=np.float32)[0] for part in done])
    return Transitions(np.concatenate([part[:-1] for part in seen]), np.concatenate(done), rewards,
                       np.concatenate([part[1:] for part in seen]), rewards, data.fingerprint)


def _segment(data: SegmentData, actions: np.ndarray, segment: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations (ticks + 1, 20) and actions (ticks, 4) of a segment; where the block ends up is where it should go."""
    start, end = data.bounds[segment]
    upper, lower = data.pairs[segment]
    states = data.observations[start:end].astype(np.float64)
    first = data.channels.index('red.x') + 8 * upper
    place = np.broadcast_to(states[-1, first:first + 3], (len(states), 3))
    encoded = encode_actions(states[:-1], actions[start:end - 1])
    encoded[:, 3] = _without_waiting(encoded)
    return (encode_observation(states, upper, place, lower == GROUND).astype(np.float32), encoded.astype(np.float32))


def _without_waiting(actions: np.ndarray) -> np.ndarray:
    """Gripper labels (ticks,) of actions (ticks, 4): where the arm is told to stay, the one that this standstill ends with.

    The demonstrator waits some ticks before it grips or lets go. A policy that sees only the present state cannot count them;
    from one and the same state it would learn to wait for ever.
    """
    still = (np.abs(actions[:, :3]) < STANDSTILL).all(axis=1)
    labels = actions[:, 3].copy()
    for t in range(len(labels) - 2, -1, -1):
        if still[t] and still[t + 1]:
            labels[t] = labels[t + 1]
    return labels
