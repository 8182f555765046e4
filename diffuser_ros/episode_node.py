"""Runs seeded episodes through the planner and the bridge, and says how they went.

For every episode: reset the planner and the bridge, set the goal, record until the bridge says that the episode is
over, and append its record to `episodes.jsonl`. At the end, a summary, a plot of plans against what was executed, and a video of
the first episode.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diffuser_msgs.msg import EpisodeStatus, GripperCommand, ObjectStates, PlannerStats
from diffuser_msgs.msg import Plan as PlanMessage
from diffuser_msgs.srv import ResetEpisode, SetGoal
from rcl_interfaces.srv import GetParameters
from rclpy.client import Client
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from diffuser_core.envs.stacking import CHANNELS, format_relation, parse_relation
from diffuser_core.envs.stacking_goal import StackingGoal
from diffuser_core.evaluate.recording import EpisodeLog, check_video_writer
from diffuser_core.evaluate.records import EpisodeWatch
from diffuser_ros.conversions import StateError, nanoseconds, observation
from diffuser_ros.episode_client import ANSWER_TIMEOUT, EpisodeClient, EpisodeError, run_client
from diffuser_ros.episode_results import RECORDS, EpisodeResult, Settings, append_record, line, write_results
from diffuser_ros.qos import EVENT_QOS, STATE_QOS
from diffuser_ros.state_buffer import State, StateBuffer

__all__ = ['EpisodeNode', 'main']

PLANNER, BRIDGE = 'diffuser_planner', 'kuka_bridge'
START_TIMEOUT = 120.0
"""Seconds that planner and bridge may take to appear."""
REFUSAL_TIMEOUT = 4.0
"""Seconds for which a goal is offered again: the planner may not have seen the new state yet."""
SILENCE = 10.0
"""Seconds without a message after which planner or bridge count as dead."""
STANDSTILL = 60.0
"""Seconds without a control tick after which the episode is given up, and in lock-step the planner's silence is."""


