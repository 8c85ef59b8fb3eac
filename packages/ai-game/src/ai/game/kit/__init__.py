"""Writing a game: rules for one row, the sides of a board, and the kit that looks for its faults."""
