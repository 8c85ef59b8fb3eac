"""Trainers, environments, hooks, optimisers and snapshots for PyTorch."""
