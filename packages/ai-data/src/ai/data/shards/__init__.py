"""Samples in many files, read one after another: for what is larger than memory, or lies elsewhere."""
