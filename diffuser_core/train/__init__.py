"""Training: configuration and the trainer."""
