"""A robot for the planner node to talk to, and a policy that does as it is told."""

from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from diffuser_msgs.msg import GoalStatus, GripperCommand, ObjectStates, PlannerStats
from diffuser_msgs.msg import Plan as PlanMessage
from diffuser_msgs.srv import SetGoal
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.stacking import BLOCKS
from diffuser_core.envs.stacking_goal import GoalError
from diffuser_core.envs.stacking_motion import Decision
from diffuser_core.trajectory import Channels, Plan
from diffuser_ros.conversions import joint_state, object_states
from diffuser_ros.planner_node import PlannerNode
from diffuser_ros.qos import COMMAND_QOS, EVENT_QOS, LATCHED_QOS, STATE_QOS

TICK = 1 / 24
HOME = np.array([0.0, 0.4, 0.0, -1.5, 0.0, 1.2, 0.0])
POSES = np.array([[0.6, 0.0, 0.03, 0, 0, 0, 1], [0.0, 0.6, 0.03, 0, 0, 0, 1],
                  [-0.6, 0.0, 0.03, 0, 0, 0, 1], [0.0, -0.6, 0.03, 0, 0, 0, 1]])
RED_ON_GREEN = SetGoal.Request(task='relations', relations=['red on green'])


@dataclass(frozen=True)
class StubMotion:
    """All joints by `speed` [rad/s] from where the arm is."""

    speed: float
    reached: bool
    plan: Plan
    waits: bool = False

    @property
    def shown(self):
        return self.plan

    def begun(self, now):
        return self

    def decide(self, observation, now):
        joints = np.array([observation[name] for name in JOINT_NAMES])
        path = joints + self.speed * TICK * np.arange(1, 13)[:, None]
        return Decision(path, np.ones(12, dtype=bool), None, self.reached, None if self.reached else (0, 1))


class StubPolicy:
    """Moves all joints by `speed` [rad/s] and tells what it was asked."""

    def __init__(self):
        self.goal, self.seed, self.replans, self.times = None, None, 0, []
        self.speed, self.reached, self.error, self.refuse = 0.24, False, None, None

    def reset(self, seed):
        self.goal, self.seed, self.replans = None, seed, 0

    def set_goal(self, goal, observation):
        if self.refuse:
            raise GoalError(self.refuse)
        self.goal = goal

    def clear_goal(self):
        self.goal = None

    def begin(self, now):
        pass

    def replan(self, observation, now, delay=0.0, budget=None):
        self.times.append(now)
        if self.error:
            raise self.error
        self.replans += 1
        return StubMotion(self.speed, self.reached, Plan(np.zeros((13, 1)), Channels(('x',), ('m',)), now, TICK, {}))


class Robot(Node):
    """What the planner talks to: publishes states, hears commands, calls services."""

    def __init__(self, context):
        super().__init__('robot', context=context)
        self.joints = self.create_publisher(JointState, 'joint_states', STATE_QOS)
        self.objects = self.create_publisher(ObjectStates, 'object_states', STATE_QOS)
        self.commands, self.grippers, self.stats, self.plans, self.statuses = [], [], [], [], []
        for kind, topic, heard, qos in (
                (JointTrajectory, 'command', self.commands, COMMAND_QOS),
                (GripperCommand, 'gripper_command', self.grippers, COMMAND_QOS),
                (PlannerStats, 'diffuser_planner/stats', self.stats, EVENT_QOS),
                (PlanMessage, 'diffuser_planner/plan', self.plans, EVENT_QOS),
                (GoalStatus, 'diffuser_planner/goal_status', self.statuses, LATCHED_QOS)):
            self.create_subscription(kind, topic, heard.append, qos)
        self.clients_ = {name: self.create_client(kind, f'diffuser_planner/{name}') for name, kind in (
            ('set_goal', SetGoal), ('clear_goal', Trigger), ('reset', Trigger), ('hold', SetBool), ('replan', Trigger))}

    def publish(self, stamp, joints=HOME, names=JOINT_NAMES, blocks=BLOCKS):
        """One state at `stamp` [s]."""
        stamp = Time(sec=int(stamp), nanosec=round(1e9 * (stamp % 1)))
        self.joints.publish(joint_state(names, joints[:len(names)], None, stamp))
        self.objects.publish(object_states(blocks, POSES[:len(blocks)], np.zeros(len(blocks)), stamp))


class Rig:
    """Planner and robot in one ROS context, spun by the test."""

    def __init__(self, session, policy, ready=True, **parameters):
        self.session, self.policy, self.clock = session, policy, 0.0
        self.robot = session.add(Robot(session.context))
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.planner = session.add(PlannerNode(context=session.context, parameter_overrides=overrides, policy=policy))
        if ready:
            self.ready()

    def ready(self):
        """Wait for the planner's topics."""
        self.until(lambda: self.robot.statuses and all(
            p.get_subscription_count() for p in (self.robot.joints, self.robot.objects)), 'the planner')
        for topic in ('command', 'gripper_command', 'diffuser_planner/stats', 'diffuser_planner/plan'):
            self.until(lambda topic=topic: self.planner.count_subscribers(topic), topic)

    def until(self, condition, what):
        self.session.until(condition, what)

    def settle(self):
        """Let the robot hear all that the planner has published."""
        for publisher in self.planner.publishers:
            assert publisher.wait_for_all_acked(Duration(seconds=10))
        for _ in range(20):
            self.session.executor.spin_once(timeout_sec=0)

    def call(self, name, request=None):
        client = self.robot.clients_[name]
        answer = self.session.call(client, client.srv_type.Request() if request is None else request)
        self.settle()
        return answer

    def step(self, stamp=None, **state):
        """Publish the next state, or that of `stamp`, in lock-step; its stats and the answer, if there is one."""
        self.clock = self.clock + TICK if stamp is None else stamp
        ticks, commands = len(self.robot.stats), len(self.robot.commands)
        self.robot.publish(self.clock, **state)
        self.until(lambda: len(self.robot.stats) > ticks, 'a tick')
        self.settle()
        assert len(self.robot.commands) == len(self.robot.grippers)
        return self.robot.stats[-1], self.robot.commands[-1] if len(self.robot.commands) > commands else None

    def set_goal(self):
        answer = self.call('set_goal', RED_ON_GREEN)
        assert answer.success, answer.message
        return answer.goal_id


def positions(command):
    """Joint positions (points, 7) of a JointTrajectory."""
    return np.array([point.positions for point in command.points])
