"""Quality of service of every topic, in one place so that the two ends of a topic cannot disagree."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

__all__ = ['CLOCK_QOS', 'COMMAND_QOS', 'EVENT_QOS', 'LATCHED_QOS', 'POLLED_QOS', 'STATE_QOS']


def _reliable(depth: int, durability: DurabilityPolicy) -> QoSProfile:
    return QoSProfile(reliability=ReliabilityPolicy.RELIABLE, durability=durability, history=HistoryPolicy.KEEP_LAST,
                      depth=depth)


STATE_QOS = _reliable(1, DurabilityPolicy.VOLATILE)
"""joint_states, object_states, state: only the newest state counts."""
POLLED_QOS = _reliable(32, DurabilityPolicy.VOLATILE)
"""The same topics where they are taken at the ticks: what a fast robot sends between two, so that topics can be paired."""
COMMAND_QOS = _reliable(1, DurabilityPolicy.VOLATILE)
"""command, gripper_command: only the newest command counts."""
LATCHED_QOS = _reliable(1, DurabilityPolicy.TRANSIENT_LOCAL)
"""goal_status, ~/walls: a late subscriber gets the newest message."""
CLOCK_QOS = _reliable(1, DurabilityPolicy.VOLATILE)
"""/clock: only the newest time counts."""
EVENT_QOS = _reliable(10, DurabilityPolicy.VOLATILE)
"""episode_status, ~/plan, ~/stats: every message counts, a short burst is kept."""
