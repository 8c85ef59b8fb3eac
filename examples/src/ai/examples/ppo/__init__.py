"""PPO: a policy and a value learnt from what they did themselves, a few passes over each rollout."""

from ai.examples.ppo.main import Config, run
from ai.examples.ppo.model import Atari, Perceptrons, Recurrent

__all__ = ["Atari", "Config", "Perceptrons", "Recurrent", "run"]
