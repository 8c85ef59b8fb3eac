"""MNIST classification: the main job of the library from end to end, on a laptop in a minute."""

from ai.examples.mnist.main import Config, run
from ai.examples.mnist.model import ConvNet, Model

__all__ = ["Config", "ConvNet", "Model", "run"]
