"""Runs seeded episodes through the planner and the bridge, and says how they went.

For every episode: reset the planner and the bridge, set the goal, record until the bridge says that the episode is
over. At the end, a summary, a plot of plans against what was executed, and a video of the first episode.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diffuser_msgs.msg import EpisodeStatus, ObjectStates, PlannerStats
from diffuser_msgs.msg import Plan as PlanMessage
from diffuser_msgs.srv import ResetEpisode, SetGoal
from rcl_interfaces.msg import ParameterDescriptor
from rcl_interfaces.srv import GetParameters
from rclpy.client import Client
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from diffuser_core import __version__
from diffuser_core.envs.stacking import CHANNELS, format_relation, parse_relation, rearrangement_score
from diffuser_core.evaluate.recording import EpisodeLog, RecordingError, check_video_writer, write_json, write_plot, write_video
from diffuser_ros.conversions import StateError, nanoseconds, observation
from diffuser_ros.qos import EVENT_QOS, STATE_QOS
from diffuser_ros.state_buffer import State, StateBuffer

__all__ = ['EpisodeError', 'EpisodeNode', 'EpisodeResult', 'Settings', 'main', 'write_results']

PLANNER, BRIDGE = 'diffuser_planner', 'kuka_bridge'
START_TIMEOUT = 120.0
"""Seconds that planner and bridge may take to appear."""
ANSWER_TIMEOUT = 10.0
"""Seconds that a service may take to answer, and a reset to show in the states."""
REFUSAL_TIMEOUT = 4.0
"""Seconds for which a goal is offered again: the planner may not have seen the new state yet."""
SILENCE = 10.0
"""Seconds without a message after which planner or bridge count as dead."""
STANDSTILL = 60.0
"""Seconds without a control tick after which the episode is given up, and in lock-step the planner's silence is."""


class EpisodeError(RuntimeError):
    """An episode that cannot go on; the message is one sentence that says why."""


@dataclass(frozen=True)
class Settings:
    """The node's parameters, checked."""

    episodes: int
    seed: int
    task: str
    relations: tuple[str, ...]
    out: Path
    video: bool
    realtime: bool
    command: str

    @property
    def goal(self) -> str:
        """The goal for people."""
        return ', '.join(self.relations) if self.relations else self.task

    def score(self, status: EpisodeStatus) -> float:
        """0 to 100: the share of the required relations that stand, or without any the tower's own score."""
        if not self.relations:
            return float(status.score)
        return rearrangement_score(map(parse_relation, status.relations), map(parse_relation, self.relations))


@dataclass
class EpisodeResult:
    """How an episode went.

    log        states and plans
    goal_id    the planner's name of the goal
    latencies  of the ticks that planned, from the newest state to the command [ms]
    status     the bridge's last word
    stats      the planner's last word
    """

    log: EpisodeLog
    goal_id: str = ''
    latencies: list[float] = field(default_factory=list)
    status: EpisodeStatus | None = None
    stats: PlannerStats | None = None

    def latency(self, percent: float) -> float | None:
        """A percentile of the latencies [ms], None if the planner never planned."""
        return round(float(np.percentile(self.latencies, percent)), 3) if self.latencies else None


