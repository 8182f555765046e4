"""A robot that is a simulator: the Kuka block-stacking environment behind the topics of an arm.

Real time: the simulation follows the steady clock in periods of 1/120 s and publishes its state after each. A command
is played from its arrival; when its points run out the arm stays at the joints commanded last.

Lock-step: the simulation waits until `command` and `gripper_command` carry the stamp of the state published last,
advances one control tick with the command's first point, and publishes the next state.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time as Stamp
from diffuser_msgs.msg import EpisodeStatus, GripperCommand, ObjectStates
from diffuser_msgs.srv import ResetEpisode
from rcl_interfaces.msg import IntegerRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from diffuser_core.envs.kuka_kinematics import JOINT_LOWER, JOINT_NAMES, JOINT_UPPER
from diffuser_core.envs.kuka_stack import EPISODE_STEPS, LIMIT_SLACK, SUBSTEP, SUBSTEPS_PER_TICK, KukaStackEnv
from diffuser_core.envs.stacking import BLOCKS, TICK, format_relation
from diffuser_core.envs.stacking_tasks import draw_task
from diffuser_ros.conversions import joint_state, nanoseconds, object_states
from diffuser_ros.lifetime import run_bridge
from diffuser_ros.qos import COMMAND_QOS, EVENT_QOS, STATE_QOS

__all__ = ['BridgeError', 'KukaBridge', 'TrajectoryCommand', 'main']

PERIOD_SUBSTEPS = 2
PERIOD = PERIOD_SUBSTEPS * SUBSTEP
"""Real time: seconds between two published states."""
PERIODS_PER_TICK = SUBSTEPS_PER_TICK // PERIOD_SUBSTEPS
CATCH_UP = 6
"""Real time: periods that may be simulated in one go after a delay; what is beyond is left out and counted."""
ANSWER_TIMEOUT = 1.0
"""Lock-step: seconds without an answer after which the same state is published again."""


class BridgeError(RuntimeError):
    """A bridge that cannot start; the message is one sentence that says why."""


@dataclass(frozen=True)
class TrajectoryCommand:
    """A command that this arm can play.

    targets  (points, 7) joint positions [rad], columns as JOINT_NAMES
    ends     (points,) time from the command's start until which each is the target [s]
    """

    targets: np.ndarray
    ends: np.ndarray

    @classmethod
    def parse(cls, message: JointTrajectory) -> TrajectoryCommand:
        """Read a trajectory, its joints in any order; ValueError, one sentence, if this arm cannot play it."""
        if sorted(message.joint_names) != sorted(JOINT_NAMES):
            given = ', '.join(message.joint_names) or 'none'
            raise ValueError(f'joint_names must be {", ".join(JOINT_NAMES)}, got {given}')
        if not message.points:
            raise ValueError('it has no points')
        lengths = {len(point.positions) for point in message.points}
        if lengths != {len(JOINT_NAMES)}:
            wrong = min(lengths - {len(JOINT_NAMES)})
            raise ValueError(f'every point needs {len(JOINT_NAMES)} positions, got {wrong}')
        order = [message.joint_names.index(name) for name in JOINT_NAMES]
        targets = np.array([point.positions for point in message.points], dtype=np.float64)[:, order]
        ends = np.array([1e-9 * nanoseconds(point.time_from_start) for point in message.points])
        for n, row in enumerate(targets):
            if not np.isfinite(row).all():
                name = JOINT_NAMES[int(np.flatnonzero(~np.isfinite(row))[0])]
                raise ValueError(f'{name} in point {n} is not a finite number')
            beyond = np.flatnonzero((row < JOINT_LOWER - LIMIT_SLACK) | (row > JOINT_UPPER + LIMIT_SLACK))
            if beyond.size:
                joint = int(beyond[0])
                raise ValueError(f'{JOINT_NAMES[joint]} in point {n} is {row[joint]:.4f} rad, outside its limits '
                                 f'{JOINT_LOWER[joint]:.4f} and {JOINT_UPPER[joint]:.4f} rad')
        if ends[0] <= 0.0 or (np.diff(ends) <= 0.0).any():
            raise ValueError('time_from_start must be positive and increase from point to point')
        return cls(np.clip(targets, JOINT_LOWER, JOINT_UPPER), ends)

    def target(self, elapsed: float) -> np.ndarray | None:
        """The point (7,) [rad] in force `elapsed` seconds after the start; None once the points have run out."""
        point = int(np.searchsorted(self.ends, elapsed + SUBSTEP / 2, side='right'))
        return self.targets[point] if point < len(self.targets) else None


class KukaBridge(Node):
    """The simulated arm with its four blocks.

    refused   commands refused so far
    skipped   real time: periods left out because the simulation was delayed by more than `CATCH_UP` of them

    An episode's steps are counted from the first command after a reset. At the limit the score is final and commands
    are ignored: a real-time simulation goes on holding, a lock-step one stands still until it is reset.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__('kuka_bridge', **options)
        self._realtime = self._parameter('realtime', True, 'follow the clock; false: advance one tick for each command')
        seed = self._parameter('seed', 0, 'seed of the first start layout', least=0)
        self._limit = self._parameter('episode_steps', EPISODE_STEPS, 'control ticks of an episode, at 24 Hz', least=1)
        gui = self._parameter('gui', False, 'open a window that shows the simulation')
        if gui and sys.platform == 'linux' and not os.environ.get('DISPLAY'):
            raise BridgeError('gui:=true needs a display, and the variable DISPLAY is not set')
        self.refused = 0
        self.skipped = 0
        self._env = KukaStackEnv(gui=gui)
        self._lockstep_ticks = 0
        self._joint_states = self.create_publisher(JointState, 'joint_states', STATE_QOS)
        self._object_states = self.create_publisher(ObjectStates, 'object_states', STATE_QOS)
        self._episode_status = self.create_publisher(EpisodeStatus, 'episode_status', EVENT_QOS)
        self.create_subscription(JointTrajectory, 'command', self._on_command, COMMAND_QOS)
        self.create_subscription(GripperCommand, 'gripper_command', self._on_gripper, COMMAND_QOS)
        self.create_service(ResetEpisode, '~/reset_episode', self._on_reset)
        self._reset(seed)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        if self._realtime:
            self.create_timer(PERIOD, self._on_period, clock=steady)
        else:
            self._unanswered = self.create_timer(ANSWER_TIMEOUT, self._publish, clock=steady)

    def _parameter(self, name: str, default: Any, description: str, *, least: int | None = None) -> Any:
        ranges = [] if least is None else [IntegerRange(from_value=least, to_value=2**62, step=1)]
        descriptor = ParameterDescriptor(description=description, read_only=True, integer_range=ranges)
        return self.declare_parameter(name, default, descriptor).value

    def destroy_node(self) -> None:
        """End the simulation and the node."""
        self._env.close()
        super().destroy_node()

    # ---- Episode -------------------------------------------------------------------------------------------------

    def _reset(self, seed: int, task: str = '') -> None:
        """Start an episode; ValueError, and nothing happens, for an unknown evaluation task."""
        observation, _ = self._env.reset(seed=seed, options=draw_task(task, seed).reset if task else None)
        self._seed = seed
        self._step = 0
        self._started = False
        self._final: EpisodeStatus | None = None
        self._command: TrajectoryCommand | None = None
        self._gripper: bool | None = None
        self._target = np.clip(observation[:7], JOINT_LOWER, JOINT_UPPER)
        self._changed = False
        self._measured, self._velocity, self._moved = observation[:7], np.zeros(7), 0.0
        self._periods = self._command_periods = 0
        self._anchor = time.monotonic()
        self._anchor_periods = 0
        self._lockstep_ticks += 1
        self._stamp = self._now()
        self._reset_at = nanoseconds(self._stamp)

    def _on_reset(self, request: ResetEpisode.Request, response: ResetEpisode.Response) -> ResetEpisode.Response:
        if request.seed < 0:
            response.message = f'the seed must be 0 or greater, got {request.seed}'
            return response
        if len(request.goal):
            response.message = 'this robot has no goal of its own: set it on the planner'
            return response
        try:
            self._reset(request.seed, request.task)
        except ValueError as error:
            response.message = str(error)
            return response
        self._publish()
        response.success = True
        response.message = f'seed {request.seed} is ready; its {self._limit} ticks begin with the first command'
        return response

    def _count_tick(self) -> None:
        self._step += 1
        if self._step == self._limit:
            self._command = None
            self._final = self._status()

    def _status(self) -> EpisodeStatus:
        if self._final is not None:
            return self._final
        status = EpisodeStatus(seed=self._seed, step=self._step, limit=self._limit, done=self._step >= self._limit)
        status.relations = sorted(format_relation(relation) for relation in self._env.relations())
        scores = self._env.scores()
        status.score, status.legacy_score = float(scores['score']), float(scores['legacy_score'])
        status.gripper_holds = self._env.held or ''
        return status

    # ---- States --------------------------------------------------------------------------------------------------

    def _now(self) -> Stamp:
        """The node's clock in real time, the time simulated since the node started in lock-step."""
        if self._realtime:
            return self.get_clock().now().to_msg()
        return Time(nanoseconds=round(1e9 * TICK * self._lockstep_ticks)).to_msg()

    def _advance(self, substeps: int) -> None:
        self._env.advance(substeps)
        self._moved += substeps * SUBSTEP

    def _publish(self, *, status: bool = True) -> None:
        """Publish the state, joints and objects with one stamp, and if asked the episode's status."""
        observation = self._env.observe()
        self._stamp = self._now()
        if self._moved:
            self._velocity = (observation[:7] - self._measured) / self._moved
            self._measured, self._moved = observation[:7], 0.0
        blocks = observation[7:].reshape(len(BLOCKS), 8)
        self._joint_states.publish(joint_state(JOINT_NAMES, observation[:7], self._velocity, self._stamp))
        self._object_states.publish(object_states(BLOCKS, blocks[:, :7], blocks[:, 7], self._stamp))
        if status:
            episode = self._status()
            episode.header.stamp = self._stamp
            self._episode_status.publish(episode)

    # ---- Commands ------------------------------------------------------------------------------------------------

    def _is_late(self, stamp: Stamp) -> bool:
        """Whether a command answers a state of the past: an earlier episode's, or in lock-step any but the newest."""
        if not self._realtime:
            return stamp != self._stamp
        return 0 < nanoseconds(stamp) < self._reset_at

    def _on_command(self, message: JointTrajectory) -> None:
        if self._final is not None or self._is_late(message.header.stamp):
            return
        try:
            self._command = TrajectoryCommand.parse(message)
        except ValueError as error:
            self.refused += 1
            self.get_logger().warning(f'refused a command ({self.refused} so far): {error}', throttle_duration_sec=1.0)
            return
        if not self._started:
            self._started, self._periods = True, 0
        self._command_periods = 0
        self._answered()

    def _on_gripper(self, message: GripperCommand) -> None:
        if self._final is None and not self._is_late(message.header.stamp):
            self._gripper, self._changed = message.close, True
            self._answered()

    def _answered(self) -> None:
        """Lock-step: advance one tick once both commands are there."""
        if self._realtime or self._command is None or self._gripper is None:
            return
        self._env.apply(np.append(self._command.targets[0], float(self._gripper)))
        self._advance(SUBSTEPS_PER_TICK)
        self._command = self._gripper = None
        self._lockstep_ticks += 1
        self._count_tick()
        self._publish()
        self._unanswered.reset()

    # ---- Real time -----------------------------------------------------------------------------------------------

    def _on_period(self) -> None:
        due = int((time.monotonic() - self._anchor) / PERIOD + 0.5) - self._anchor_periods
        if due <= 0:
            return
        self._anchor_periods += due
        if due > CATCH_UP:
            self.skipped += due - CATCH_UP
            left_out = 1e3 * PERIOD * (due - CATCH_UP)
            self.get_logger().warning(f'the simulation was held up and left out {left_out:.0f} ms '
                                      f'({1e3 * PERIOD * self.skipped:.0f} ms so far)', throttle_duration_sec=5.0)
        ticks = self._periods // PERIODS_PER_TICK
        for _ in range(min(due, CATCH_UP)):
            self._simulate_period()
        self._publish(status=self._periods // PERIODS_PER_TICK > ticks)

    def _simulate_period(self) -> None:
        """Play 1/120 s of the command in force."""
        if self._command is not None:
            target = self._command.target(self._command_periods * PERIOD)
            self._command_periods += 1
            if target is None:
                self._command = None
                self.get_logger().warning('the last command has run out and none has followed: the arm stops',
                                          throttle_duration_sec=1.0)
            elif not np.array_equal(target, self._target):
                self._target, self._changed = target, True
        if self._changed:
            self._env.apply(np.append(self._target, float(self._gripper or False)))
            self._changed = False
        self._advance(PERIOD_SUBSTEPS)
        self._periods += 1
        if self._started and self._final is None and self._periods % PERIODS_PER_TICK == 0:
            self._count_tick()


def main(args: list[str] | None = None) -> int:
    """Run the bridge; returns the exit code: see `run_bridge`."""
    return run_bridge('kuka_bridge', args, KukaBridge, BridgeError)
