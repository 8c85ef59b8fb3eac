"""StyleGAN2: style-based generation of images, with its regularisers, its truncation and its style mixing."""

from ai.examples.stylegan2.checkpoint import from_published
from ai.examples.stylegan2.config import Config
from ai.examples.stylegan2.loss import StyleGAN2Loss
from ai.examples.stylegan2.main import run
from ai.examples.stylegan2.model import Discriminator, Generator

__all__ = ["Config", "Discriminator", "Generator", "StyleGAN2Loss", "from_published", "run"]
