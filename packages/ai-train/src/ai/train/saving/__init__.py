"""A snapshot on disk: its files, how they are written, how a run comes back."""
