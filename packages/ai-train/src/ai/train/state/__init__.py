"""What of a run is taken and put back: random states, positions in data, optimisers, what a model leaves."""
