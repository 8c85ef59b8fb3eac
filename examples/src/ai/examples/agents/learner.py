"""An agent that learns: its model, its data, its loss, put together by each example from its options."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ai.data import Datagen, ReplayBuffer
from ai.data.datagen import DatagenLoader
from ai.data.generation.passes import PassesLoader
from ai.examples.agents.config import ReplayConfig
from ai.examples.agents.noted import Noted
from ai.game import Rollouts
from ai.game.environments.acting import Act

SUMMED = ("reward", "discount", "truncated", "version")
"""What DQN's and SAC's losses need not be drawn beside the sums of n steps."""


@dataclass(frozen=True)
class Learner:
    """All that `RLTrainer` needs, and how the agent acts when it is measured."""

    model: nn.Module
    optimiser: Optimizer
    source: Noted
    loader: DatagenLoader | PassesLoader
    loss: Callable[..., Any]
    updates: int
    greedy: Act
    memory: tuple[int, ...] | None = None
    schedule: Callable[[int], float] | None = None


def replayed(config: ReplayConfig, rollouts: Rollouts, **how: Any) -> tuple[Noted, DatagenLoader]:
    """Returns rollouts that are noted, and draws of them; `how` is the buffer's, beside what the options say."""
    source = Noted(rollouts)
    buffer = ReplayBuffer(config.buffer, n_step=config.n_step, gamma=config.gamma, seed=config.seed, **how)
    loader = Datagen(source).loader(
        config.batch_size,
        config.device,
        n_workers=0,
        buffer=buffer,
        replay_ratio=config.replay_ratio,
        min_steps=config.min_steps,
        seed=config.seed,
    )
    return source, loader


def falling(updates: int, every: int = 1) -> Callable[[int], float]:
    """Returns what is left of a run at an update, from 1 to 0, changing at every so many.

    >>> [falling(4, every=2)(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.0]
    """
    return lambda step: 1 - step // every * every / updates
