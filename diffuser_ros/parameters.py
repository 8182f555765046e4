"""Parameters of the planner node: declared with description and range, read into one typed object."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node

from diffuser_core.envs.stacking_policy import StackingPolicy
from diffuser_core.planner import Sampling

__all__ = ['PlannerParameters', 'StartError', 'declare_parameters']

KINDS = {str: 'a text', bool: 'true or false', int: 'a whole number', float: 'a number with a decimal point'}


class StartError(ValueError):
    """A node that cannot start; the message is one sentence that says what to change."""


def _parameter(default: Any, description: str, low: float | None = None, high: float | None = None, *,
               changeable: bool = False) -> Any:
    return field(default=default, metadata={'description': description, 'range': (low, high), 'changeable': changeable})


@dataclass(frozen=True)
class PlannerParameters:
    """What can be set on the planner node; `metadata` of each field holds its description and range."""

    checkpoint: str = _parameter('', 'checkpoint folder; empty: the one that ships with the package')
    robot: str = _parameter('auto', "what it drives: 'kuka', 'gym', or 'auto': decided from the checkpoint's channels")
    device: str = _parameter('cpu', "where the network runs: 'cpu', 'cuda', 'cuda:1', ...")
    backend: str = _parameter('traced', "how the network is executed: 'traced', 'eager', 'compiled', 'openvino', 'openvino-bf16'")
    seed: int = _parameter(0, 'seed of the planner, taken at start and by ~/reset', 0, 2**31 - 1)
    tick_rate: float = _parameter(24.0, 'control ticks, and points of a command, per second [Hz]', 1.0, 200.0)
    lock_step: bool = _parameter(False, 'answer every state exactly once instead of ticking by the clock')
    state_timeout: float = _parameter(0.25, 'age beyond which a state is not planned from [s], real time only', 0.01,
                                      10.0, changeable=True)
    steps: int = _parameter(Sampling.steps, 'denoising steps of a plan made from pure noise', 1, 1000)
    warm_steps: int = _parameter(Sampling.warm_steps, 'denoising steps of a plan made from the last one', 1, 1000)
    warm_level: float = _parameter(Sampling.warm_level, 'share of the noise levels that the last plan is noised up to',
                                   0.001, 1.0)
    commit: int = _parameter(StackingPolicy.COMMIT, 'plan steps for which the motion of the last plan is kept', 0, 32)
    replan_interval: float = _parameter(0.05, 'robot gym, real time: least time from one plan to the next [s]', 0.0, 10.0)
    max_joint_speed: float = _parameter(6.0, 'robot kuka: commands are clamped to this speed [rad/s]', 0.01, 50.0,
                                        changeable=True)
    threads: int = _parameter(1, 'CPU threads of the network; one is robust against busy neighbours', 1, 256)


def declare_parameters(node: Node) -> PlannerParameters:
    """Declare all parameters on `node` and read them; StartError for a value of the wrong type or out of range."""
    values = {}
    for parameter in fields(PlannerParameters):
        low, high = parameter.metadata['range']
        descriptor = ParameterDescriptor(description=parameter.metadata['description'],
                                         read_only=not parameter.metadata['changeable'])
        if isinstance(parameter.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif low is not None:
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        try:
            values[parameter.name] = node.declare_parameter(parameter.name, parameter.default, descriptor).value
        except ParameterException as error:
            allowed = KINDS[type(parameter.default)] + ('' if low is None else f' from {low} to {high}')
            raise StartError(f'the parameter {parameter.name} must be {allowed}: '
                             f'{str(error).removesuffix(f": {parameter.name}")}') from error
    return PlannerParameters(**values)
