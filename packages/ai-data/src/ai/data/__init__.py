"""Datasets, generators and loaders that are fast and exactly resumable."""
