"""Robots that are simulators: nodes with the topics of a robot, and physics behind them."""
