"""Several processes at one model, imported for `torchrun` alone."""
