"""The planner node's life: configure, activate, deactivate, clean up, shut down; checkpoints exchanged; the action."""

import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus as ActionStatus
from builtin_interfaces.msg import Time
from checkpoints import untrained_stacking
from diffuser_msgs.action import ReachGoal
from diffuser_msgs.msg import GoalStatus, PlannerStats
from diffuser_msgs.srv import LoadCheckpoint
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from planner_rig import HOME, RED_ON_GREEN, TICK, Rig, StubPolicy, positions
from rclpy.action import ActionClient
from rclpy.parameter import Parameter
from ros_client import Session
from rosgraph_msgs.msg import Clock

from diffuser_ros.parameters import StartError
from diffuser_ros.qos import CLOCK_QOS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def session():
    session = Session(30.0)
    yield session
    session.close()


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Two untrained stacking planners of different weights."""
    folder = tmp_path_factory.mktemp('lifecycle')
    first = untrained_stacking()
    first.save(folder / 'first')
    for name in first.weights:
        first.weights[name] = first.weights[name] * 0.9
    first.save(folder / 'second')
    return folder / 'first', folder / 'second'


class Manager:
    """A lifecycle manager of the planner of a rig."""

    def __init__(self, rig):
        self.rig = rig
        self.change = rig.robot.create_client(ChangeState, 'diffuser_planner/change_state')
        self.get = rig.robot.create_client(GetState, 'diffuser_planner/get_state')

    def to(self, transition):
        return self.rig.session.call(self.change, ChangeState.Request(transition=Transition(id=transition))).success

    @property
    def state(self):
        return self.rig.session.call(self.get, GetState.Request()).current_state.id


def unconfigured(session, **parameters):
    """A rig whose planner waits for its manager."""
    rig = Rig(session, StubPolicy(), ready=False, lock_step=True, autostart=False, **parameters)
    return rig, Manager(rig)


def endpoints(rig):
    """What the planner publishes, hears and serves, and its timers, besides what every node of its kind has."""
    node = rig.planner
    return (sorted(p.topic_name for p in node.publishers), sorted(s.topic_name for s in node.subscriptions),
            sorted(s.service_name for s in node.services), len(list(node.timers)))


def test_each_transition_takes_back_what_its_mirror_did(session):
    rig, manager = unconfigured(session)
    bare = endpoints(rig)
    assert manager.state == State.PRIMARY_STATE_UNCONFIGURED
    assert manager.to(Transition.TRANSITION_CONFIGURE) and manager.state == State.PRIMARY_STATE_INACTIVE
    configured = endpoints(rig)
    assert '/diffuser_planner/stats' in configured[0] and '/diffuser_planner/set_goal' in configured[2]
    for _ in range(2):
        assert manager.to(Transition.TRANSITION_ACTIVATE) and manager.state == State.PRIMARY_STATE_ACTIVE
        assert manager.to(Transition.TRANSITION_DEACTIVATE) and manager.state == State.PRIMARY_STATE_INACTIVE
        assert endpoints(rig) == configured
    assert manager.to(Transition.TRANSITION_CLEANUP) and manager.state == State.PRIMARY_STATE_UNCONFIGURED
    assert endpoints(rig) == bare
    assert manager.to(Transition.TRANSITION_CONFIGURE) and endpoints(rig) == configured
    assert manager.to(Transition.TRANSITION_INACTIVE_SHUTDOWN) and manager.state == State.PRIMARY_STATE_FINALIZED
    assert endpoints(rig) == bare


def test_an_inactive_planner_commands_nothing_and_deactivating_holds_the_robot(session):
    rig, manager = unconfigured(session)
    manager.to(Transition.TRANSITION_CONFIGURE)
    rig.ready()
    rig.robot.publish(1.0)
    answer = rig.call('set_goal', RED_ON_GREEN)
    assert not answer.success and answer.message == 'the planner is not active: activate it first'
    assert not rig.robot.stats and not rig.robot.commands
    manager.to(Transition.TRANSITION_ACTIVATE)
    rig.clock = 1.0
    rig.step()
    rig.set_goal()
    _, before = rig.step()
    commands = len(rig.robot.commands)
    manager.to(Transition.TRANSITION_DEACTIVATE)
    rig.until(lambda: len(rig.robot.commands) > commands, 'the hold')
    np.testing.assert_array_equal(positions(rig.robot.commands[-1]), np.tile(positions(before)[0], (12, 1)))
    assert rig.robot.statuses[-1].status == GoalStatus.CLEARED
    ticks, commands = len(rig.robot.stats), len(rig.robot.commands)
    rig.robot.publish(2.0)
    rig.settle()
    assert (len(rig.robot.stats), len(rig.robot.commands)) == (ticks, commands)
    manager.to(Transition.TRANSITION_ACTIVATE)
    rig.clock = 3.0
    assert rig.step()[0].reason == PlannerStats.NO_GOAL, 'the goal before is not pursued again by itself'


def test_what_cannot_be_configured_stays_unconfigured_and_can_be_tried_again(session, tmp_path, checkpoints):
    rig = Rig(session, None, ready=False, lock_step=True, autostart=False, checkpoint=str(tmp_path / 'later'))
    manager = Manager(rig)
    bare = endpoints(rig)
    assert not manager.to(Transition.TRANSITION_CONFIGURE)
    assert manager.state == State.PRIMARY_STATE_UNCONFIGURED and endpoints(rig) == bare
    (tmp_path / 'later').symlink_to(checkpoints[0])
    assert manager.to(Transition.TRANSITION_CONFIGURE) and manager.state == State.PRIMARY_STATE_INACTIVE


def test_several_robots_go_side_by_side_in_namespaces(session):
    left, right = (Rig(session, StubPolicy(), lock_step=True, namespace=name) for name in ('left', 'right'))
    left.policy.speed, right.policy.speed = 0.24, -0.24
    for rig in (left, right):
        rig.step()
        rig.set_goal()
    commands = [rig.step()[1] for rig in (left, right, left)]
    assert (positions(commands[0])[0] > HOME).all() and (positions(commands[1])[0] < HOME).all()
    assert (left.robot.stats[-1].tick, right.robot.stats[-1].tick) == (3, 2)


def test_with_simulated_time_the_ticks_follow_the_clock(session):
    rig = Rig(session, StubPolicy(), use_sim_time=True)
    clock = rig.robot.create_publisher(Clock, '/clock', CLOCK_QOS)
    rig.until(lambda: clock.get_subscription_count(), 'who listens to the clock')
    now = 100.0

    def pass_time(seconds):
        nonlocal now
        for _ in range(round(seconds / TICK)):
            now += TICK
            clock.publish(Clock(clock=Time(sec=int(now), nanosec=round(1e9 * (now % 1)))))
            rig.settle()

    pass_time(0.2)
    rig.robot.publish(now)
    rig.until(lambda: (rig.planner._poll(), rig.planner._robot.states.newest)[1], 'the state')
    assert rig.call('set_goal', RED_ON_GREEN).success
    ticks = len(rig.robot.stats)
    session.spin(0.3)
    assert len(rig.robot.stats) == ticks, 'no time has passed'
    pass_time(0.5)
    rig.until(lambda: len(rig.robot.stats) > ticks + 3, 'ticks')


# Parameters


@pytest.mark.parametrize('name, value, said', [
    ('replan', 'sometimes', "the parameter replan must be one of every_tick, every_k, on_demand, got 'sometimes'"),
    ('replan_every', 0, 'range'), ('plan_timeout', math.nan, 'range'), ('seed', 4, 'read-only'), ('state_timeout', 1, 'type')])
def test_a_bad_change_is_rejected_with_the_reason_and_nothing_changes(session, name, value, said):
    rig = Rig(session, StubPolicy(), lock_step=True)
    before = rig.planner.get_parameter(name).value
    (result,) = rig.planner.set_parameters([Parameter(name, value=value)])
    assert not result.successful and said.lower() in result.reason.lower()
    assert rig.planner.get_parameter(name).value == before


def test_a_choice_that_there_is_not_is_refused_at_the_start(session):
    with pytest.raises(StartError, match='the parameter inference must be one of auto, inline, thread, process, got .cloud.'):
        Rig(session, StubPolicy(), inference='cloud')


def test_when_plans_are_made_can_be_changed_while_it_runs(session):
    policy = StubPolicy()
    rig = Rig(session, policy, lock_step=True, replan='every_k', replan_every=3)
    rig.step()
    rig.set_goal()
    assert [rig.step()[0].replans for _ in range(7)] == [1, 1, 1, 2, 2, 2, 3]
    assert rig.planner.set_parameters([Parameter('replan_every', value=1)])[0].successful
    assert [rig.step()[0].replans for _ in range(3)] == [4, 5, 6]
    assert rig.planner.set_parameters([Parameter('replan', value='on_demand')])[0].successful
    assert [rig.step()[0].replans for _ in range(3)] == [6, 6, 6]
    assert rig.call('replan').success and [rig.step()[0].replans for _ in range(2)] == [7, 7]
    rig.set_goal()
    assert [rig.step()[0].replans for _ in range(2)] == [8, 8]


# Late plans, in simulated time


def test_injected_delays_are_forecast_and_late_plans_leave_the_robot_following_the_last_one(session):
    policy = StubPolicy()
    rig = Rig(session, policy, lock_step=True, inject_delay=0.1)
    rig.step()
    rig.set_goal()
    seen = [rig.step() for _ in range(12)]
    reasons = [stats.reason for stats, _ in seen]
    assert reasons[:3] == [PlannerStats.NO_PLAN] * 3 and set(reasons[3:]) == {PlannerStats.OK, PlannerStats.PLAN_LATE}
    assert all(command is not None for _, command in seen), 'in lock-step every state is answered'
    assert len(policy.times) == 4
    assert seen[-1][0].forecast_ms == pytest.approx(125.0, abs=0.1), 'three ticks of 1/24 s'
    ages = [stats.plan_age_ms for stats, _ in seen[3:]]
    assert min(ages) == pytest.approx(125.0, abs=0.1) and max(ages) < 300.0


def test_a_plan_that_never_comes_is_followed_for_so_long_and_then_the_robot_holds(session):
    rig = Rig(session, StubPolicy(), lock_step=True, inject_delay=0.01, plan_timeout=0.2)
    rig.step()
    rig.set_goal()
    rig.step()
    assert rig.step()[0].reason == PlannerStats.OK
    rig.planner._control.inference._channel.send = lambda *_: None  # lost for ever
    rig.planner._control.inference._channel._under_way = None
    reasons = []
    while not reasons or reasons[-1] != PlannerStats.NO_PLAN:
        stats, command = rig.step()
        reasons.append(stats.reason)
        assert len(reasons) < 10
    assert len(reasons) == 4 and 'allowed are 200 ms' in stats.reason_text
    assert (positions(command) == positions(command)[0]).all()


# Another checkpoint


def test_a_checkpoint_is_exchanged_between_two_ticks_and_a_bad_one_leaves_the_old_one(session, checkpoints, tmp_path):
    rig = Rig(session, None, lock_step=True, checkpoint=str(checkpoints[0]), max_jump=3.0)
    load = rig.robot.create_client(LoadCheckpoint, 'diffuser_planner/load_checkpoint')
    rig.step()
    goal = rig.set_goal()
    _, before = rig.step()
    damaged = tmp_path / 'damaged'
    damaged.mkdir()
    for file in checkpoints[1].iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[:-1])
    for path, said in ((str(damaged), 'damaged'), (str(tmp_path), 'no checkpoint at'), ('', 'the path of a checkpoint folder'),
                       (str(ROOT / 'config/checkpoints/maze2d_umaze'), 'does not fit this robot')):
        answer = session.call(load, LoadCheckpoint.Request(path=path))
        assert not answer.success and said in answer.message, answer.message
        stats, _ = rig.step()
        assert stats.reason == PlannerStats.OK and stats.goal_id == goal
    policy = rig.planner._control.inference._session.policy
    answer = session.call(load, LoadCheckpoint.Request(path=str(checkpoints[1])))
    assert answer.success and answer.message == f'planning with {checkpoints[1]}'
    assert rig.planner._control.inference._session.policy is not policy
    stats, command = rig.step()
    assert (stats.reason, stats.goal_id, stats.replans) == (PlannerStats.OK, goal, 1)


# The action


def reach(rig, request=RED_ON_GREEN):
    """Send a goal; the handle, the future of its result, and the feedback heard."""
    client = ActionClient(rig.robot, ReachGoal, 'diffuser_planner/reach_goal')
    rig.until(client.server_is_ready, 'the action server')
    heard = []
    goal = ReachGoal.Goal(task=request.task, relations=request.relations, channels=request.channels, values=request.values)
    sent = client.send_goal_async(goal, feedback_callback=lambda message: heard.append(message.feedback))
    rig.until(sent.done, 'the goal')
    handle = sent.result()
    assert handle.accepted
    return handle, handle.get_result_async(), heard


def test_the_action_ends_when_the_goal_is_reached_and_tells_on_the_way(session):
    policy = StubPolicy()
    rig = Rig(session, policy, lock_step=True)
    rig.step()
    _, result, heard = reach(rig)
    rig.until(lambda: rig.planner._control.goal_id, 'the goal')
    rig.step()
    rig.until(lambda: heard, 'feedback')
    assert heard[0].goal_id == 'goal-1' and heard[0].reason == PlannerStats.OK
    assert not result.done()
    policy.reached = True
    rig.step()
    rig.until(result.done, 'the result')
    assert result.result().status == ActionStatus.STATUS_SUCCEEDED
    assert (result.result().result.success, result.result().result.goal_id) == (True, 'goal-1')


def test_the_action_can_be_canceled_replaced_and_refused(session):
    policy = StubPolicy()
    rig = Rig(session, policy, lock_step=True)
    rig.step()
    handle, result, _ = reach(rig)
    rig.until(lambda: policy.goal is not None, 'the goal')
    rig.step()
    canceled = handle.cancel_goal_async()
    rig.until(lambda: canceled.done() and result.done(), 'the cancel')
    assert result.result().status == ActionStatus.STATUS_CANCELED and policy.goal is None
    assert result.result().result.message == 'goal-1 was canceled'

    _, result, _ = reach(rig)
    rig.until(lambda: policy.goal is not None, 'the goal')
    assert rig.set_goal() == 'goal-3'
    rig.until(result.done, 'the result')
    assert result.result().status == ActionStatus.STATUS_ABORTED
    assert result.result().result.message == 'goal-2 was replaced by goal-3'

    policy.refuse = 'green is not free'
    _, result, _ = reach(rig)
    rig.until(result.done, 'the result')
    assert result.result().status == ActionStatus.STATUS_ABORTED and result.result().result.message == 'green is not free'
    assert rig.step()[0].goal_id == 'goal-3', 'the goal before stays in force'


# As a process, in every state


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_process_cleanly_in_every_state(sent, checkpoints):
    """Unconfigured and active; inactive is the state that both pass through."""
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'RCUTILS_LOGGING_BUFFERED_STREAM': '0'}
    cases = {'waiting to be configured': ('-p', 'autostart:=false'), 'planning at 24 Hz': ('-p', f'checkpoint:={checkpoints[0]}')}
    running = {said: subprocess.Popen([sys.executable, '-m', 'diffuser_ros.planner_node', '--ros-args', *given], text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
               for said, given in cases.items()}
    deadline = threading.Timer(90.0, lambda: [process.kill() for process in running.values()])
    deadline.start()
    try:
        for said, process in running.items():
            assert said in process.stdout.readline()
            os.killpg(process.pid, sent)  # as from the keyboard: to all of its processes
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0 and 'Traceback' not in output, (said, output)
    finally:
        deadline.cancel()
        for process in running.values():
            process.kill()
            process.wait()
