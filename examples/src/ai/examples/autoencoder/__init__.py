"""An image autoencoder: reconstructions, a walk through its code, and three losses compared in a study."""

from ai.examples.autoencoder.main import Config, run
from ai.examples.autoencoder.model import ImgAutoencoder

__all__ = ["Config", "ImgAutoencoder", "run"]
