"""Folders of image files: which count, what they are labelled, and their pixels, decoded once."""
