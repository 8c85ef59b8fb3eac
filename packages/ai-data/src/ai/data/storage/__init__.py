"""How samples lie: in memory, in memory-mapped files, in the tables of other libraries."""
