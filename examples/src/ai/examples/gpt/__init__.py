"""A character-level GPT on text that comes with Python, measured in bits per character against a compressor."""

from ai.examples.gpt.main import Config, run
from ai.examples.gpt.model import Model

__all__ = ["Config", "Model", "run"]
