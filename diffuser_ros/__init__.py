"""The ROS 2 side of diffuser: converts messages, keeps time, keeps the robot safe."""
