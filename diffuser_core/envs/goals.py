"""What is wrong with a goal."""

__all__ = ['GoalError']


class GoalError(ValueError):
    """A goal that cannot be taken; the message says why."""
