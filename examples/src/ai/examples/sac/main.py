"""Learns continuous actions by soft actor-critic: one model, one loss, one optimiser.

Command: `ai-examples sac pendulum`, or `python -m ai.examples.sac --help` for presets and options.
"""

import copy
from dataclasses import dataclass, replace

import torch

from ai.data.batch.device import checked_device
from ai.examples.agents.config import ReplayConfig
from ai.examples.agents.learner import SUMMED, Learner, falling, replayed
from ai.examples.agents.training import train
from ai.examples.agents.worlds import world
from ai.examples.cli import read_config
from ai.examples.sac.model import Model
from ai.game import ByActor, Rollouts
from ai.train import SAC, opt


@dataclass(frozen=True)
class Config(ReplayConfig):
    """What a run needs; every field is an option of the command line."""

    env: str = "Pendulum-v1"
    """A name of Gymnasium."""
    trial: str = "sac"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    num_envs: int = 1
    """Environments side by side."""
    total_steps: int = 10_000
    """Steps of all environments together."""
    batch_size: int = 256
    """Steps in a batch."""
    replay_ratio: float = 256.0
    """How often a step is learnt from on average; batch_size for an update a step."""
    min_steps: int = 100
    """Steps of random actions at first, before the first update."""
    buffer: int = 1_000_000
    """Rows kept: one a step, and one more wherever a rollout or an episode ends."""
    tau: float = 0.005
    """Share of the way that the lagged critics follow at each update."""
    entropy: float | None = None
    """What the policy's entropy is held at; None for minus the number of axes."""
    dim: int = 256
    """Width of the networks."""


PRESETS = {
    "tiny": Config(
        total_steps=500, batch_size=16, replay_ratio=4.0, buffer=1000, dim=8, num_envs=2, episodes=2, final_episodes=2
    ),
    "pendulum": Config(goal=-200, buffer=50_000),
}
DESCRIPTIONS = {"tiny": "seconds; for tests", "pendulum": "minutes"}


def learner(config: Config) -> Learner:
    """Returns the agent that the options describe."""
    device = checked_device(config.device)
    env = world(config.env, config.num_envs)
    if env.num_actions is not None or len(env.observation_shape) != 1:
        raise ValueError(f"env must have continuous actions and show a few numbers, {config.env} has not")
    model = Model(env.observation_shape[0], env.action_shape[0], dim=config.dim)
    model.init(seed=config.seed).to(device)
    act = ByActor(random_steps=config.min_steps)
    rollouts = Rollouts(env, copy.deepcopy(model), act, 1, lookahead=config.n_step - 1)
    source, loader = replayed(config, rollouts, omit_keys=SUMMED)
    loss = SAC(tau=config.tau, entropy=config.entropy)
    optimiser = opt.adam(model, lr=config.learning_rate, clip_norm=config.clip_norm)
    schedule = falling(config.updates) if config.anneal else None
    return Learner(model, optimiser, source, loader, loss, config.updates, ByActor(greedy=True), schedule=schedule)


def run(config: Config) -> dict[str, float]:
    """Trains and measures; returns what `ai.examples.agents.training.train` does."""
    return train(config, learner(config))


def reproduce(*, seed: int = 0) -> dict[str, float]:
    """Trains the `pendulum` preset; `return` should be at least -200."""
    torch.set_num_threads(1)
    return run(replace(PRESETS["pendulum"], seed=seed, trial=f"reproduce/pendulum-sac-{seed}"))


def main() -> None:
    """Runs the example with a typed command line."""
    torch.set_num_threads(1)
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
