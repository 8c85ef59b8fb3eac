"""Trials of a search on other machines, which share no folder with it."""
