"""Trials of a search on other machines, which need share no folder with it."""
