"""The planner as a ROS 2 node: state in, command out, goals by service.

What depends on the robot is in `robots`. The node ticks by a steady clock with the newest state, or as states arrive (real
time), or answers every state exactly once (`lock_step`). A tick either follows the policy or, with a reason in ~/stats, holds;
every reason there is stands in `_obstacle` or `_plan`.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from diffuser_msgs.msg import GoalStatus, PlannerStats
from diffuser_msgs.msg import Plan as PlanMessage
from diffuser_msgs.srv import SetGoal
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from diffuser_core.envs.stacking_goal import GoalError
from diffuser_ros import conversions
from diffuser_ros.conversions import StateError
from diffuser_ros.diagnostics import REASONS, Statistics, diagnostic_array
from diffuser_ros.inference import Beside, Inference, Inline
from diffuser_ros.parameters import StartError, declare_parameters
from diffuser_ros.plan_display import PlanDisplay
from diffuser_ros.policy import Policy, load_policy, robot_for
from diffuser_ros.qos import EVENT_QOS, LATCHED_QOS, STATE_QOS
from diffuser_ros.robots import Robot
from diffuser_ros.robots.robot import Moment

__all__ = ['PlannerNode', 'main']

NAME = 'diffuser_planner'
QUIET = 5.0
"""The same reason is logged at most once in so many seconds."""
TROUBLE = (PlannerStats.STALE_STATE, PlannerStats.BAD_STATE, PlannerStats.PLAN_FAILED)


class PlannerNode(Node):
    """The node `diffuser_planner`; StartError, one sentence, if a parameter or the checkpoint cannot be used.

    policy: what decides; without it, the policy of the robot on the checkpoint that the parameters name.
    """

    def __init__(self, *, context: Context | None = None, parameter_overrides: Sequence[Parameter] | None = None,
                 policy: Policy | None = None) -> None:
        super().__init__(NAME, context=context, parameter_overrides=list(parameter_overrides or []))
        try:
            self._settings = declare_parameters(self)
            self._robot: Robot = robot_for(self._settings)
            self._policy = load_policy(self._settings, self._robot) if policy is None else policy
        except StartError:
            self.destroy_node()
            raise
        self._period = 1.0 / self._settings.tick_rate
        self._states = self._robot.states
        self._hold_requested = False
        self._goals = 0
        self._goal_id = ''
        self._goal: Any = None
        self._goal_status = GoalStatus(stamp=self._stamp(), message='no goal has been set')
        self._logged: dict[int, float] = {}
        self._ticked = time.monotonic()
        self._forget()
        self._open()

    def _forget(self) -> None:
        """Start the counts again and forget what was commanded."""
        self._statistics = Statistics()
        reason, text = self._obstacle(self._states.newest, time.monotonic())
        self._stats = PlannerStats(reason=reason, reason_text=text)
        self._acted_on: Moment | None = None
        self._denoising_steps = 0
        self._planned_at = 0.0
        self._resume_at: float | None = None
        self._time_shift = 0.0

    def _open(self) -> None:
        """Topics, services and timers."""
        settings = self._settings
        self._robot.open(self, self._period, lock_step=settings.lock_step)
        self._commander = self._robot.commander
        self._inference: Inference = Inline(self._policy)
        if self._robot.plans_beside and not settings.lock_step:
            self._inference = Beside(self._policy, interval=settings.replan_interval, threads=settings.threads)
        self._plan_publisher = self.create_publisher(PlanMessage, '~/plan', EVENT_QOS)
        self._display = PlanDisplay(self)
        self._stats_publisher = self.create_publisher(PlannerStats, '~/stats', EVENT_QOS)
        self._status_publisher = self.create_publisher(GoalStatus, '~/goal_status', LATCHED_QOS)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', EVENT_QOS)
        self._status_publisher.publish(self._goal_status)
        self.create_service(SetGoal, '~/set_goal', self._on_set_goal)
        self.create_service(Trigger, '~/clear_goal', self._on_clear_goal)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(SetBool, '~/hold', self._on_hold)
        for topic, kind in self._robot.topics.items():
            self.create_subscription(kind, topic, partial(self._on_message, topic), STATE_QOS)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._publish_diagnostics, clock=steady)
        if not settings.lock_step:
            self.create_timer(self._period, self._watch if self._robot.paced_by_states else self._tick, clock=steady)

    def destroy_node(self) -> None:
        """End planning and the node."""
        if hasattr(self, '_inference'):
            self._inference.close()
        super().destroy_node()

    # States and ticks

    def _on_message(self, topic: str, message: Any, info: Mapping[str, Any]) -> None:
        state = self._states.add(topic, message, _arrival(info))
        if state is None:
            return
        if not self._settings.lock_step:
            if self._robot.paced_by_states:
                self._tick()
            return
        answer = self._commander.last
        if answer is not None and answer.stamp == state.stamp:
            self._commander.send_again(answer)
        else:
            self._tick()

    def _watch(self) -> None:
        """Tick in place of a state that does not come."""
        if time.monotonic() - self._ticked > 1.5 * self._period:
            self._tick()

    def _tick(self) -> None:
        """Decide, send, report."""
        began = time.monotonic()
        overdue = not self._settings.lock_step and began - self._ticked > 2 * self._period
        self._ticked = began
        state = self._states.newest
        reason, text = self._obstacle(state, began)
        decision: Any = None
        if state is not None and reason == PlannerStats.OK:
            if state is self._acted_on:
                return  # nothing newer to plan from: the arm follows the last command's tail
            reason, text, decision = self._plan(state)
        if state is not None and self._goal_id and decision is None:
            self._hold(state)
        self._report(state, began, reason, text, decision, overdue)

    def _obstacle(self, state: Moment | None, now: float) -> tuple[int, str]:
        """The reason not even to try planning, and that as one sentence; OK if there is none."""
        if state is None:
            return PlannerStats.NO_STATE, self._states.lacking()
        if not self._goal_id:
            return PlannerStats.NO_GOAL, 'no goal has been set'
        if self._hold_requested:
            return PlannerStats.HOLD_REQUESTED, 'holding because ~/hold asked for it'
        age, timeout = now - state.arrival, self.get_parameter('state_timeout').value
        if not self._settings.lock_step and age > timeout:
            return (PlannerStats.STALE_STATE,
                    f'the newest state is {1e3 * age:.0f} ms old, allowed are {1e3 * timeout:.0f} ms')
        return PlannerStats.OK, ''

    def _plan(self, state: Moment) -> tuple[int, str, Any]:
        """Send what the policy decides; without a decision, the reason says why there is none."""
        try:
            observation = self._robot.observation(state)
        except StateError as error:
            return PlannerStats.BAD_STATE, str(error), None
        now = self._policy_time(state)
        try:
            decision = self._inference.decide(observation, now)
            clamped = self._robot.send(decision, observation, state.stamp)
        except Exception as error:  # whatever goes wrong here, the robot has to be held
            return PlannerStats.PLAN_FAILED, f'planning failed: {error}', None
        self._statistics.clamped += clamped
        self._acted_on, self._planned_at, self._resume_at = state, now, None
        if decision.plan is not None:
            levels = decision.plan.provenance.get('levels')
            self._denoising_steps = len(levels) if isinstance(levels, Sequence) else 0
            if self._plan_publisher.get_subscription_count():
                began = conversions.later(state.stamp, decision.plan.t0 - now)
                self._plan_publisher.publish(conversions.plan_message(decision.plan, self._goal_id, began))
        self._display.show(decision.plan, self._robot.place(observation), self._goal, state.stamp)
        if decision.reached:
            self._set_goal_status(GoalStatus.REACHED, f'{self._goal_id} is reached')
            return PlannerStats.GOAL_REACHED, 'holding: the goal is reached', decision
        self._set_goal_status(GoalStatus.ACTIVE, f'working towards {self._goal_id}')
        return *self._robot.progress(decision), decision

    def _policy_time(self, state: Moment) -> float:
        """Time of `state` for the policy [s]; it stands still while the arm holds, so that the plan is then resumed."""
        now = 1e-9 * conversions.nanoseconds(state.stamp) if self._settings.lock_step else state.arrival
        if self._resume_at is not None:
            self._time_shift = self._resume_at - now
        return now + self._time_shift

    def _hold(self, state: Moment) -> None:
        """Stop the arm where it is told to be at this moment; nothing if it was not told anything."""
        last = self._commander.last
        if last is None:
            return
        if self._resume_at is None:
            self._resume_at = self._planned_at + self._period * self._commander.steps_followed(last)
        self._commander.hold(last, state.stamp if self._settings.lock_step else self._stamp())

    # Reports

    def _report(self, state: Moment | None, began: float, reason: int, text: str, decision: Any,
                overdue: bool) -> None:
        """Count and publish the tick, and log a change of its reason."""
        counts = self._statistics
        counts.ticks += 1
        latency = 0.0
        if state is not None and decision is not None and self._commander.last is not None:
            latency = 1e3 * (self._commander.last.sent - state.arrival)
            if decision.plan is not None:
                counts.latencies.append(latency)
            counts.late += not self._settings.lock_step and (overdue or latency > 1e3 * self._period)
        before = self._stats.reason
        self._stats = PlannerStats(
            header=Header(stamp=self._stamp()), goal_id=self._goal_id, tick=counts.ticks, replans=self._policy.replans,
            late_ticks=counts.late, reason=reason, reason_text=text, latency_ms=latency, planning_ms=self._inference.planning_ms,
            state_age_ms=0.0 if state is None else 1e3 * (began - state.arrival),
            denoising_steps=self._denoising_steps, clamped=counts.clamped)
        self._stats_publisher.publish(self._stats)
        if reason != before and began - self._logged.get(reason, -QUIET) >= QUIET:
            if reason in TROUBLE:
                self._logged[reason] = began
                self.get_logger().warning(f'{REASONS[reason]}: {text}')
            elif before in TROUBLE:
                self._logged[reason] = began
                self.get_logger().info(f'{REASONS[before]} is over: {text}')

    def _publish_diagnostics(self) -> None:
        self._diagnostics_publisher.publish(
            diagnostic_array(self.get_fully_qualified_name(), self._stamp(), self._stats, self._statistics))

    def _set_goal_status(self, status: int, message: str) -> None:
        """Tell of a change of the goal's status."""
        if (status, self._goal_id) != (self._goal_status.status, self._goal_status.goal_id):
            self._goal_status = GoalStatus(stamp=self._stamp(), goal_id=self._goal_id, status=status, message=message)
            self._status_publisher.publish(self._goal_status)
            self.get_logger().info(message)

    def _stamp(self) -> Time:
        """Now, for a header: the node's clock, or the newest state's stamp in lock-step."""
        if self._settings.lock_step and self._states.newest is not None:
            return self._states.newest.stamp
        return self.get_clock().now().to_msg()

    def describe(self) -> str:
        """What it runs, in one line."""
        mode = 'in lock-step' if self._settings.lock_step else f'at {self._settings.tick_rate:g} Hz'
        return f'planning {mode} with the checkpoint {self._settings.checkpoint or "that is shipped"}'

    def summary(self) -> str:
        """The counts since the last reset in one line."""
        return self._statistics.summary(self._policy.replans)

    # Services

    def _on_set_goal(self, request: SetGoal.Request, response: SetGoal.Response) -> SetGoal.Response:
        try:
            goal = self._robot.goal(request)
            state = self._states.newest
            if state is None:
                raise GoalError(self._states.lacking())
            observation = self._robot.observation(state)
            with self._inference.idle():
                self._policy.set_goal(goal, observation)
        except (GoalError, StateError) as error:
            response.message = str(error)
            return response
        self._goals += 1
        self._goal = goal
        self._goal_id = response.goal_id = f'goal-{self._goals}'
        response.success = True
        response.message = f'{self._goal_id}: {self._robot.describe_goal(goal)}'
        self._set_goal_status(GoalStatus.ACTIVE, response.message)
        return response

    def _on_clear_goal(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        response.message = f'{self._goal_id} is cleared' if self._goal_id else 'there was no goal'
        with self._inference.idle():
            self._policy.clear_goal()
        self._drop_goal(response.message)
        return response

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._inference.idle():
            self._policy.reset(self._settings.seed)
        self._drop_goal('the planner was reset')
        self._forget()
        response.success = True
        response.message = 'reset; ~/hold stays in force' if self._hold_requested else 'reset'
        return response

    def _drop_goal(self, why: str) -> None:
        """No goal and nothing to hold any more; the status of a goal that was reached stays."""
        if self._goal_status.status == GoalStatus.ACTIVE:
            self._set_goal_status(GoalStatus.CLEARED, why)
        self._goal_id, self._goal = '', None
        self._commander.last = self._resume_at = None
        self._display.forget()

    def _on_hold(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._hold_requested = request.data
        response.success = True
        response.message = 'holding' if request.data else 'not holding'
        self.get_logger().info(f'{response.message}, as ~/hold asked')
        return response


def _arrival(info: Mapping[str, Any]) -> float:
    """When a message reached this process [s], steady clock; it may have waited while a plan was made."""
    waited = 1e-9 * (time.time_ns() - info['received_timestamp'])
    return time.monotonic() - (waited if 0.0 < waited < 1.0 else 0.0)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted; the exit code is 1, after one sentence in the log, if it cannot start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rclpy's own handler still closes ROS, in order
    try:
        rclpy.init(args=args)
    except RuntimeError as error:
        get_logger(NAME).fatal(f'the ROS arguments cannot be used: {str(error).splitlines()[0]}')
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
