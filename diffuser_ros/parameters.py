"""Parameters of the planner node: declared with description and range, read into one typed object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from diffuser_core.envs.policy_settings import PolicySettings
from diffuser_core.envs.stacking_motion import COMMIT
from diffuser_core.sampling import Sampling
from diffuser_core.shipped import checkpoint_folder
from diffuser_ros.inference import SessionSettings

__all__ = ['TAIL', 'PlannerParameters', 'StartError', 'declare_parameters']

TAIL = 12
"""Points of a command: what the arm follows, half a second at 24 Hz, if no newer command arrives."""

KINDS = {str: 'a text', bool: 'true or false', int: 'a whole number', float: 'a number with a decimal point'}


class StartError(ValueError):
    """A node that cannot start; the message is one sentence that says what to change."""


def _parameter(default: Any, description: str, low: float | None = None, high: float | None = None, *,
               choices: Sequence[str] = (), changeable: bool = False) -> Any:
    return field(default=default, metadata={'description': description, 'range': (low, high), 'choices': choices,
                                            'changeable': changeable})


@dataclass(frozen=True)
class PlannerParameters:
    """What can be set on the planner node; `metadata` of each field holds its description and range."""

    autostart: bool = _parameter(True, 'configure and activate at once, instead of waiting for a lifecycle manager')
    checkpoint: str = _parameter('', 'checkpoint folder; empty: the one that ships with the package')
    robot: str = _parameter('auto', "what it drives: 'kuka', 'gym' (a maze), 'runner', or 'auto': by the checkpoint's channels")
    device: str = _parameter('cpu', "where the network runs: 'cpu', 'cuda', 'cuda:1', ...")
    backend: str = _parameter('traced', "how the network is executed: 'traced', 'eager', 'compiled', 'openvino', "
                              "'openvino-bf16'")
    threads: int = _parameter(1, 'CPU threads of the network; one is robust against busy neighbours', 1, 256)
    inference: str = _parameter('auto', 'where plans are made: in the tick, in a thread or in a process beside it; auto: in '
                                'lock-step in the tick, else on a CPU in a process, on a GPU in a thread',
                                choices=('auto', 'inline', 'thread', 'process'))
    seed: int = _parameter(0, 'seed of the planner, taken at start and by ~/reset', 0, 2**31 - 1)
    tick_rate: float = _parameter(24.0, 'control ticks, and points of a command, per second [Hz]', 1.0, 200.0)
    lock_step: bool = _parameter(False, 'answer every state exactly once instead of ticking by the clock')
    replan: str = _parameter('every_tick', 'when a plan is begun: every_tick, every_k ticks (replan_every), or on_demand: for a '
                             'new goal, when the last plan ends, and by ~/replan',
                             choices=('every_tick', 'every_k', 'on_demand'), changeable=True)
    replan_every: int = _parameter(5, 'replan every_k: ticks from one plan to the next', 1, 10_000, changeable=True)
    anytime: bool = _parameter(True, 'real time: denoising ends early when a plan would otherwise come after the next is due',
                               changeable=True)
    state_timeout: float = _parameter(0.25, 'age beyond which a state is not planned from [s], real time only', 0.01,
                                      10.0, changeable=True)
    plan_timeout: float = _parameter(0.5, 'age beyond which a plan is not followed any more [s]; on_demand: its end counts',
                                     0.01, 60.0, changeable=True)
    steps: int = _parameter(Sampling.steps, 'denoising steps of a plan made from pure noise', 1, 1000)
    warm_steps: int = _parameter(Sampling.warm_steps, 'denoising steps of a plan made from the last one', 1, 1000)
    warm_level: float = _parameter(Sampling.warm_level, 'share of the noise levels that the last plan is noised up to',
                                   0.001, 1.0)
    commit: int = _parameter(COMMIT, 'robot kuka: plan steps, at least, for which the motion of the last plan is kept', 0, 32)
    candidates: int = _parameter(8, 'robots gym and runner: plans drawn at once, of which the best is followed', 1, 1024)
    guide_scale: float = _parameter(0.0, 'robot runner: how strongly the predicted return bends plans', 0.0, 1e3)
    aim_offset: float = _parameter(0.0, 'robot runner: by how much more return is aimed at than suits the checkpoint best, in '
                                   'deviations of the data; below 0 for a slower run', -10.0, 10.0)
    prefix: bool = _parameter(True, 'whether a plan agrees with the last one until it is expected to arrive', changeable=True)
    validator: str = _parameter('', "who judges plans before they are followed: 'package.module:function'; empty: nobody")
    attempts: int = _parameter(3, 'plans drawn, at most, while the validator asks for another one', 1, 100)
    robot_description: str = _parameter('', 'robot kuka: URDF that the joints\' limits are taken from; empty: those of the iiwa')
    max_joint_speed: float = _parameter(6.0, 'robot kuka: commands are clamped to this speed [rad/s]', 0.01, 50.0,
                                        changeable=True)
    max_joint_acceleration: float = _parameter(60.0, 'robot kuka: and to this acceleration [rad/s^2]', 0.1, 1e4,
                                               changeable=True)
    max_jump: float = _parameter(0.5, 'robot kuka: a command that begins farther from where the arm is measured or commanded to '
                                 'be is not sent [rad]', 0.001, 10.0, changeable=True)
    max_action_change: float = _parameter(2.0, 'robots gym, runner: largest change of an action from tick to tick', 0.001, 2.0,
                                          changeable=True)
    clock_tolerance: float = _parameter(0.5, 'real time: stamps of states may go back or ahead by so much [s]', 0.001, 3600.0)
    record: str = _parameter('', 'a new file that the run is recorded to (.mcap), to be replayed; empty: none')
    inject_delay: float = _parameter(0.0, 'lock-step: plans arrive so much later [s]', 0.0, 10.0)
    inject_jitter: float = _parameter(0.0, 'lock-step: and up to so much more [s], drawn anew for each', 0.0, 10.0)
    inject_loss: float = _parameter(0.0, 'lock-step: and this share of them never', 0.0, 0.99)

    @property
    def policy(self) -> PolicySettings:
        """What the policy is made of."""
        return PolicySettings(self.robot, self.checkpoint, self.device, self.backend, self.threads, self.seed,
                              Sampling(self.steps, self.warm_steps, self.warm_level), self.tick_rate, TAIL, self.commit,
                              self.candidates, self.guide_scale, self.aim_offset)

    @property
    def folder(self) -> Path:
        """The checkpoint in use."""
        return Path(self.checkpoint).expanduser() if self.checkpoint else checkpoint_folder('kuka_stack')

    @property
    def session(self) -> SessionSettings:
        """What a planning session is made of."""
        return SessionSettings(self.policy, self.validator, self.attempts)

    @property
    def place(self) -> str:
        """Where plans are made: 'inline', 'thread' or 'process'."""
        if self.inference != 'auto':
            return self.inference
        return 'inline' if self.lock_step else 'process' if self.device == 'cpu' else 'thread'


def declare_parameters(node: Node) -> PlannerParameters:
    """Declare all parameters on `node` and read them; StartError for a value of the wrong type, out of range, or no choice.

    A change while it runs is refused with the reason if it is no such value, and nothing changes.
    """
    values = {}
    for parameter in fields(PlannerParameters):
        low, high = parameter.metadata['range']
        choices = parameter.metadata['choices']
        descriptor = ParameterDescriptor(description=parameter.metadata['description'],
                                         additional_constraints=f'one of {", ".join(choices)}' if choices else '',
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
        if why := _no_choice(parameter.name, values[parameter.name]):
            raise StartError(why)
    node.add_on_set_parameters_callback(_review)
    return PlannerParameters(**values)


def _review(changes: list[Parameter]) -> SetParametersResult:
    for change in changes:
        if why := _no_choice(change.name, change.value):
            return SetParametersResult(successful=False, reason=why)
    return SetParametersResult(successful=True)


def _no_choice(name: str, value: Any) -> str:
    """Why a parameter cannot have this value although type and range are right; empty if it can."""
    choices = _CHOICES.get(name)
    if choices and value not in choices:
        return f'the parameter {name} must be one of {", ".join(choices)}, got {value!r}'
    return ''


_CHOICES = {parameter.name: parameter.metadata['choices'] for parameter in fields(PlannerParameters)}
