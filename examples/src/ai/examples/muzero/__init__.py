"""MuZero: a search inside a model of the game that was learned with the policy and the value."""

from ai.examples.muzero.main import Config, run
from ai.examples.muzero.model import Model

__all__ = ["Config", "Model", "run"]
