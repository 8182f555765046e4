"""A small ROS client of the simulated robot for tests, in a ROS context of its own."""

import time

import numpy as np
import rclpy
from diffuser_msgs.msg import EpisodeStatus, GripperCommand, ObjectStates
from diffuser_msgs.srv import ResetEpisode
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from diffuser_core.envs.kuka_kinematics import JOINT_NAMES
from diffuser_core.envs.stacking import CHANNELS
from diffuser_ros.conversions import gripper_command, joint_trajectory, nanoseconds, observation
from diffuser_ros.qos import COMMAND_QOS, EVENT_QOS, STATE_QOS
from diffuser_ros.state_buffer import StateBuffer


class Client(Node):
    """Publishes commands, keeps every complete state as (stamp [ns], observation (39,)) and the newest status."""

    def __init__(self, context):
        super().__init__('client', context=context)
        self.buffer, self.states, self.status = StateBuffer(), [], EpisodeStatus()
        self.command = self.create_publisher(JointTrajectory, 'command', COMMAND_QOS)
        self.gripper = self.create_publisher(GripperCommand, 'gripper_command', COMMAND_QOS)
        for kind, topic in ((JointState, 'joint_states'), (ObjectStates, 'object_states')):
            self.create_subscription(kind, topic, lambda m, topic=topic: self._take(topic, m), STATE_QOS)
        self.create_subscription(EpisodeStatus, 'episode_status', self._take_status, EVENT_QOS)
        self.reset = self.create_client(ResetEpisode, 'kuka_bridge/reset_episode')

    def _take(self, topic, message):
        state = self.buffer.add(topic, message, 0.0)
        if state is not None:
            values = observation(state.joints, state.objects)
            self.states.append((nanoseconds(state.stamp), np.array([values[name] for name in CHANNELS])))

    def _take_status(self, status):
        self.status = status

    @property
    def joints(self):
        """The newest joint angles (7,) [rad]."""
        return self.states[-1][1][:7]

    def send(self, joints, stamp=None, close=False):
        """Command `joints` (points, 7) or (7,) as an answer to the state of `stamp`, by default the newest."""
        stamp = self.buffer.newest.stamp if stamp is None else stamp
        joints = np.atleast_2d(joints)
        self.command.publish(joint_trajectory(JOINT_NAMES, joints, joints[0], 1 / 24, stamp))
        self.gripper.publish(gripper_command(close, stamp))


class Session:
    """A context and an executor; nodes are added to it and die with it."""

    def __init__(self, deadline):
        self.deadline = deadline
        self.context = Context()
        rclpy.init(context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.nodes = []

    def add(self, node):
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def until(self, condition, what, also=lambda: None):
        """Spin until `condition()`; `also()` is called meanwhile and may raise."""
        end = time.monotonic() + self.deadline
        while not condition():
            assert time.monotonic() < end, f'waited {self.deadline} s for {what}'
            also()
            self.executor.spin_once(timeout_sec=0.05)

    def spin(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.05)

    def call(self, client, request):
        """The answer of a service."""
        self.until(client.service_is_ready, client.srv_name)
        answer = client.call_async(request)
        self.until(answer.done, f'an answer of {client.srv_name}')
        return answer.result()

    def close(self):
        """End it all; harmless when called again."""
        if self.context.ok():
            self.executor.shutdown()
            for node in self.nodes:
                node.destroy_node()
            rclpy.shutdown(context=self.context)
