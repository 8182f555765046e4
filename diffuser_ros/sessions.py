"""What a planning session is made of: the policy that the parameters name, and who reviews its plans. Loads PyTorch."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from diffuser_core.envs.maze_motion import check_goal
from diffuser_core.envs.maze_policy import MazePolicy
from diffuser_core.envs.policies import make_policy
from diffuser_ros.inference import Ready, Session, SessionSettings, any_goal
from diffuser_ros.run_setup import backend_here
from diffuser_ros.validator import Validated, load_validator

__all__ = ['make_session']


def make_session(settings: SessionSettings) -> tuple[Session, Ready]:
    """The session, warmed up; PolicyError if the policy cannot be made, ValidatorError if there is no such validator."""
    validated = Validated(load_validator(settings.validator), settings.attempts) if settings.validator else None
    policy = make_policy(settings.policy)
    check = partial(check_goal, policy.maze) if isinstance(policy, MazePolicy) else any_goal
    return Session(policy, validated), Ready(check, backend_here(asdict(settings.policy)), policy.planner.channels)
