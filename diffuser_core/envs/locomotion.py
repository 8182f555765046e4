"""The locomotion robots of the paper's Table 2: Gymnasium's MuJoCo environments, their channels and D4RL's scores."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ['ROBOTS', 'Robot', 'robot_of', 'score']


@dataclass(frozen=True)
class Robot:
    """One of Gymnasium's MuJoCo robots.

    env_id        of the environment; an episode ends after 1000 steps, or when the robot falls
    observations  how many numbers it observes
    actions       how many joints it drives, torques in shares of the largest, [-1, 1]
    random_score, expert_score  returns that D4RL's normalised score calls 0 and 100 (Fu et al. 2020, infos.py)
    """

    name: str
    env_id: str
    observations: int
    actions: int
    random_score: float
    expert_score: float


ROBOTS = {robot.name: robot for robot in (
    Robot('hopper', 'Hopper-v5', 11, 3, -20.272305, 3234.3),
    Robot('walker2d', 'Walker2d-v5', 17, 6, 1.629008, 4592.3),
    Robot('halfcheetah', 'HalfCheetah-v5', 17, 6, -280.178953, 12135.0),
)}


def robot_of(name: str) -> Robot:
    """The robot of this name; ValueError naming what there is."""
    if name not in ROBOTS:
        raise ValueError(f'there is no robot {name!r}; there are {", ".join(ROBOTS)}')
    return ROBOTS[name]


def score(robot: Robot, returned: float) -> float:
    """D4RL's normalised score of an episode's return: 0 random, 100 its expert."""
    return 100.0 * (returned - robot.random_score) / (robot.expert_score - robot.random_score)
