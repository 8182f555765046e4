"""What must hold of a launched stack: the same checks for ROS 2's launch_pytest and for plain pytest."""

from diffuser_msgs.msg import PlannerStats
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.node import Node
from sensor_msgs.msg import JointState

from diffuser_ros.qos import EVENT_QOS, STATE_QOS

ARGUMENTS = {'realtime': 'false', 'video': 'false', 'task': 'conditional', 'seed': '3', 'episodes': '1'}
"""Of kuka_stack.launch.py."""


def check_kuka_stack(session):
    """The arm speaks, the planner is active, takes its goal and commands the arm."""
    node = session.add(Node('checks', context=session.context))
    joints, stats = [], []
    node.create_subscription(JointState, 'joint_states', joints.append, STATE_QOS)
    node.create_subscription(PlannerStats, 'diffuser_planner/stats', stats.append, EVENT_QOS)
    session.until(lambda: joints, 'joint states')
    state = session.call(node.create_client(GetState, 'diffuser_planner/get_state'), GetState.Request()).current_state
    assert state.id == State.PRIMARY_STATE_ACTIVE
    session.until(lambda: any(s.reason == PlannerStats.OK and s.goal_id == 'goal-1' for s in stats), 'plans for the goal')
    first = joints[0].position
    session.until(lambda: max(abs(a - b) for a, b in zip(first, joints[-1].position)) > 0.1, 'the arm to move')
