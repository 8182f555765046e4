"""What about a planner node depends on the robot, one file a robot."""

from diffuser_ros.robots.choice import ROBOTS, choose_robot
from diffuser_ros.robots.robot import Buffer, Robot, Sender

__all__ = ['ROBOTS', 'Buffer', 'Robot', 'Sender', 'choose_robot']
