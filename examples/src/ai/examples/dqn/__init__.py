"""DQN: the values of actions, learnt from what was done before, whoever did it."""

from ai.examples.dqn.main import Config, run
from ai.examples.dqn.model import Model

__all__ = ["Config", "Model", "run"]
