"""How samples lie: in memory, in memory-mapped files, as images on disk."""
