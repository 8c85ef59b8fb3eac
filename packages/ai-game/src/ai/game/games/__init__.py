"""Board games, puzzles and cart-pole, each a module."""
