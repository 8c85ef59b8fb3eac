"""Vision Transformer on digits or, by the DeiT recipe, on CIFAR; draws where it looks."""

from ai.examples.vit.main import Config, run
from ai.examples.vit.model import Model

__all__ = ["Config", "Model", "run"]
