"""Batched tree search, and the evaluators it asks."""
