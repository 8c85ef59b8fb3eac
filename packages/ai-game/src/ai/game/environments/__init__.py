"""Environments in lock-step, and what acts in them: a source of data for every method of reinforcement learning."""
