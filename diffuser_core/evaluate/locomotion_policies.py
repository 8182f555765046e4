"""Controllers to compare the locomotion planner with, with the interface of `LocomotionPolicy`, and the record of an episode."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

from diffuser_core.envs.locomotion import Robot, score
from diffuser_core.envs.locomotion_motion import LocomotionDecision
from diffuser_core.evaluate.statistics import quantiles
from diffuser_core.experts.behaviour import Actor, actors_file, load_actors

__all__ = ['BASELINES', 'FAILURES', 'LearnedPolicy', 'LocomotionController', 'baseline', 'failure_of', 'run_locomotion_episode']

BASELINES = ('random', 'behaviour-medium', 'behaviour-best')
"""Uniform torques; the mean actions of the snapshots that drove for 'medium' and 'expert'."""
FAILURES = ('fell', 'stuck')
"""'stuck': at the end of its time the robot does not move, lies on its back or nose."""
STUCK_TICKS, STUCK_SPEED = 100, 0.1
"""A robot is stuck whose mean speed forward [m/s] over the last so many ticks is below this."""


class LocomotionController(Protocol):
    """What an episode asks of a controller."""

    @property
    def replans(self) -> int:
        """Plans made since the last reset."""

    def reset(self, seed: int = 0) -> None:
        """Back to the state after construction, with another seed."""

    def replan(self, observation: Mapping[str, float], now: float, delay: float = 0.0) -> Any:
        """Make the plan anew, if there are plans; it is followed `delay` [s] later, and until then what the last one says."""

    def command(self, observation: Mapping[str, float], now: float) -> LocomotionDecision:
        """Torques from the state at time `now` [s]."""


class _WithoutPlans:
    replans = 0

    def reset(self, seed: int = 0) -> None:
        """Nothing to go back to."""

    def replan(self, observation: Mapping[str, float], now: float, delay: float = 0.0) -> None:
        """There are no plans."""


class RandomTorques(_WithoutPlans):
    """Torques drawn uniformly from [-1, 1] at every tick: about D4RL's score of 0."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Start the sequence of draws again."""
        self._rng = np.random.default_rng(seed)

    def command(self, observation: Mapping[str, float], now: float) -> LocomotionDecision:
        """Random torques."""
        return LocomotionDecision(self._rng.uniform(-1.0, 1.0, (1, self._robot.actions)), None)


class ActorPolicy(_WithoutPlans):
    """The mean action of a behaviour policy."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def command(self, observation: Mapping[str, float], now: float) -> LocomotionDecision:
        """Its mean."""
        return LocomotionDecision(self._actor.act(np.array(list(observation.values())))[None].astype(np.float64), None)


class LearnedPolicy(_WithoutPlans):
    """A network from an observation (1, observations) to torques (1, actions) at every tick."""

    def __init__(self, network: torch.nn.Module, robot: Robot) -> None:
        try:
            with torch.no_grad():
                shape = tuple(network(torch.zeros(1, robot.observations)).shape)
        except RuntimeError:
            shape = ()
        if shape != (1, robot.actions):
            raise ValueError(f'the network must turn (1, {robot.observations}) into (1, {robot.actions}), it gives {shape}')
        self._network = network

    @classmethod
    def load(cls, path: str | Path, robot: Robot) -> LearnedPolicy:
        """From a TorchScript file, as `benchmarks/baselines/train.py` writes; FileNotFoundError, or ValueError if it is none."""
        if not Path(path).is_file():
            raise FileNotFoundError(f'no trained baseline at {path}')
        try:
            network = torch.jit.load(str(path), map_location='cpu')
        except RuntimeError as error:
            raise ValueError(f'{path} is not a trained baseline (TorchScript): {str(error).splitlines()[0]}') from error
        return cls(network, robot)

    def reset(self, seed: int = 0) -> None:
        """A network may draw random numbers."""
        torch.manual_seed(seed)

    def command(self, observation: Mapping[str, float], now: float) -> LocomotionDecision:
        """The network's torques."""
        with torch.no_grad():
            torques = self._network(torch.tensor([list(observation.values())], dtype=torch.float32)).double().numpy()
        return LocomotionDecision(np.clip(torques, -1.0, 1.0), None)


def baseline(name: str, robot: Robot) -> LocomotionController:
    """One of `BASELINES`, or the learned one in the file `name`."""
    if name == 'random':
        return RandomTorques(robot)
    if name in BASELINES:
        actors, medium = load_actors(actors_file(robot.name))
        return ActorPolicy(actors[medium if name == 'behaviour-medium' else max(actors)])
    return LearnedPolicy.load(name, robot)


def failure_of(fell: bool, speeds: Sequence[float]) -> str | None:
    """One of `FAILURES`, or None, for an episode with these speeds forward [m/s], one a tick."""
    if fell:
        return FAILURES[0]
    return FAILURES[1] if float(np.mean(speeds[-STUCK_TICKS:])) < STUCK_SPEED else None


def run_locomotion_episode(policy: LocomotionController, robot: Robot, task: str, seed: int, *,
                           replan_every: int = 1, delay: float = 0.0) -> dict[str, Any]:
    """Run one seeded episode and return its record, one JSON object:

    task, seed     what was asked for
    return, score  sum of the rewards; D4RL's normalised score of it
    ticks          control ticks until the robot fell or the time was up; failure: one of `FAILURES`, or None
    replans        plans made
    planning_ms    {'p50', 'p99'} of the calls that planned, None if none did; command_ms: of the others, every tick

    replan_every  ticks between plans
    delay         time [s] from a state to when its plan is followed; the first plan of an episode is waited for
    """
    env = gymnasium.make(robot.env_id)
    tick = env.unwrapped.dt  # type: ignore[attr-defined]
    names = [f'obs.{n}' for n in range(robot.observations)]
    state, _ = env.reset(seed=seed)
    policy.reset(seed)
    returned, ticks, fell, over = 0.0, 0, False, False
    speeds: list[float] = []
    planning: list[float] = []
    commanding: list[float] = []
    while not over:
        observation, now = dict(zip(names, state.tolist())), ticks * tick
        began = time.perf_counter()
        if ticks % replan_every == 0:
            before = policy.replans
            policy.replan(observation, now, delay if ticks else 0.0)
            if policy.replans > before:
                planning.append(1e3 * (time.perf_counter() - began))
        began = time.perf_counter()
        decision = policy.command(observation, now)
        commanding.append(1e3 * (time.perf_counter() - began))
        state, reward, fell, cut, info = env.step(decision.actions[0].astype(np.float32))
        returned += float(reward)
        speeds.append(float(info['x_velocity']))
        ticks += 1
        over = fell or cut
    env.close()
    return {'task': task, 'seed': seed, 'return': returned, 'score': score(robot, returned), 'ticks': ticks,
            'failure': failure_of(fell, speeds), 'replans': policy.replans, 'planning_ms': quantiles(planning),
            'command_ms': quantiles(commanding)}
