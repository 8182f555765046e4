"""Data sets that planners are trained on."""
