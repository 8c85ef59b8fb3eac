"""Board games, puzzles and environments, each a module."""
