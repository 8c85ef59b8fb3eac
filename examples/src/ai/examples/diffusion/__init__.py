"""Diffusion: points and images out of noise, by predicting clean data from noisy data at every noise level."""

from ai.examples.diffusion.config import Config
from ai.examples.diffusion.exact import GaussianMixture
from ai.examples.diffusion.main import run
from ai.examples.diffusion.model import MLP, UNet

__all__ = ["MLP", "Config", "GaussianMixture", "UNet", "run"]
