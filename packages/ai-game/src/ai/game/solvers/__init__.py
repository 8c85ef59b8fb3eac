"""Perfect play, as the truth to measure by."""
