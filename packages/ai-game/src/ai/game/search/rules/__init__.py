"""What a search is given to choose by."""
