"""Replies in parts: what a model yields, sent while it makes the rest."""
