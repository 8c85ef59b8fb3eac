"""Batch-first games and batched tree search over arrays."""
