"""Batches made ahead of use, from samples by index or from a stream."""
