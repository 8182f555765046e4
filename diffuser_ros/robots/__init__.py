"""What about a planner node depends on the robot, one file a robot."""

from diffuser_ros.robots.choice import ROBOT_KINDS
from diffuser_ros.robots.robot import Buffer, Robot, Sender

__all__ = ['ROBOT_KINDS', 'Buffer', 'Robot', 'Sender']
