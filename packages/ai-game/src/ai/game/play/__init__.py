"""Players, matches and self-play."""
