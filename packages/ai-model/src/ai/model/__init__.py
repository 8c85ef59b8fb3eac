"""Lowercase functions that return torch modules, checked against references."""
