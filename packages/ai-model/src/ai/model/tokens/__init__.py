"""What attention knows of tokens beside their numbers: where they stand, and which it has seen."""
