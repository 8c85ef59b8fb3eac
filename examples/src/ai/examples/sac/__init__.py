"""SAC: continuous actions from a policy that is held at a wanted entropy."""

from ai.examples.sac.main import Config, run
from ai.examples.sac.model import Model

__all__ = ["Config", "Model", "run"]
