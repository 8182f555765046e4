"""A stand-in for the part of ROS 2's launch and launch_ros that our launch files use.

PyPI has ROS 2's client library but not its launch system. So that pip alone is enough, the classes here carry the names
and meanings of their ROS 2 counterparts, and `stand_in_modules` puts them where a launch file imports them from. What
is not covered is refused by name (`NotCovered`).
"""

from .launcher import describe_arguments, launch
from .modules import stand_in_modules
from .substitutions import LaunchError, NotCovered

__all__ = ['LaunchError', 'NotCovered', 'describe_arguments', 'launch', 'stand_in_modules']
