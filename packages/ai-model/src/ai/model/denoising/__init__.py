"""Noise and what a network is told of it: preconditionings, and draws that rows do not share."""
