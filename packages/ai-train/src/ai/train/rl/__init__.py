"""Environments of `RLTrainer`: policies and values learnt from what the model itself played."""