class EpisodeNode(EpisodeClient):
    """Client of planner and bridge. `run` blocks until all episodes are over and spins the node meanwhile."""

    def __init__(self, **options: Any) -> None:
        super().__init__('episode', **options)
        self.settings = self._settings()
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
        self.create_subscription(GripperCommand, 'gripper_command', self._on_gripper, EVENT_QOS)
        self.create_subscription(EpisodeStatus, 'episode_status', self._on_status, EVENT_QOS)
        self.create_subscription(PlannerStats, f'{PLANNER}/stats', self._on_stats, EVENT_QOS)
        self.create_subscription(PlanMessage, f'{PLANNER}/plan', self._on_plan, EVENT_QOS)

    def _settings(self) -> Settings:
        parameter = self._parameter
        episodes = parameter('episodes', 1, 'episodes to run')
        seed = parameter('seed', 0, 'seed of the first episode; the others follow')
        task = parameter('task', 'unconditional', "evaluation task: 'unconditional', 'conditional' or 'rearrangement', each a "
                         "function of the seed; or 'relations'")
        relations = parameter('relations', '', "for 'relations', what shall stand: 'red on green, blue on red'")
        out = parameter('out', 'runs/demo', 'folder for summary.json, episodes.jsonl, plan_vs_executed.png and episode.mp4')
        video = parameter('video', True, 'make a video of the first episode')
        realtime = parameter('realtime', True, 'whether the bridge follows the clock')
        command = parameter('command', '', 'what the summary names as the command that was run; empty: this process')
        if episodes < 1 or seed < 0:
            raise EpisodeError(f'at least 1 episode and a seed of 0 or greater are needed, got {episodes} and {seed}')
        try:
            pairs = tuple(format_relation(parse_relation(text)) for text in relations.split(',') if text.strip())
            return Settings(episodes, seed, task, pairs, Path(out).expanduser(), video, realtime,
                            command or shlex.join(sys.argv))
        except ValueError as error:
            raise EpisodeError(str(error)) from error

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
        if self._result is not None and status.seed == self._result.log.seed and status.step > 0:
            self._result.watch.see(frozenset(map(parse_relation, status.relations)), status.gripper_holds or None)

    def _on_gripper(self, command: GripperCommand) -> None:
        if self._result is not None and self._status is not None and not self._status.done:
            self._result.watch.command(command.close)

    def _on_stats(self, stats: PlannerStats) -> None:
        self._heard[PLANNER] = time.monotonic()
        if self._result is not None and stats.goal_id == self._result.goal_id:
            self._result.stats = stats
            if stats.reason == PlannerStats.GOAL_REACHED:
                if self._result.reached_at is None and self._status is not None:
                    self._result.reached_at = self._status.step
            elif stats.latency_ms > 0.0:
                self._result.latencies.append(stats.latency_ms)

    def _on_plan(self, plan: PlanMessage) -> None:
        stamp = 1e-9 * nanoseconds(plan.header.stamp)
        if self._result is not None and plan.goal_id == self._result.goal_id and self._result.log.wants_plan(stamp):
            self._result.log.add_plan(stamp, plan.step_dt, plan.channels, plan.values)

    # ---- Waiting -------------------------------------------------------------------------------------------------

    def _wait_for_services(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        for who, client in ((BRIDGE, self._reset_bridge), (PLANNER, self._reset_planner), (PLANNER, self._set_goal)):
            self._wait(client.service_is_ready, max(0.0, deadline - time.monotonic()),
                       f'there is no {who}: its service {client.srv_name} did not appear within {START_TIMEOUT:.0f} s')

    def _check_alive(self) -> None:
        """EpisodeError if planner or bridge left or have been silent for too long."""
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
            record = result.record()
            append_record(self.settings.out, record)
            print(f'episode {number + 1} of {self.settings.episodes}: {line(result, record)}', flush=True)
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
        drawn = self.settings.drawn(seed)
        answer = self._call(self._reset_bridge, ResetEpisode.Request(seed=seed, task='' if drawn.reset is None else drawn.name))
        if not answer.success:
            raise EpisodeError(f'the bridge refused to reset: {answer.message}')
        self._wait(lambda: self._is_fresh(seed), ANSWER_TIMEOUT,
                   f'the bridge did not show the new episode within {ANSWER_TIMEOUT:.0f} s')
        assert self._status is not None
        result = EpisodeResult(EpisodeLog(seed, drawn.describe()),
                               EpisodeWatch(drawn, seed, frozenset(map(parse_relation, self._status.relations))))
        self._result = result
        try:
            result.goal_id = self._pursue(drawn.goal)
            self._follow(seed)
        finally:
            self._result = None
        result.status = self._status
        return result

    def _is_fresh(self, seed: int) -> bool:
        status, state = self._status, self._state
        return (status is not None and status.seed == seed and status.step == 0 and state is not None
                and nanoseconds(state.stamp) >= nanoseconds(status.header.stamp))

    def _pursue(self, goal: StackingGoal) -> str:
        """Set the goal and return its id."""
        request = SetGoal.Request(task=goal.task, relations=[format_relation(pair) for pair in goal.relations])
        return self._call_until_accepted(self._set_goal, request, REFUSAL_TIMEOUT, 'the planner refused the goal').goal_id

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


def main(args: list[str] | None = None) -> int:
    """Run the episodes that the parameters ask for; returns the exit code: see `run_client`."""
    return run_client('episode', args, EpisodeNode, _run)


def _run(node: EpisodeNode) -> Callable[[], None]:
    """Run the episodes; what is left is to write the results."""
    settings = node.settings
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / RECORDS).unlink(missing_ok=True)
    if settings.video:
        check_video_writer()
    print(f'goal {settings.goal}, {settings.episodes} episode(s) from seed {settings.seed}', flush=True)
    began = time.monotonic()
    results = node.run()
    wall_s, device = time.monotonic() - began, node.device()
    return partial(write_results, settings, results, device=device, wall_s=wall_s)
