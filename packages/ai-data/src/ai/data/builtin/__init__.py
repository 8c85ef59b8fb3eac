"""Datasets by name, from files that are downloaded where they are missing."""