class EpisodeNode(Node):
    """Client of planner and bridge. `run` blocks until all episodes are over and spins the node meanwhile."""

    def __init__(self, **options: Any) -> None:
        super().__init__('episode', **options)
        self.settings = self._settings()
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self)
        self._buffer = StateBuffer()
        self._state: State | None = None
        self._result: EpisodeResult | None = None
        self._status: EpisodeStatus | None = None
        self._heard = {PLANNER: 0.0, BRIDGE: 0.0}
        self._reset_planner: Client = self.create_client(Trigger, f'{PLANNER}/reset')
        self._clear_goal: Client = self.create_client(Trigger, f'{PLANNER}/clear_goal')
        self._set_goal: Client = self.create_client(SetGoal, f'{PLANNER}/set_goal')
        self._get_parameters: Client = self.create_client(GetParameters, f'{PLANNER}/get_parameters')
        self._reset_bridge: Client = self.create_client(ResetEpisode, f'{BRIDGE}/reset_episode')
        self.create_subscription(JointState, 'joint_states', lambda m: self._on_state('joint_states', m), STATE_QOS)
        self.create_subscription(ObjectStates, 'object_states', lambda m: self._on_state('object_states', m), STATE_QOS)
        self.create_subscription(EpisodeStatus, 'episode_status', self._on_status, EVENT_QOS)
        self.create_subscription(PlannerStats, f'{PLANNER}/stats', self._on_stats, EVENT_QOS)
        self.create_subscription(PlanMessage, f'{PLANNER}/plan', self._on_plan, EVENT_QOS)

    def _settings(self) -> Settings:
        def parameter(name: str, default: Any, description: str) -> Any:
            descriptor = ParameterDescriptor(description=description, read_only=True)
            return self.declare_parameter(name, default, descriptor).value

        episodes = parameter('episodes', 1, 'episodes to run')
        seed = parameter('seed', 0, 'seed of the first episode; the others follow')
        task = parameter('task', 'stack', "what to build: 'stack' or 'relations'")
        relations = parameter('relations', '', "for 'relations', what shall stand: 'red on green, blue on red'")
        out = parameter('out', 'runs/demo', 'folder for summary.json, plan_vs_executed.png and episode.mp4')
        video = parameter('video', True, 'make a video of the first episode')
        realtime = parameter('realtime', True, 'whether the bridge follows the clock')
        command = parameter('command', '', 'what the summary names as the command that was run; empty: this process')
        if episodes < 1 or seed < 0:
            raise EpisodeError(f'at least 1 episode and a seed of 0 or greater are needed, got {episodes} and {seed}')
        try:
            pairs = tuple(format_relation(parse_relation(text)) for text in relations.split(',') if text.strip())
        except ValueError as error:
            raise EpisodeError(str(error)) from error
        return Settings(episodes, seed, task, pairs, Path(out).expanduser(), video, realtime,
                        command or shlex.join(sys.argv))

    # ---- What arrives --------------------------------------------------------------------------------------------

    def _on_state(self, topic: str, message: JointState | ObjectStates) -> None:
        self._heard[BRIDGE] = time.monotonic()
        state = self._buffer.add(topic, message, self._heard[BRIDGE])
        if state is None:
            return
        self._state = state
        if self._result is not None:
            try:
                values = observation(state.joints, state.objects)
            except StateError as error:
                self.get_logger().warning(f'a state was not recorded: {error}', throttle_duration_sec=5.0)
                return
            self._result.log.add_state(1e-9 * nanoseconds(state.stamp), [values[name] for name in CHANNELS])

    def _on_status(self, status: EpisodeStatus) -> None:
        self._status = status

    def _on_stats(self, stats: PlannerStats) -> None:
        self._heard[PLANNER] = time.monotonic()
        if self._result is not None and stats.goal_id == self._result.goal_id:
            self._result.stats = stats
            if stats.latency_ms > 0.0 and stats.reason != PlannerStats.GOAL_REACHED:
                self._result.latencies.append(stats.latency_ms)

    def _on_plan(self, plan: PlanMessage) -> None:
        stamp = 1e-9 * nanoseconds(plan.header.stamp)
        if self._result is not None and plan.goal_id == self._result.goal_id and self._result.log.wants_plan(stamp):
            self._result.log.add_plan(stamp, plan.step_dt, plan.channels, plan.values)

    # ---- Waiting -------------------------------------------------------------------------------------------------

    def _wait(self, condition: Callable[[], bool], timeout: float, complaint: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise EpisodeError(complaint)
            self._spin()

    def _spin(self) -> None:
        if not self.context.ok():
            raise ExternalShutdownException
        self._executor.spin_once(timeout_sec=0.1)

    def _call(self, client: Any, request: Any) -> Any:
        answer = client.call_async(request)
        self._wait(answer.done, ANSWER_TIMEOUT, f'{client.srv_name} did not answer within {ANSWER_TIMEOUT:.0f} s')
        return answer.result()

    def _wait_for_services(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        for who, client in ((BRIDGE, self._reset_bridge), (PLANNER, self._reset_planner), (PLANNER, self._set_goal)):
            self._wait(client.service_is_ready, max(0.0, deadline - time.monotonic()),
                       f'there is no {who}: its service {client.srv_name} did not appear within {START_TIMEOUT:.0f} s')

    def _check_alive(self) -> None:
        """EpisodeError if planner or bridge left, or have been silent for too long."""
        now = time.monotonic()
        for who, topic, patience in ((BRIDGE, 'joint_states', SILENCE),
                                     (PLANNER, f'{PLANNER}/stats', SILENCE if self.settings.realtime else STANDSTILL)):
            if not self.count_publishers(topic):
                raise EpisodeError(f'{who} has gone in the middle of an episode')
            if now > self._heard[who] + patience:
                raise EpisodeError(f'{who} has published nothing for {patience:.0f} s in the middle of an episode')

    # ---- Episodes ------------------------------------------------------------------------------------------------

    def run(self) -> list[EpisodeResult]:
        """Run all episodes; EpisodeError if one cannot be brought to its end."""
        self._wait_for_services()
        results = []
        for number in range(self.settings.episodes):
            seed = self.settings.seed + number
            result = self._episode(seed)
            print(f'episode {number + 1} of {self.settings.episodes}: {_line(self.settings, result)}', flush=True)
            results.append(result)
        self._call(self._clear_goal, Trigger.Request())
        return results

    def device(self) -> str:
        """Where the planner's network runs."""
        answer = self._call(self._get_parameters, GetParameters.Request(names=['device']))
        return answer.values[0].string_value if answer.values else 'unknown'

    def _episode(self, seed: int) -> EpisodeResult:
        self._call(self._reset_planner, Trigger.Request())
        self._status = self._state = None
        answer = self._call(self._reset_bridge, ResetEpisode.Request(seed=seed))
        if not answer.success:
            raise EpisodeError(f'the bridge refused to reset: {answer.message}')
        self._wait(lambda: self._is_fresh(seed), ANSWER_TIMEOUT,
                   f'the bridge did not show the new episode within {ANSWER_TIMEOUT:.0f} s')
        result = EpisodeResult(EpisodeLog(seed, self.settings.goal))
        self._result = result
        try:
            result.goal_id = self._pursue()
            self._follow(seed)
        finally:
            self._result = None
        result.status = self._status
        return result

    def _is_fresh(self, seed: int) -> bool:
        status, state = self._status, self._state
        return (status is not None and status.seed == seed and status.step == 0 and state is not None
                and nanoseconds(state.stamp) >= nanoseconds(status.header.stamp))

    def _pursue(self) -> str:
        """Set the goal and return its id."""
        request = SetGoal.Request(task=self.settings.task, relations=list(self.settings.relations))
        deadline = time.monotonic() + REFUSAL_TIMEOUT
        while True:
            answer = self._call(self._set_goal, request)
            if answer.success:
                return answer.goal_id
            if time.monotonic() > deadline:
                raise EpisodeError(f'the planner refused the goal: {answer.message}')
            pause = time.monotonic() + 0.25
            while time.monotonic() < pause:
                self._spin()

    def _follow(self, seed: int) -> None:
        """Spin until the episode is over."""
        assert self._result is not None and self._status is not None
        self._heard = dict.fromkeys(self._heard, time.monotonic())
        step, moved = 0, time.monotonic()
        while not self._status.done:
            self._spin()
            if self._status.seed != seed or self._status.step < step:
                raise EpisodeError('the bridge was reset or restarted in the middle of an episode')
            self._check_alive()
            if self._status.step > step:
                step, moved = self._status.step, time.monotonic()
            elif time.monotonic() > moved + STANDSTILL:
                stats = self._result.stats
                said = stats.reason_text if stats else 'nothing'
                raise EpisodeError(f'no command has come for {STANDSTILL:.0f} s; the planner says: {said}')


# ---- Results ---------------------------------------------------------------------------------------------------------


def _line(settings: Settings, result: EpisodeResult) -> str:
    assert result.status is not None
    standing = ', '.join(result.status.relations) or 'nothing'
    planner = 'the planner published no statistics'
    if result.stats is not None:
        planner = (f'{result.stats.replans} plans, latency {_milliseconds(result.latency(50), result.latency(99))}, '
                   f'{result.stats.late_ticks} late')
    return f'seed {result.log.seed}, score {settings.score(result.status):.1f}, standing: {standing}; {planner}'


def _milliseconds(p50: float | None, p99: float | None) -> str:
    return 'unknown' if p50 is None or p99 is None else f'p50 {p50:.1f} ms, p99 {p99:.1f} ms'


def write_results(settings: Settings, results: Sequence[EpisodeResult], *, device: str, wall_s: float) -> None:
    """Write summary.json, plan_vs_executed.png and, if asked, episode.mp4 (of the first episode), and say so."""
    latencies = EpisodeResult(results[0].log, latencies=[ms for result in results for ms in result.latencies])
    statuses = [result.status for result in results if result.status is not None]
    stats = [result.stats for result in results if result.stats is not None]
    scores = [settings.score(status) for status in statuses]
    summary = {
        'command': settings.command, 'version': __version__, 'seed_start': settings.seed, 'episodes': len(results),
        'device': device, 'wall_s': round(wall_s, 1), 'task': settings.task, 'relations': list(settings.relations),
        'goal': settings.goal, 'realtime': settings.realtime, 'score': float(np.mean(scores)), 'scores': scores,
        'legacy_score': float(np.mean([status.legacy_score for status in statuses])),
        'ticks': sum(status.step for status in statuses), 'replans': sum(s.replans for s in stats),
        'late_ticks': sum(s.late_ticks for s in stats),
        'latency_ms': {'p50': latencies.latency(50), 'p99': latencies.latency(99)},
    }
    out, log = settings.out, results[0].log
    (out / 'episode.mp4').unlink(missing_ok=True)
    write_json(out / 'summary.json', summary)
    many = len(results) > 1
    print(f'goal      {settings.goal}\n'
          f'score     {summary["score"]:.1f} of 100{f", mean of {len(results)} episodes" if many else ""} '
          f'(by the original rule {summary["legacy_score"]:.1f})\n'
          f'ticks     {summary["ticks"]}, plans {summary["replans"]}, late {summary["late_ticks"]}\n'
          f'latency   {_milliseconds(latencies.latency(50), latencies.latency(99))}\n'
          f'summary   {out / "summary.json"}', flush=True)
    first = f' (episode 1, seed {log.seed})' if many else ''
    write_plot(out / 'plan_vs_executed.png', log)
    print(f'plot      {out / "plan_vs_executed.png"}{first}', flush=True)
    if settings.video:
        print('video     rendering ...', flush=True)
        write_video(out / 'episode.mp4', log)
        print(f'video     {out / "episode.mp4"}{first}', flush=True)


def main(args: list[str] | None = None) -> int:
    """Run the episodes that the parameters ask for; returns the exit code: 0, 1 after one sentence on stderr, or 130
    if it was interrupted."""
    # rclpy's own handler, installed next, closes ROS on SIGINT; a KeyboardInterrupt could strike inside its C++ code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        rclpy.init(args=args)
    except RuntimeError as error:
        print(f'episode: the ROS arguments cannot be used: {str(error).splitlines()[0]}', file=sys.stderr)
        return 1
    node = None
    try:
        try:
            node = EpisodeNode()
            settings = node.settings
            settings.out.mkdir(parents=True, exist_ok=True)
            if settings.video:
                check_video_writer()
            print(f'goal {settings.goal}, {settings.episodes} episode(s) from seed {settings.seed}', flush=True)
            began = time.monotonic()
            results = node.run()
            wall_s, device = time.monotonic() - began, node.device()
        except (EpisodeError, RecordingError, ParameterException, OSError):
            raise
        except Exception:
            if rclpy.ok():
                raise
            raise ExternalShutdownException from None  # a signal has closed ROS in the middle of a callback
        finally:
            if node is not None:
                node.destroy_node()
            rclpy.try_shutdown()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        write_results(settings, results, device=device, wall_s=wall_s)
    except (KeyboardInterrupt, ExternalShutdownException):
        print('episode: interrupted before everything was written', file=sys.stderr)
        return 130
    except (EpisodeError, RecordingError, ParameterException, OSError) as error:
        print(f'episode: {error}', file=sys.stderr)
        return 1
    return 0
