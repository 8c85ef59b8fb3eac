"""Worker processes: how they start, talk, end, and get their code."""
