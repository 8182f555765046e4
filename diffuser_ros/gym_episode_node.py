"""Runs seeded episodes of a Gymnasium robot through the bridge, driven by the planner, at random, or by whoever commands it.

For every episode: reset the planner and the bridge, set the goal, follow until the bridge says that the episode is over, and
append its record to `episodes.jsonl`. At the end, a summary and a video of the first episode.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from diffuser_msgs.msg import GymEpisodeStatus, NamedVector, PlannerStats
from diffuser_msgs.srv import ResetEpisode, SetGoal
from rcl_interfaces.srv import GetParameters
from std_srvs.srv import Trigger

from diffuser_ros.bridges.gym_robot import Recording, parse_kwargs
from diffuser_ros.bridges.gym_video import check_drawing, write_episode_video
from diffuser_ros.conversions import nanoseconds
from diffuser_ros.episode_client import ANSWER_TIMEOUT, EpisodeClient, EpisodeError, run_client
from diffuser_ros.episode_results import RECORDS, append_record
from diffuser_ros.gym_episode_results import DRIVERS, GymEpisode, GymSettings, describe, parse_goal, write_summary
from diffuser_ros.qos import COMMAND_QOS, EVENT_QOS, STATE_QOS
from diffuser_ros.vectors import named_vector

__all__ = ['GymEpisodeNode', 'RandomDriver', 'main']

PLANNER, BRIDGE = 'diffuser_planner', 'gym_bridge'
START_TIMEOUT = 120.0
"""Seconds that planner and bridge may take to appear."""
REFUSAL_TIMEOUT = 4.0
"""Seconds for which a goal is offered again: the planner may not have seen the new state yet."""
SILENCE = 10.0
"""Seconds without a message after which planner or bridge count as dead."""
STANDSTILL = 60.0
"""Seconds without a step after which the episode is given up; somebody outside may take as long as he likes to begin."""
RECORDING = '.episode.npz'


class RandomDriver:
    """Answers every state with an action drawn evenly from [low, high] (actions,); [-1, 1] where there is no limit."""

    def __init__(self, names: list[str], low: np.ndarray, high: np.ndarray, seed: int) -> None:
        self._names = names
        self._low, self._high = np.where(np.isfinite(low), low, -1.0), np.where(np.isfinite(high), high, 1.0)
        self._draws = np.random.default_rng(seed)
        self._answered = -1
        self._action = np.zeros(len(names))

    def answer(self, state: NamedVector) -> NamedVector:
        """The command for a state; the same one again if the state is repeated."""
        stamp = nanoseconds(state.header.stamp)
        if stamp != self._answered:
            self._answered, self._action = stamp, self._draws.uniform(self._low, self._high)
        return named_vector(self._names, self._action, state.header.stamp)


class GymEpisodeNode(EpisodeClient):
    """Client of planner and bridge. `run` blocks until all episodes are over and spins the node meanwhile."""

    def __init__(self, **options: Any) -> None:
        super().__init__('episode', **options)
        self.settings = self._settings()
        self._planned = self.settings.driver == 'planner'
        self._episode: GymEpisode | None = None
        self._driver: RandomDriver | None = None
        self._status: GymEpisodeStatus | None = None
        self._heard = {BRIDGE: 0.0, PLANNER: 0.0}
        self._reset_bridge: Any = self.create_client(ResetEpisode, f'{BRIDGE}/reset_episode')
        self._save: Any = self.create_client(Trigger, f'{BRIDGE}/save_recording')
        self._ask_bridge: Any = self.create_client(GetParameters, f'{BRIDGE}/get_parameters')
        self._reset_planner: Any = self.create_client(Trigger, f'{PLANNER}/reset')
        self._clear_goal: Any = self.create_client(Trigger, f'{PLANNER}/clear_goal')
        self._set_goal: Any = self.create_client(SetGoal, f'{PLANNER}/set_goal')
        self._ask_planner: Any = self.create_client(GetParameters, f'{PLANNER}/get_parameters')
        self.create_subscription(GymEpisodeStatus, 'episode_status', self._on_status, EVENT_QOS)
        if self._planned:
            self.create_subscription(PlannerStats, f'{PLANNER}/stats', self._on_stats, EVENT_QOS)
        if self.settings.driver == 'random':
            self._commands = self.create_publisher(NamedVector, 'command', COMMAND_QOS)
            self.create_subscription(NamedVector, 'state', self._on_state, STATE_QOS)

    def _settings(self) -> GymSettings:
        parameter = self._parameter
        env = parameter('env', '', "id of the bridge's environment")
        kwargs = parameter('kwargs', '', 'its arguments as YAML or JSON')
        episodes = parameter('episodes', 1, 'episodes to run')
        seed = parameter('seed', 0, 'seed of the first episode; the others follow')
        driver = parameter('driver', 'planner', 'who drives: ' + '; '.join(f"'{name}': {who}" for name, who in DRIVERS.items()))
        goal = parameter('goal', '', "goal 'x, y' [m] of every episode, also for the rewards; empty: the environment's own")
        out = parameter('out', 'runs/gym', 'folder for summary.json, episodes.jsonl and episode.mp4')
        video = parameter('video', False, 'make a video of the first episode')
        realtime = parameter('realtime', True, 'whether the bridge follows the clock')
        command = parameter('command', '', 'what the summary names as the command that was run; empty: this process')
        try:
            return GymSettings(env, parse_kwargs(kwargs), episodes, seed, driver, parse_goal(goal), Path(out).expanduser(), video,
                               realtime, command or shlex.join(sys.argv))
        except ValueError as error:
            raise EpisodeError(str(error)) from error

    # ---- What arrives --------------------------------------------------------------------------------------------

    def _on_status(self, status: GymEpisodeStatus) -> None:
        self._heard[BRIDGE] = time.monotonic()
        self._status = status

    def _on_state(self, state: NamedVector) -> None:
        if self._driver is not None:
            self._commands.publish(self._driver.answer(state))

    def _on_stats(self, stats: PlannerStats) -> None:
        self._heard[PLANNER] = time.monotonic()
        episode = self._episode
        if episode is None or stats.goal_id != episode.goal_id or self._status is None or self._status.done:
            return
        episode.stats = stats
        if stats.latency_ms > 0.0:
            episode.latencies.append(stats.latency_ms)
        if stats.reason == PlannerStats.GOAL_REACHED and episode.reached_at is None:
            episode.reached_at = self._status.step

    # ---- Episodes ------------------------------------------------------------------------------------------------

    def run(self) -> list[GymEpisode]:
        """Run all episodes; EpisodeError if one cannot be brought to its end."""
        deadline = time.monotonic() + START_TIMEOUT
        needed = [(BRIDGE, self._reset_bridge), (BRIDGE, self._ask_bridge)]
        for who, client in needed + ([(PLANNER, self._reset_planner), (PLANNER, self._set_goal)] if self._planned else []):
            self._wait(client.service_is_ready, max(0.0, deadline - time.monotonic()),
                       f'there is no {who}: its service {client.srv_name} did not appear within {START_TIMEOUT:.0f} s')
        self._wait(lambda: self._status is not None, START_TIMEOUT, f'{BRIDGE} published no status within {START_TIMEOUT:.0f} s')
        assert self._status is not None
        if not self._status.limit:
            raise EpisodeError(f'episodes of {self.settings.env} have no limit: give one, for example '
                               "kwargs:='{max_episode_steps: 1000}'")
        episodes = []
        for number in range(self.settings.episodes):
            episode = self._run_episode(self.settings.seed + number)
            record = episode.record()
            append_record(self.settings.out, record)
            print(f'episode {number + 1} of {self.settings.episodes}: {describe(record)}', flush=True)
            episodes.append(episode)
            if number == 0 and self.settings.video:
                answer = self._call(self._save, Trigger.Request())
                if not answer.success:
                    raise EpisodeError(f'the bridge kept no recording: {answer.message}')
        if self._planned:
            self._call(self._clear_goal, Trigger.Request())
        return episodes

    def device(self) -> str | None:
        """Where the planner's network runs; None without a planner."""
        if not self._planned:
            return None
        answer = self._call(self._ask_planner, GetParameters.Request(names=['device']))
        return answer.values[0].string_value if answer.values else None

    def _run_episode(self, seed: int) -> GymEpisode:
        if self._planned:
            self._call(self._reset_planner, Trigger.Request())
        assert self._status is not None
        before = self._status.episode
        answer = self._call(self._reset_bridge, ResetEpisode.Request(seed=seed, goal=list(self.settings.goal)))
        if not answer.success:
            raise EpisodeError(f'the bridge refused to reset: {answer.message}')
        self._wait(lambda: self._status is not None and self._status.episode > before, ANSWER_TIMEOUT,
                   f'the bridge did not show the new episode within {ANSWER_TIMEOUT:.0f} s')
        self._episode = episode = GymEpisode(seed)
        try:
            if self._planned:
                episode.goal_id = self._pursue(self._status)
            elif self.settings.driver == 'random':
                self._driver = self._random_driver(seed)
            self._follow(self._status.episode)
        finally:
            self._episode = self._driver = None
        episode.status = self._status
        return episode

    def _pursue(self, status: GymEpisodeStatus) -> str:
        """Set the environment's goal, or to run where it has none, and return its id."""
        request = SetGoal.Request(task='run')
        if status.goal_names:
            request = SetGoal.Request(task='state', channels=list(status.goal_names), values=list(status.goal_values))
        return self._call_until_accepted(self._set_goal, request, REFUSAL_TIMEOUT, 'the planner refused the goal').goal_id

    def _random_driver(self, seed: int) -> RandomDriver:
        answer = self._call(self._ask_bridge, GetParameters.Request(names=['action_names', 'action_low', 'action_high']))
        names, low, high = answer.values
        limits = [np.array(value.double_array_value) for value in (low, high)]
        return RandomDriver(list(names.string_array_value), limits[0], limits[1], seed)

    def _follow(self, number: int) -> None:
        """Spin until the episode is over."""
        assert self._episode is not None and self._status is not None
        self._heard = dict.fromkeys(self._heard, time.monotonic())
        step, moved = 0, time.monotonic()
        while not self._status.done:
            self._spin()
            if self._status.episode != number:
                raise EpisodeError('the bridge was reset or restarted in the middle of an episode')
            self._check_alive()
            if self._status.step > step:
                step, moved = self._status.step, time.monotonic()
            elif time.monotonic() > moved + STANDSTILL and (self._planned or step):
                stats = self._episode.stats
                said = f'; the planner says: {stats.reason_text}' if stats else ''
                raise EpisodeError(f'no command has come for {STANDSTILL:.0f} s{said}')

    def _check_alive(self) -> None:
        """EpisodeError if planner or bridge left or have been silent for too long."""
        now = time.monotonic()
        needed = [(BRIDGE, 'state', SILENCE)]
        if self._planned:
            needed.append((PLANNER, f'{PLANNER}/stats', SILENCE if self.settings.realtime else STANDSTILL))
        for who, topic, patience in needed:
            if not self.count_publishers(topic):
                raise EpisodeError(f'{who} has gone in the middle of an episode')
            if now > self._heard[who] + patience:
                raise EpisodeError(f'{who} has published nothing for {patience:.0f} s in the middle of an episode')


