"""Trials, experiments and studies: recorded, comparable, resumable, from plain files."""
