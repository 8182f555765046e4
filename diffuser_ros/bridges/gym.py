"""A robot that is a simulator: any Gymnasium environment with Box spaces behind two named vectors, `state` and `command`.

Real time: the simulation follows the steady clock in steps of the environment's own duration and publishes its state after
each. Until the first command after a reset it waits. A command is in force until the next one comes, but no longer than
`command_timeout`; after that the neutral action is, and every such step is counted.

Lock-step: the simulation waits until a command carries the stamp of the state published last, makes one step, and publishes
the next state.

Once an episode has ended the simulation stands still until it is reset.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time as Stamp
from diffuser_msgs.msg import GymEpisodeStatus, NamedVector
from diffuser_msgs.srv import ResetEpisode
from numpy.typing import NDArray
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray

from diffuser_ros.bridges.gym_robot import EnvError, GymRobot, Recording, parse_kwargs
from diffuser_ros.conversions import joint_state, nanoseconds
from diffuser_ros.lifetime import run_bridge
from diffuser_ros.markers import box_markers
from diffuser_ros.qos import CLOCK_QOS, COMMAND_QOS, EVENT_QOS, LATCHED_QOS, STATE_QOS
from diffuser_ros.vectors import named_vector, ordered

__all__ = ['GymBridge', 'main']

NAME = 'gym_bridge'
CATCH_UP = 5
"""Real time: steps that may be made in one go after a delay; what is beyond is left out and counted."""
ANSWER_TIMEOUT = 1.0
"""Lock-step: seconds without an answer after which the same state is published again."""


class GymBridge(Node):
    """The node `gym_bridge`; EnvError, one sentence, if the environment or a parameter cannot be used.

    robot     the environment
    clipped   command values clipped to the action space so far
    refused   commands refused so far
    timeouts  real time: steps made with the neutral action, because there was no command younger than `command_timeout`
    skipped   real time: steps left out because the simulation was delayed by more than `CATCH_UP` of them

    Commands are checked (`ordered`) and clipped to the action space; a command that is refused leaves the one before in force.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(NAME, **options)
        try:
            self._start()
        except EnvError:
            self.destroy_node()
            raise

    def _start(self) -> None:
        env = self._parameter('env', '', "id of the environment, for example 'Hopper-v5', or 'package:Id-v0' to import first")
        kwargs = self._parameter('kwargs', '', "its arguments as YAML or JSON: '{max_episode_steps: 300}'")
        seed = self._parameter('seed', 0, 'seed of the first episode', least=0)
        step_dt = self._parameter('step_dt', 0.0, "duration of a step [s]; 0: the environment's own", least=0.0)
        self._realtime = self._parameter('realtime', True, 'follow the clock; false: make one step for each command')
        self._timeout = self._parameter('command_timeout', 0.1, 'real time: age beyond which a command is no longer in force [s]',
                                        least=0.001)
        publish_clock = self._parameter('publish_clock', False, "publish the simulation's time on /clock, for nodes with "
                                        'use_sim_time, and stamp with it also in real time')
        self._simulated_stamps = publish_clock or not self._realtime
        recording = self._parameter('recording', '', 'file that ~/save_recording writes the newest whole episode to; empty: none')
        self._path = Path(recording).expanduser() if recording else None
        if not env:
            raise EnvError("the parameter env is missing: the id of an environment, for example 'Hopper-v5'")
        if publish_clock and self.get_parameter('use_sim_time').value:
            raise EnvError('publish_clock and use_sim_time exclude each other: this node makes the time that others use')
        self.robot = GymRobot(env, parse_kwargs(kwargs), step_dt=step_dt or None)
        for name, value in (('state_names', list(self.robot.state_names)), ('action_names', list(self.robot.action_names)),
                            ('action_low', self.robot.low.tolist()), ('action_high', self.robot.high.tolist()),
                            ('dt', self.robot.dt)):
            self.declare_parameter(name, value, ParameterDescriptor(description='what the environment is like', read_only=True),
                                   ignore_override=True)
        self.clipped = self.refused = self.timeouts = self.skipped = 0
        self._steps = self._begun = 0
        self._finished: Recording | None = None
        self._states = self.create_publisher(NamedVector, 'state', STATE_QOS)
        self._joint_states = self.create_publisher(JointState, 'joint_states', STATE_QOS) if self.robot.joints else None
        self._status = self.create_publisher(GymEpisodeStatus, 'episode_status', EVENT_QOS)
        self._time = self.create_publisher(ClockMessage, '/clock', CLOCK_QOS) if publish_clock else None
        self.create_subscription(NamedVector, 'command', self._on_command, COMMAND_QOS)
        self.create_service(ResetEpisode, '~/reset_episode', self._on_reset)
        self.create_service(Trigger, '~/save_recording', self._on_save)
        self._reset(seed)
        boxes = self.robot.static_boxes()
        if boxes:
            self._walls = self.create_publisher(MarkerArray, '~/walls', LATCHED_QOS)
            self._walls.publish(box_markers(boxes))
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._publish()
        if self._realtime:
            self.create_timer(self.robot.dt, self._on_period, clock=steady)
        else:
            self._unanswered = self.create_timer(ANSWER_TIMEOUT, self._publish, clock=steady)

    def _parameter(self, name: str, default: Any, description: str, *, least: float | None = None) -> Any:
        descriptor = ParameterDescriptor(description=description, read_only=True)
        if isinstance(least, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=least, to_value=1e6)]
        elif least is not None:
            descriptor.integer_range = [IntegerRange(from_value=least, to_value=2**62, step=1)]
        return self.declare_parameter(name, default, descriptor).value

    def destroy_node(self) -> None:
        """End the simulation and the node."""
        if hasattr(self, 'robot'):
            self.robot.close()
        super().destroy_node()

    def describe(self) -> str:
        """What it simulates, in one line."""
        mode = f'in real time, {1.0 / self.robot.dt:g} steps a second' if self._realtime else 'in lock-step'
        state, command = ', '.join(self.robot.state_names), ', '.join(self.robot.action_names)
        return f'{self.robot.id} {mode}; state: {state}; command: {command}'

    # ---- Episode -------------------------------------------------------------------------------------------------

    def _reset(self, seed: int, goal: Sequence[float] = ()) -> None:
        """Start an episode; EnvError, and nothing is reset, for a goal that the environment does not take."""
        self._state = self.robot.reset(seed, goal)
        self._goal = tuple(goal)
        self._begun += 1
        self._episode = GymEpisodeStatus(episode=self._begun, seed=seed, limit=self.robot.limit)
        self._actions: list[NDArray[np.float64]] = []
        self._before = (self.clipped, self.refused, self.timeouts)
        self._command: NDArray[np.float64] | None = None
        self._commanded = 0.0
        self._anchor: float | None = None
        self._anchor_steps = 0
        self._steps += 1
        self._stamp = self._now()
        self._reset_at = nanoseconds(self._stamp)

    def _on_reset(self, request: ResetEpisode.Request, response: ResetEpisode.Response) -> ResetEpisode.Response:
        if request.seed < 0:
            response.message = f'the seed must be 0 or greater, got {request.seed}'
        elif request.task:
            response.message = f'{self.robot.id} has no tasks, got {request.task!r}; its start follows from the seed'
        else:
            try:
                self._reset(request.seed, request.goal)
            except EnvError as error:
                response.message = str(error)
                return response
            self._publish()
            response.success = True
            response.message = f'seed {request.seed} is ready; it begins with the first command'
        return response

    def _on_save(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._path is None:
            response.message = 'the bridge was started without the parameter recording'
        elif self._finished is None:
            response.message = 'no episode has ended yet'
        else:
            try:
                self._finished.save(self._path)
            except OSError as error:
                response.message = f'{self._path} cannot be written: {error.strerror}'
                return response
            response.success = True
            response.message = f'{self._path} holds the episode of seed {self._finished.seed}'
        return response

    def _advance(self, action: NDArray[np.float64]) -> None:
        """One step of the environment."""
        episode = self._episode
        self._state, reward, terminated, truncated = self.robot.step(action)
        self._steps += 1
        episode.step += 1
        episode.reward = reward
        episode.episode_return += reward
        episode.terminated, episode.done = terminated, terminated or truncated
        if self._path is not None:
            self._actions.append(action)
            if episode.done:
                self._finished = Recording(self.robot.id, self.robot.kwargs, episode.seed, self._goal,
                                           np.array(self._actions), self._state)

    # ---- States --------------------------------------------------------------------------------------------------

    def _now(self) -> Stamp:
        """The node's clock, or the time simulated since the node started."""
        if self._simulated_stamps:
            return Time(nanoseconds=round(1e9 * self.robot.dt * self._steps)).to_msg()
        return self.get_clock().now().to_msg()

    def _publish(self) -> None:
        """Publish time, status, joints and state with one stamp; the state last, for it is what is answered."""
        self._stamp = self._now()
        if self._time is not None:
            self._time.publish(ClockMessage(clock=self._stamp))
        episode = self._episode
        episode.header.stamp = self._stamp
        episode.clipped, episode.refused, episode.timeouts = (
            now - before for now, before in zip((self.clipped, self.refused, self.timeouts), self._before, strict=True))
        episode.score = self.robot.score(episode.episode_return)
        names, values = self.robot.goal()
        episode.goal_names, episode.goal_values = list(names), values.tolist()
        self._status.publish(episode)
        if self._joint_states is not None:
            positions, velocities = self.robot.joint_values()
            self._joint_states.publish(joint_state([j.name for j in self.robot.joints], positions, velocities, self._stamp))
        self._states.publish(named_vector(self.robot.state_names, self._state, self._stamp))

    # ---- Commands ------------------------------------------------------------------------------------------------

    def _is_late(self, stamp: Stamp) -> bool:
        """Whether a command answers a state of the past: an earlier episode's, or in lock-step any but the newest."""
        if not self._realtime:
            return stamp != self._stamp
        return 0 < nanoseconds(stamp) < self._reset_at

    def _on_command(self, message: NamedVector) -> None:
        if self._episode.done or self._is_late(message.header.stamp):
            return
        try:
            wanted = ordered(message, self.robot.action_names, 'the command')
        except ValueError as error:
            self.refused += 1
            self.get_logger().warning(f'refused a command ({self.refused} so far): {error}', throttle_duration_sec=1.0)
            return
        action = np.clip(wanted, self.robot.low, self.robot.high)
        self.clipped += int((action != wanted).sum())
        if not self._realtime:
            self._advance(action)
            self._publish()
            self._unanswered.reset()
            return
        self._command, self._commanded = action, time.monotonic()
        if self._anchor is None:
            self._anchor = self._commanded

    # ---- Real time -----------------------------------------------------------------------------------------------

    def _on_period(self) -> None:
        if self._anchor is None or self._episode.done:
            self._publish()
            return
        due = int((time.monotonic() - self._anchor) / self.robot.dt + 0.5) - self._anchor_steps
        if due <= 0:
            return
        self._anchor_steps += due
        if due > CATCH_UP:
            self.skipped += due - CATCH_UP
            self.get_logger().warning(f'the simulation was held up and left out {due - CATCH_UP} steps ({self.skipped} so far)',
                                      throttle_duration_sec=5.0)
        for _ in range(min(due, CATCH_UP)):
            if not self._episode.done:
                self._advance(self._in_force())
        self._publish()

    def _in_force(self) -> NDArray[np.float64]:
        """The action to do now: what was commanded last, unless that is too old."""
        age = time.monotonic() - self._commanded
        if self._command is not None and age <= self._timeout:
            return self._command
        self.timeouts += 1
        self.get_logger().warning(f'no command for {age:.2f} s, allowed are {self._timeout:g} s: the neutral action is done '
                                  f'({self.timeouts} steps so far)', throttle_duration_sec=1.0)
        return self.robot.neutral


def main(args: list[str] | None = None) -> int:
    """Run the bridge; returns the exit code: see `run_bridge`."""
    return run_bridge(NAME, args, _announced, EnvError)


def _announced() -> GymBridge:
    node = GymBridge()
    print(f'{NAME}: {node.describe()}', flush=True)
    return node