def main(args: list[str] | None = None) -> int:
    """Run the episodes that the parameters ask for; returns the exit code: see `run_client`."""
    return run_client('episode', args, GymEpisodeNode, _run)


def _run(node: GymEpisodeNode) -> Callable[[], None]:
    """Run the episodes; what is left is to write the results."""
    settings = node.settings
    settings.out.mkdir(parents=True, exist_ok=True)
    for name in (RECORDS, RECORDING, 'episode.mp4'):
        (settings.out / name).unlink(missing_ok=True)
    if settings.video:
        check_drawing(settings.env, settings.kwargs)
    print(f'{settings.env}, {settings.episodes} episode(s) from seed {settings.seed}, driven by {DRIVERS[settings.driver]}',
          flush=True)
    kept, recording = settings.out / RECORDING, None
    began = time.monotonic()
    try:
        episodes = node.run()
        wall_s, device = time.monotonic() - began, node.device()
        if settings.video:
            recording = Recording.load(kept)
    finally:
        kept.unlink(missing_ok=True)

    def finish() -> None:
        write_summary(settings, episodes, device=device, wall_s=wall_s)
        if recording is not None:
            print('video     rendering ...', flush=True)
            write_episode_video(settings.out / 'episode.mp4', recording)
            print(f'video     {settings.out / "episode.mp4"}', flush=True)

    return finish
