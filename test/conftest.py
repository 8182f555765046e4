"""Every test process has a ROS system of its own: own domain, this machine only, nothing left in shared memory."""

import importlib.util
import os
import shutil
import signal
import socket
import tempfile

# test/ros2 needs ROS 2's launch system, which is not on PyPI; test_launched.py makes the same checks without it.
collect_ignore = [] if importlib.util.find_spec('launch_pytest') else ['ros2']

DOMAINS = range(1, 102)  # on Linux, those whose ports stay clear of the ephemeral ones
FIRST_PORT = 24000


def claim_domain() -> tuple[int, socket.socket]:
    """A ROS domain that no other test process on this machine has, and the bound socket that says so while it lives."""
    for domain in DOMAINS:
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(('127.0.0.1', FIRST_PORT + domain))
            return domain, claim
        except OSError:
            claim.close()
    raise RuntimeError(f'all ROS domains from {DOMAINS[0]} to {DOMAINS[-1]} are in use by other test processes')


# Before any test module is imported, for rclpy reads these once; the processes that tests start inherit them.
_domain, _claim = claim_domain()
os.environ['ROS_DOMAIN_ID'] = str(_domain)
os.environ['OMP_NUM_THREADS'] = '1'  # several threads wait for each other, for ever longer, once a neighbour is busy
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['FASTDDS_BUILTIN_TRANSPORTS'] = 'UDPv4'
os.environ['ROS_LOG_DIR'] = tempfile.mkdtemp(prefix='diffuser_ros_test_log_')

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a run under nohup ignores it, and so would the processes that tests start


def pytest_unconfigure() -> None:
    """Remove what was made above."""
    shutil.rmtree(os.environ['ROS_LOG_DIR'], ignore_errors=True)
    _claim.close()
