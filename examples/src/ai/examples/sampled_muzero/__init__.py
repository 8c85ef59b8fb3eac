"""Sampled MuZero: a search among movements that the policy proposes, in a model that was learned."""

from ai.examples.sampled_muzero.main import Config, run

__all__ = ["Config", "run"]
