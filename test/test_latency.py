"""Plans that arrive late: the forecast, and policies whose planning is delayed in simulated time."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuser_core.latency import DelayedPolicy, DelayForecast, Injected, SlowChannel


@dataclass(frozen=True)
class Told:
    """A motion that tells when it was made, when it was followed first, and with which forecast."""

    made: float
    delay: float
    waits: bool = True
    since: float | None = None
    plan: None = None

    def begun(self, now):
        return replace(self, since=now, waits=False) if self.waits else self

    def decide(self, observation, now):
        return self


class Teller:
    def __init__(self):
        self.replans, self.begins = 0, []

    def reset(self, seed=0):
        self.replans, self.seed = 0, seed

    def set_goal(self, goal, observation):
        self.goal = goal

    def clear_goal(self):
        self.goal = None

    def replan(self, observation, now, delay=0.0, budget=None):
        self.replans += 1
        return Told(now, delay)

    def begin(self, now):
        self.begins.append(now)

    def resting(self, observation):
        return Told(-1.0, 0.0)


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=60))
def test_at_most_a_tenth_of_the_newest_delays_exceeds_the_forecast(delays):
    forecast = DelayForecast(memory=20, ignore=0)
    for delay in delays:
        forecast.add(delay)
    newest = delays[-20:]
    assert sum(delay > forecast.seconds for delay in newest) <= 0.1 * len(newest)
    assert forecast.seconds in newest


def test_the_first_plan_does_not_count_and_bad_delays_are_refused():
    forecast = DelayForecast()
    assert forecast.seconds == 0.0
    forecast.add(9.0)
    assert forecast.seconds == 0.0
    forecast.add(0.02)
    assert forecast.seconds == 0.02
    for bad in (-0.1, float('nan'), float('inf')):
        with pytest.raises(ValueError, match='a delay must be finite and not negative'):
            forecast.add(bad)


@pytest.mark.parametrize('bad', [{'delay': -1.0}, {'jitter': float('inf')}, {'loss': 1.0}, {'delay': float('nan')}])
def test_what_cannot_be_suffered_is_refused(bad):
    with pytest.raises(ValueError, match='must be finite and not negative and the loss lie in'):
        Injected(**bad)


def test_without_delay_every_tick_follows_its_own_plan():
    policy = DelayedPolicy(Teller(), Injected(), tick_dt=0.1)
    assert [policy.act({}, 0.1 * n).made for n in range(4)] == [0.1 * n for n in range(4)]


def test_late_plans_are_followed_when_they_arrive_and_know_it_beforehand():
    teller = Teller()
    policy = DelayedPolicy(teller, Injected(delay=0.25), tick_dt=0.1)
    acts = [policy.act({}, n / 10) for n in range(8)]
    assert [act.made for act in acts] == [-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.3, 0.3]
    assert [act.since for act in acts[3:]] == [0.3, 0.3, 0.3, 0.6, 0.6] and teller.begins == [0.3, 0.6]
    assert [act.delay for act in acts[3:]] == [0.0, 0.0, 0.0, 0.3, 0.3], 'three ticks, of which the last was noticed late'
    blind = DelayedPolicy(Teller(), Injected(delay=0.25), tick_dt=0.1, committed=False)
    assert {blind.act({}, n / 10).delay for n in range(12)} == {0.0}


def test_a_new_goal_forgets_the_plan_under_way():
    policy = DelayedPolicy(Teller(), Injected(delay=0.15), tick_dt=0.1)
    policy.act({}, 0.0)
    policy.set_goal('there', {})
    assert [policy.act({}, n / 10).made for n in (1, 2, 3)] == [-1.0, -1.0, 0.1]


def test_the_same_seed_suffers_the_same_jitter_and_losses():
    def arrivals(seed, loss):
        channel, times = SlowChannel(Injected(delay=0.1, jitter=0.3, loss=loss, seed=seed)), []
        for n in range(400):
            times += [(n, sent) for sent, lost in channel.received(n / 100) if not lost]
            if not channel.busy:
                channel.send(n, n / 100)
        return times

    assert arrivals(1, 0.3) == arrivals(1, 0.3) != arrivals(2, 0.3)
    delays = [arrived - sent for arrived, sent in arrivals(1, 0.0)]
    assert min(delays) >= 10 and max(delays) <= 41 and max(delays) - min(delays) > 10
    assert len(arrivals(1, 0.5)) < len(arrivals(1, 0.0))


def test_the_channel_takes_one_thing_at_a_time():
    channel = SlowChannel(Injected(delay=1.0))
    channel.send('a', 0.0)
    with pytest.raises(RuntimeError, match='one thing at a time'):
        channel.send('b', 0.5)
    assert list(channel.received(0.9)) == [] and list(channel.received(1.0)) == [('a', False)] and not channel.busy
    channel.send('b', 2.0)
    assert channel.restart() == ['b'] and not channel.busy and channel.restart() == []
