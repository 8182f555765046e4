"""What a policy decides, once planning and following are apart: something to be followed until its successor comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from diffuser_core.trajectory import Plan

__all__ = ['Motion', 'Observation', 'Policy']

Observation = Mapping[str, float]
"""Channel name -> value."""


class Motion(Protocol):
    """A plan made ready to be followed. Needs nothing beside itself, so that it can be sent to another process.

    plan   the plan, in the model's channels; None where the robot just rests
    shown  the plan for people and other programs, where that is another one
    waits  whether the robot rests until this comes, so that its plan begins when it is first followed (`begun`)
    """

    @property
    def plan(self) -> Plan | None: ...
    @property
    def shown(self) -> Plan | None: ...
    @property
    def waits(self) -> bool: ...
    def begun(self, now: float) -> Motion: ...
    def decide(self, observation: Observation, now: float) -> Any: ...


class Policy(Protocol):
    """A controller for one robot whose slow part, `replan`, may run beside the ticks.

    replan    what to follow from the state at `now` [s] on; `delay` [s] is how long it takes until it is followed, and `budget`
              who is asked before every further denoising step
    begin     says that the motion that `replan` gave last is followed since `now` [s]
    adopt     says that another motion is followed than the one that `replan` gave last, or, with None, that the robot rests
    resting   what to follow until there is a motion
    """

    @property
    def replans(self) -> int: ...
    def reset(self, seed: int = 0) -> None: ...
    def set_goal(self, goal: Any, observation: Observation) -> None: ...
    def clear_goal(self) -> None: ...
    def replan(self, observation: Observation, now: float, delay: float = 0.0, budget: Any = None) -> Any: ...
    def begin(self, now: float) -> None: ...
    def adopt(self, motion: Any) -> None: ...
    def resting(self, observation: Observation) -> Any: ...
