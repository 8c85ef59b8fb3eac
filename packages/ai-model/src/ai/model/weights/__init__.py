"""Weights by name and by rule: what computes them, who has written them, where those of a file belong."""
