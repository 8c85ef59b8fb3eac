"""Blocks that a noise level, a class or another vector steers."""
