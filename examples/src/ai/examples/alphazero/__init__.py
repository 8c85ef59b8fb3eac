"""AlphaZero: a network that learns a game from nothing but playing it against itself, proved against perfect play."""

from ai.examples.alphazero.main import Config, run
from ai.examples.alphazero.model import MLP, Model, ResNet

__all__ = ["MLP", "Config", "Model", "ResNet", "run"]
