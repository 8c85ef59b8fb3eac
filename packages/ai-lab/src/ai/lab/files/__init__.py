"""The files of a record: who owns them, how they are written and read."""
