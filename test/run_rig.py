"""Run logs for tests: a small policy with a plan and a motion, and a node that ticks it and records."""

import io
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from checkpoints import untrained
from diffuser_msgs.msg import PlannerStats
from std_msgs.msg import Header

from diffuser_core.planner import Planner, Sampling
from diffuser_core.receding_horizon import RecedingHorizon
from diffuser_core.trajectory import Channels, Plan
from diffuser_ros.run_log import RunLog
from diffuser_ros.run_setup import Setup

CHANNELS = Channels(('push.x', 'push.y', 'x', 'y'), ('1', '1', 'm', 'm'), actions=2)
BACKEND = 'a backend of the tests'
PERIOD = 0.05


class Kept(io.BytesIO):
    """A stream whose bytes can be read after it was closed."""

    data = b''

    def close(self):
        self.data = self.data or self.getvalue()
        super().close()


@dataclass(frozen=True)
class Motion:
    """Follows a plan: pushes towards where it will be."""

    plan: Plan

    def begun(self, now):
        return self

    def decide(self, observation, now):
        ahead = self.plan.at(now + PERIOD * np.arange(1, 4))
        place = np.array([observation['x'], observation['y']])
        return ahead[:, :2] + 3.0 * (ahead[:, 2:] - place)


class SmallPolicy:
    """Plans with an untrained network, from noise and from its last plan, to a goal."""

    replans = 0

    def __init__(self, seed=0, backend='eager'):
        self._horizon = RecedingHorizon(Planner(untrained(CHANNELS), seed=seed, backend=backend), Sampling(2, 1))
        self._conditions = self._horizon.planner.conditions()

    def set_goal(self, goal, observation):
        if not -2.0 <= goal['x'] <= 2.0:
            raise ValueError(f'the goal {goal["x"]} lies outside')
        self._conditions = self._horizon.planner.conditions().known(-1, CHANNELS, goal)
        self._horizon.restart()

    def clear_goal(self):
        self._conditions = self._horizon.planner.conditions()

    def reset(self, seed):
        self.clear_goal()
        self._horizon.restart()
        self._horizon.planner.reseed(seed)

    def replan(self, observation, now, delay=0.0, budget=None):
        if observation['x'] > 5.0:
            raise FloatingPointError('that far there is no plan')
        return Motion(self._horizon.update(np.array([observation['x'], observation['y']]), self._conditions, now + delay))


class Within:
    """The safety filter of the tests: clamps to the limit, refuses what is far beyond."""

    def __init__(self, limit):
        self.limit, self.holds, self.forgotten = limit, [], 0

    def __call__(self, decision, observation, now):
        if np.abs(decision).max() > 1e3:
            raise ValueError('the command is far beyond the limit')
        return decision.clip(-self.limit, self.limit)

    def change(self, parameters):
        self.limit = parameters['limit']

    def held(self, command, now):
        self.holds.append((command, now))

    def forget(self):
        self.forgotten += 1


def make_setup(folder, **parameters):
    """What the tests' node is made of, with a checkpoint's folder of two small files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.yaml').write_text('horizon: 16\n')
    (folder / 'model.safetensors').write_bytes(bytes(range(64)))
    return Setup({'checkpoint': str(folder), 'seed': 7, 'tick_rate': 1 / PERIOD, 'limit': 1.0, **parameters}, folder, BACKEND, 7,
                 'gym', ('push.x', 'push.y'))


def record(log, setup, ticks=12, policy=SmallPolicy):
    """Drive with the small policy and record it: two goals, a change of the limit, a reset, a failure, holding; plans come a
    tick late. Gives the number of ticks with a command."""
    policy, prepare, motion, commands = policy(setup.seed), Within(setup.parameters['limit']), None, 0
    number, place = 0, np.array([0.1, -0.2])
    log.start(setup)

    def observation():
        return {'x': float(place[0]), 'y': float(place[1])}

    for tick in range(ticks):
        now = 100.0 + PERIOD * tick
        if tick in (1, 7):
            goal = {'x': 1.0, 'y': -1.0 if tick == 1 else 1.0}
            policy.set_goal(goal, observation())
            log.goal(goal, observation())
        if tick == 4:
            log.change({'limit': 0.5})
            prepare = Within(0.5)
        if tick == 6:
            policy.clear_goal()
            log.clear()
        if tick == 9:
            policy.reset(3)
            log.reset(3)
        follows, motion_now = number, motion
        if tick % 2 == 0:
            motion = policy.replan(observation(), now, delay=PERIOD)
            number = log.replan(observation(), now, motion.plan, delay=PERIOD)
        if tick == 5:
            try:
                policy.replan(observation() | {'x': 9.0}, now)
            except FloatingPointError as error:
                number = log.replan(observation() | {'x': 9.0}, now, None, error=f'planning failed: {error}')
        if motion_now is None or tick == 6:
            log.tick(observation(), now, 0, (), PlannerStats.NO_PLAN, 'no plan has come yet')
        else:
            command = prepare(motion_now.decide(observation(), now), observation(), now)
            log.tick(observation(), now, follows, command, PlannerStats.OK)
            commands += 1
            place = place + 0.2 * command[0]
        header = Header(stamp=Time(sec=100 + tick // 20, nanosec=50_000_000 * (tick % 20)))
        log.stats(PlannerStats(header=header, goal_id='goal-1', tick=tick, reason=PlannerStats.OK, latency_ms=1.0 + tick,
                               plan_age_ms=50.0))
    return commands


def recorded(setup, ticks=12):
    """The bytes of such a run."""
    stream, ends = Kept(), []
    log = RunLog(stream, on_end=ends.append)
    record(log, setup, ticks)
    log.close()
    assert not ends
    return stream.data
