"""A MuJoCo robot that runs, under the planner node: its states in, its torques out, in lock-step, late, and recorded."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from diffuser_msgs.msg import PlannerStats
from locomotion_parts import hopper, told_hopper
from ros_client import Session
from std_srvs.srv import Trigger
from test_gym_planner import Rig
from test_recording import again

from diffuser_core.envs.locomotion_policy import LocomotionSettings
from diffuser_ros.parameters import PlannerParameters

OBSERVED = tuple(f'obs.{n}' for n in range(11))


@pytest.fixture
def session():
    session = Session(60.0)
    yield session
    session.close()


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('running') / 'hopper'
    hopper().save(folder)
    return folder


def start(session, checkpoint, **more):
    return Rig(session, None, robot='auto', checkpoint=str(checkpoint), lock_step=True, tick_rate=125.0, steps=2, warm_steps=1,
               candidates=3, **more)


def observed(n=0):
    return np.sin(np.arange(11) + 0.1 * n)


def run(rig):
    return rig.goal((), channels=(), task='run')


def test_it_runs_when_it_is_told_to_and_takes_no_other_goal(session, checkpoint):
    rig = start(session, checkpoint)
    rig.step(observed(), OBSERVED)
    answer = rig.goal((3.0, 1.0))
    assert not answer.success and "use the task 'run'" in answer.message
    answer = run(rig)
    assert answer.success and answer.message == 'goal-1: run'
    seen = [rig.step(observed(n), OBSERVED) for n in range(1, 5)]
    assert {stats.reason for stats, _ in seen} == {PlannerStats.OK} and {stats.reason_text for stats, _ in seen} == {'running'}
    assert all(torques.shape == (3,) and (np.abs(torques) <= 1.0).all() for _, torques in seen)
    assert list(rig.ball.commands[-1].names) == ['action.0', 'action.1', 'action.2']
    assert seen[-1][0].replans == 4 and np.isfinite(seen[-1][0].guide_value)
    stats, torques = rig.step(observed()[:10], OBSERVED[:10])
    assert stats.reason == PlannerStats.BAD_STATE and 'lacks the channel obs.10' in stats.reason_text
    assert torques.tolist() == [0.0, 0.0, 0.0]
    session.call(rig.ball.clear, Trigger.Request())
    assert rig.step(observed(), OBSERVED)[0].reason == PlannerStats.NO_GOAL


def test_the_planner_of_a_robot_that_observes_less_is_not_let_loose_on_another(session, checkpoint):
    """The hopper's planner, the walker's seventeen numbers."""
    rig = start(session, checkpoint)
    names = tuple(f'obs.{n}' for n in range(17))
    rig.step(np.zeros(17), names)
    answer = run(rig)
    assert not answer.success and 'is of another robot than the planner, which does not know obs.11, obs.12' in answer.message
    rig.step(np.append(observed(), 0.5), (*OBSERVED, 'battery'))
    assert run(rig).success, 'what has a name of its own is no sign of another robot'


def test_a_planner_that_is_told_the_return_needs_it_not_observed(session, tmp_path):
    told_hopper().save(tmp_path / 'told')
    rig = Rig(session, None, robot='auto', checkpoint=str(tmp_path / 'told'), lock_step=True, tick_rate=125.0, steps=1,
              candidates=1, aim_offset=-0.5)
    rig.step(observed(), OBSERVED)
    assert run(rig).success
    stats, torques = rig.step(observed(1), OBSERVED)
    assert stats.reason == PlannerStats.OK and torques.shape == (3,)


def test_late_plans_of_a_running_robot_are_replayed_to_the_last_bit(session, checkpoint, tmp_path):
    log = tmp_path / 'run.mcap'
    rig = start(session, checkpoint, inject_delay=0.02, inject_jitter=0.02, record=str(log))
    rig.step(observed(), OBSERVED)
    assert run(rig).success
    seen = [rig.step(observed(n), OBSERVED)[0] for n in range(1, 30)]
    assert seen[-1].committed >= 3 and seen[-1].forecast_ms >= 24.0, 'a plan agrees with the last one until it is followed'
    rig.planner.trigger_deactivate()
    rig.planner.trigger_cleanup()
    comparison = again(log)
    assert comparison.same, comparison.first
    assert comparison.commands > 20 and comparison.plans >= 5


def test_the_node_as_launched_plans_as_the_library_does_and_within_the_tick():
    """A plan that arrives a tick late is worth a third (docs/results.md, 'Plans that arrive late')."""
    file = Path(__file__).resolve().parents[1] / 'config' / 'runner_planner.yaml'
    given = yaml.safe_load(file.read_text())['/**/diffuser_planner']['ros__parameters']
    node, library = PlannerParameters(**given), LocomotionSettings()
    assert (node.candidates, node.guide_scale) == (library.candidates, library.guide_scale) and node.aim_offset == 0.0
    assert node.steps == library.sampling.steps and not library.warm
    assert node.place == 'inline' and not node.lock_step
