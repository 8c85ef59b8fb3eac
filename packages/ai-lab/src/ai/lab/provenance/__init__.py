"""What a run was made from: its machine, its packages, its code; and that code checked out again."""
