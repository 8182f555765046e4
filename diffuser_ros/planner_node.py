"""The planner as a managed ROS 2 node: state in, command out, goals by service.

What depends on the robot is in `robots`, what happens at a tick in `control`, where plans are made in `places`. The node ticks
by a clock with the newest state, or as states arrive, or answers every state exactly once (`lock_step`).

Configuring makes the policy ready and opens topics and services, activating begins to tick; deactivating holds the robot and ends
the ticks, cleaning up takes back all that configuring did.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from diffuser_msgs.msg import GoalStatus, PlannerStats
from diffuser_msgs.msg import Plan as PlanMessage
from diffuser_msgs.srv import SetGoal
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from diffuser_core.envs.goals import GoalError
from diffuser_core.envs.policy_settings import PolicyError, robot_of
from diffuser_core.motion import Policy
from diffuser_ros import conversions
from diffuser_ros.control import Control, Outcome
from diffuser_ros.conversions import StateError
from diffuser_ros.diagnostics import REASONS, diagnostic_array
from diffuser_ros.exchange import CheckpointExchange
from diffuser_ros.inference import Inference, PlanningError, Session
from diffuser_ros.lifetime import start_ros
from diffuser_ros.parameters import PlannerParameters, StartError, declare_parameters
from diffuser_ros.places import inference_of, start, with_checkpoint
from diffuser_ros.plan_display import PlanDisplay
from diffuser_ros.qos import EVENT_QOS, LATCHED_QOS, POLLED_QOS, STATE_QOS
from diffuser_ros.reach_goal import ReachGoalServer
from diffuser_ros.recorder import Recorder
from diffuser_ros.robots import ROBOT_KINDS, Robot
from diffuser_ros.run_setup import Setup

__all__ = ['PlannerNode', 'main']

NAME = 'diffuser_planner'
QUIET = 5.0
"""The same reason is logged at most once in so many seconds."""
TROUBLE = (PlannerStats.STALE_STATE, PlannerStats.BAD_STATE, PlannerStats.PLAN_FAILED, PlannerStats.PLANNER_DIED,
           PlannerStats.PLAN_REFUSED, PlannerStats.UNSAFE_COMMAND, PlannerStats.IMPLAUSIBLE_STATE, PlannerStats.CLOCK_JUMPED)


class Dormant(CallbackGroup):
    """Wakes nobody: a robot may send hundreds of states a second, of which a tick wants the newest; they are taken then."""

    def can_execute(self, entity: Any) -> bool:
        """Never."""
        return False

    def beginning_execution(self, entity: Any) -> bool:
        """Never."""
        return False

    def ending_execution(self, entity: Any) -> None:
        """Nothing was begun."""


class PlannerNode(LifecycleNode):
    """The node `diffuser_planner`; StartError, one sentence, if a parameter or, with `autostart`, the checkpoint cannot be used.

    policy  what plans, in this process; without it, the policy of the robot on the checkpoint that the parameters name
    """

    def __init__(self, *, context: Context | None = None, parameter_overrides: Sequence[Parameter] | None = None,
                 policy: Policy | None = None, namespace: str = '') -> None:
        super().__init__(NAME, context=context, parameter_overrides=list(parameter_overrides or []), namespace=namespace)
        self._given = policy
        self._inference: Inference | None = None
        self._opened = ExitStack()  # what configuring has opened so far, to be closed in reverse
        self._failure = ''
        self._active = False
        self._goal_status = GoalStatus()
        self._logged: dict[int, float] = {}
        try:
            self._settings = declare_parameters(self)
            if self._settings.autostart:
                done = self.trigger_configure()
                if not self.context.ok():  # a signal has closed ROS meanwhile
                    raise ExternalShutdownException()
                if done != TransitionCallbackReturn.SUCCESS:
                    raise StartError(self._failure)
                self.trigger_activate()
            self.add_post_set_parameters_callback(self._parameters_changed)
        except (StartError, ExternalShutdownException):
            self.destroy_node()
            raise

    # Life

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Make the policy ready, open topics and services."""
        try:
            self._robot: Robot = ROBOT_KINDS[self._robot_name()]()
            self._inference = start(self._settings).wait() if self._given is None \
                else inference_of(Session(self._given), self._settings)
            self._opened.callback(self._end_planning)
            self._robot.learn(self._inference.ready.channels)
            recorder = self._begin_recording()
            if recorder is not None:
                self._opened.callback(recorder.close)
            self._period = 1.0 / self._settings.tick_rate
            self._robot.open(self, self._period, lock_step=self._settings.lock_step)
            self._opened.callback(self._robot.close, self)
        except (StartError, PlanningError) as error:
            self._failure = str(error)
            self._opened.close()
            if not self._settings.autostart:
                self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        self._control = Control(self._robot, self._inference, period=self._period, lock_step=self._settings.lock_step,
                                get=lambda name: self.get_parameter(name).value)
        self._control.recorder = recorder
        self._open()
        return TransitionCallbackReturn.SUCCESS

    def _begin_recording(self) -> Recorder | None:
        """The recorder, if the run is to be recorded; StartError if it cannot be."""
        if not self._settings.record:
            return None
        assert self._inference is not None
        from diffuser_ros.run_log import RunLog, RunLogError  # needs packages that are needed for nothing else

        try:
            log = RunLog(Path(self._settings.record).expanduser(), on_end=self._recording_ended)
            return Recorder(log, self._setup(self._settings, self._inference))
        except (RunLogError, OSError) as error:
            raise StartError(f'the run cannot be recorded: {error}') from error

    def _recording_ended(self, why: str) -> None:
        self.get_logger().error(why)

    def _setup(self, settings: PlannerParameters, inference: Inference) -> Setup:
        """What the bits of commands depend on."""
        values = {field.name: getattr(settings, field.name) for field in fields(settings)}
        values |= {name: self.get_parameter(name).value for name in values if self.has_parameter(name)}
        values |= {'checkpoint': settings.checkpoint, 'robot': self._robot.name}
        return Setup(values, settings.folder, inference.ready.backend, settings.seed, self._robot.name, self._robot.command_names)

    def _robot_name(self) -> str:
        try:
            return robot_of(self._settings.policy)
        except PolicyError as error:
            raise StartError(str(error)) from error

    def _open(self) -> None:
        """Topics and services, each with its own end."""
        ending = self._opened.callback
        self._publishing = {}
        for name, kind, qos in (('~/plan', PlanMessage, EVENT_QOS), ('~/stats', PlannerStats, EVENT_QOS),
                                ('~/goal_status', GoalStatus, LATCHED_QOS), ('/diagnostics', DiagnosticArray, EVENT_QOS)):
            self._publishing[name] = self.create_publisher(kind, name, qos)
            ending(self.destroy_publisher, self._publishing[name])
        self._display = PlanDisplay(self)
        ending(self._display.close, self)
        for kind, name, answer in (
                (SetGoal, '~/set_goal', self._on_set_goal), (Trigger, '~/clear_goal', self._on_clear_goal),
                (Trigger, '~/reset', self._on_reset), (SetBool, '~/hold', self._on_hold), (Trigger, '~/replan', self._on_replan)):
            ending(self.destroy_service, self.create_service(kind, name, answer))
        polled = not self._settings.lock_step and not self._robot.paced_by_states
        qos, group = (POLLED_QOS, Dormant()) if polled else (STATE_QOS, None)
        self._polled = {}
        for topic, kind in self._robot.topics.items():
            subscription = self.create_subscription(kind, topic, partial(self._on_message, topic), qos, callback_group=group)
            ending(self.destroy_subscription, subscription)
            if polled:
                self._polled[topic] = subscription
        self._reaching = ReachGoalServer(self, self)
        ending(self._reaching.close)
        exchanging = CheckpointExchange(self, lambda path: with_checkpoint(self._settings, self._robot.name, path), self.exchange)
        ending(exchanging.close)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        ending(self.destroy_timer, self.create_timer(1.0, self._publish_diagnostics, clock=self._steady))
        self._set_goal_status(GoalStatus.NONE, 'no goal has been set')

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to tick."""
        self._active = True
        self._ticking = None
        if not self._settings.lock_step:
            clock = self.get_clock() if self.get_parameter('use_sim_time').value else self._steady
            tick = self._watch if self._robot.paced_by_states else self._tick
            self._ticking = self.create_timer(self._period, tick, clock=clock)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold the robot where it is, and tick no more; the goal is dropped."""
        self._active = False
        if self._ticking is not None:
            self.destroy_timer(self._ticking)
        self._control.hold_now()
        self.drop('the planner was deactivated')
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take back what configuring did."""
        self._opened.close()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold the robot and take everything back, from whatever state."""
        if self._active:
            self.on_deactivate(state)
        self._opened.close()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """What went wrong in a transition is taken back, and the node can be configured again."""
        self.get_logger().error(f'a transition failed; back to unconfigured{": " + self._failure if self._failure else ""}')
        self._active = False
        self._opened.close()
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """End planning and the node."""
        self._opened.close()
        super().destroy_node()

    def _end_planning(self) -> None:
        if self._inference is not None:
            self._inference.close()
            self._inference = None

    def _parameters_changed(self, parameters: list[Parameter]) -> None:
        ours = {p.name: p.value for p in parameters if p.name in {field.name for field in fields(self._settings)}}
        if ours and self._inference is not None and self._control.recorder is not None:
            self._control.recorder.changed(ours)

    # States and ticks

    def _on_message(self, topic: str, message: Any, info: Mapping[str, Any]) -> None:
        state = self._robot.states.add(topic, message, _arrival(info))
        if state is None or not self._active:
            return
        if not self._settings.lock_step:
            if self._robot.paced_by_states:
                self._tick()
            return
        commander = self._robot.commander
        if commander.last is not None and commander.last.stamp == state.stamp:
            commander.send_again(commander.last)
        else:
            self._tick()

    def _watch(self) -> None:
        """Tick in place of a state that does not come."""
        if self._control.overdue():
            self._tick()

    def _poll(self) -> None:
        """Take in what has come on topics that nobody is woken for."""
        for topic, subscription in self._polled.items():
            with subscription.handle:
                while (taken := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is not None:
                    self._on_message(topic, *taken)

    def _tick(self) -> None:
        began = self.get_clock().now().to_msg()
        self._poll()
        before = self._control.stats.reason
        outcome = self._control.tick()
        if outcome is None:
            return
        self._control.stats.header.stamp = self._control.stamp(lambda: began)
        if self._publishing['~/stats'].get_subscription_count():
            self._publishing['~/stats'].publish(self._control.stats)
        self._reaching.ticked(self._control.stats)
        if outcome.motion is not None and outcome.decision is not None:
            self._show(outcome)
        self._log(before, outcome)

    def _show(self, outcome: Outcome) -> None:
        """Publish what follows from a tick that sent a command."""
        decision, state = outcome.decision, outcome.state
        assert state is not None and outcome.observation is not None
        if outcome.new and decision.plan is not None and self._publishing['~/plan'].get_subscription_count():
            began = conversions.later(state.stamp, decision.plan.t0 - outcome.now)
            self._publishing['~/plan'].publish(conversions.plan_message(decision.plan, self._control.goal_id, began))
        motion, observation, goal = outcome.motion, outcome.observation, self._control.goal
        self._display.show(lambda: self._robot.scene(motion, observation, goal), state.stamp)
        if decision.reached:
            self._set_goal_status(GoalStatus.REACHED, f'{self._control.goal_id} is reached')
        else:
            self._set_goal_status(GoalStatus.ACTIVE, f'working towards {self._control.goal_id}')

    def _log(self, before: int, outcome: Outcome) -> None:
        """Say that the reason has changed, if that is trouble."""
        now, reason = time.monotonic(), outcome.reason
        if reason == before or now - self._logged.get(reason, -QUIET) < QUIET:
            return
        if reason in TROUBLE:
            self._logged[reason] = now
            self.get_logger().warning(f'{REASONS[reason]}: {outcome.text}')
        elif before in TROUBLE:
            self._logged[reason] = now
            self.get_logger().info(f'{REASONS[before]} is over: {outcome.text}')

    # Reports

    def _publish_diagnostics(self) -> None:
        self._publishing['/diagnostics'].publish(diagnostic_array(
            self.get_fully_qualified_name(), self._stamp(), self._control.stats, self._control.statistics, active=self._active,
            trouble=self._doubled()))

    def _doubled(self) -> str:
        """What is to be said if another node has the same name. It is no reason to refuse anything: a node that was killed is
        seen for a while after its end, and the one that took its place must work."""
        if self.get_node_names_and_namespaces().count((self.get_name(), self.get_namespace())) < 2:
            return ''
        return f'another node is called {self.get_fully_qualified_name()}: two planners must not command one robot'

    def _set_goal_status(self, status: int, message: str) -> None:
        """Tell of a change of the goal's status."""
        goal_id = self._control.goal_id
        if not self._goal_status.message or (status, goal_id) != (self._goal_status.status, self._goal_status.goal_id):
            self._goal_status = GoalStatus(stamp=self._stamp(), goal_id=goal_id, status=status, message=message)
            self._publishing['~/goal_status'].publish(self._goal_status)
            self._reaching.status(self._goal_status)
            if goal_id:
                self.get_logger().info(message)

    def _stamp(self) -> Time:
        return self._control.stamp(lambda: self.get_clock().now().to_msg())

    def describe(self) -> str:
        """What it runs, in one line."""
        if self._inference is None:
            return 'waiting to be configured'
        mode = 'in lock-step' if self._settings.lock_step else f'at {self._settings.tick_rate:g} Hz'
        return f'planning {mode} with the checkpoint {self._settings.checkpoint or "that is shipped"}'

    def summary(self) -> str:
        """The counts since the last reset in one line."""
        return self._control.statistics.summary() if hasattr(self, '_control') else 'never configured'

    # Services

    def _on_set_goal(self, request: SetGoal.Request, response: SetGoal.Response) -> SetGoal.Response:
        try:
            response.goal_id = self.pursue(request)
        except (GoalError, StateError) as error:
            response.message = str(error)
            return response
        response.success = True
        response.message = self._goal_status.message
        return response

    def pursue(self, request: Any) -> str:
        """Set the goal of a request with the fields of SetGoal; its name. GoalError or StateError if it is refused."""
        if not self._active:
            raise GoalError('the planner is not active: activate it first')
        goal = self._robot.goal(request)
        self._poll()
        state = self._robot.states.newest
        if state is None:
            raise GoalError(self._robot.states.lacking())
        observation = self._robot.observation(state)
        goal_id = self._control.set_goal(goal, observation)
        if self._control.recorder is not None:
            self._control.recorder.goal(request, observation)
        self._set_goal_status(GoalStatus.ACTIVE, f'{goal_id}: {self._robot.describe_goal(goal)}')
        return goal_id

    def _on_clear_goal(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        goal_id = self._control.goal_id
        response.success = True
        response.message = f'{goal_id} is cleared' if goal_id else 'there was no goal'
        self.drop(response.message)
        return response

    def drop(self, why: str) -> None:
        """Pursue no goal any more."""
        self._drop_goal(why)
        self._control.clear_goal()

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._drop_goal('the planner was reset')
        self._control.reset(self._settings.seed)
        response.success = True
        response.message = 'reset; ~/hold stays in force' if self._control.hold_requested else 'reset'
        return response

    def _drop_goal(self, why: str) -> None:
        """Tell that the goal is no more, unless it was reached."""
        if self._goal_status.status == GoalStatus.ACTIVE:
            self._set_goal_status(GoalStatus.CLEARED, why)
        self._display.forget()

    def _on_hold(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._control.hold_requested = request.data
        response.success = True
        response.message = 'holding' if request.data else 'not holding'
        self.get_logger().info(f'{response.message}, as ~/hold asked')
        return response

    def _on_replan(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = bool(self._control.goal_id)
        response.message = 'a new plan is made' if response.success else 'no goal has been set'
        self._control.demanded = response.success
        return response

    def exchange(self, settings: PlannerParameters, inference: Inference) -> None:
        """Plan by `inference` from the next tick on, which these `settings` made; GoalError, and nothing changes, if the goal in
        force is not for it."""
        before = self._control.exchange(inference, self._setup(settings, inference))
        before.close()
        self._inference, self._settings = inference, settings


def _arrival(info: Mapping[str, Any]) -> float:
    """When a message reached this process [s], steady clock; it may have waited while another callback ran."""
    waited = 1e-9 * (time.time_ns() - info['received_timestamp'])
    return time.monotonic() - (waited if 0.0 < waited < 1.0 else 0.0)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted; the exit code is 1, after one sentence in the log, if it cannot start."""
    if not start_ros(NAME, args):
        return 1
    node = None
    try:
        executor = SingleThreadedExecutor()  # first: one that is made while a signal closes the context breaks noisily
        node = PlannerNode()
        node.get_logger().info(node.describe())
        executor.add_node(node)
        executor.spin()
    except StartError as error:
        get_logger(NAME).fatal(str(error))
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        if rclpy.ok():
            raise  # otherwise a signal has closed the context in the middle of a callback, which then could not publish
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            print(f'{NAME}: {node.summary()}', flush=True)
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
