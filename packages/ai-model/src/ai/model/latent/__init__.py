"""Bottlenecks of autoencoders, whose codes another model can learn."""
