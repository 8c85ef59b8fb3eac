"""Learns the values of actions by DQN: double, n-step, and as options duelling, prioritised, by quantiles or chances.

Command: `ai-examples dqn cartpole`, or `python -m ai.examples.dqn --help` for presets and options.
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
from ai.examples.dqn.model import Model
from ai.game import EpsilonGreedy, Rollouts
from ai.train import DQN, opt


@dataclass(frozen=True)
class Config(ReplayConfig):
    """What a run needs; every field is an option of the command line."""

    trial: str = "dqn"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    steps: int = 32
    """Of each environment between two rounds of learning."""
    double: bool = True
    """Whether the network chooses what its copy judges."""
    duelling: bool = False
    """Whether value and advantages have heads of their own."""
    quantiles: int | None = None
    """None for values, Q for as many quantiles of each."""
    atoms: int | None = None
    """None for values, S for the chances of as many returns along the support."""
    support: tuple[float, float] = (-10.0, 10.0)
    """The least and the greatest return that atoms tell apart."""
    alpha: float | None = None
    """Exponent of prioritised replay; None draws uniformly."""
    follow_every: int = 100
    """Updates between two copies to the lagged network."""
    huber: float = 1.0
    """Where the error's square becomes a line; beyond all errors, the square alone."""
    explore_steps: int = 16_000
    """Steps over which random actions become rare."""
    explore_last: float = 0.04
    """Share of random actions at last."""
    dim: int = 256
    """Width of the network."""
    clip_norm: float | None = 10.0
    """Largest norm of a gradient."""


PRESETS = {
    "tiny": Config(total_steps=512, num_envs=2, steps=8, min_steps=64, dim=8, buffer=500, episodes=2, final_episodes=2),
    "cartpole": Config(
        goal=475, steps=4, replay_ratio=16.0, n_step=5, follow_every=250, explore_steps=10_000,
        dim=64, huber=1000.0, clip_norm=None,
    ),
    "pong": Config(
        env="ALE/Pong-v5", total_steps=10_000_000, steps=4, batch_size=32, replay_ratio=8.0, min_steps=50_000,
        buffer=1_000_000, n_step=3, duelling=True, follow_every=1000, explore_steps=250_000, explore_last=0.01,
        learning_rate=1e-4, goal=18,
    ),
}  # fmt: skip
DESCRIPTIONS = {
    "tiny": "seconds; for tests",
    "cartpole": "a minute or two; the longest episode after 40,000 to 90,000 steps",
    "pong": "hours; wants a GPU (--device cuda) and 14 GB for the frames",
}
BEST = EpsilonGreedy(steps=1, first=0.0, last=0.0)  # for measuring: among what is legal, and without chance


def learner(config: Config) -> Learner:
    """Returns the agent that the options describe."""
    device = checked_device(config.device)
    env = world(config.env, config.num_envs)
    if env.num_actions is None:
        raise ValueError(f"env must have discrete actions, {config.env} has not")
    frames = len(env.observation_shape) == 3
    model = Model(
        env.observation_shape, env.num_actions,
        dim=config.dim, duelling=config.duelling, quantiles=config.quantiles,
        atoms=config.atoms, support=config.support,
    )  # fmt: skip
    model.init(seed=config.seed).to(device)
    stack = env.observation_shape[0] if frames else 1
    rollouts = Rollouts(
        env,
        copy.deepcopy(model),
        EpsilonGreedy(steps=config.explore_steps, last=config.explore_last),
        config.steps,
        context=stack - 1,
        lookahead=config.n_step - 1,
        newest_frame=frames,
    )
    source, loader = replayed(
        config, rollouts, frame_stack=stack, alpha=config.alpha, next_keys=("obs", "legal"), omit_keys=SUMMED
    )
    loss = DQN(
        follow_every=config.follow_every,
        double=config.double,
        huber=config.huber,
        support=None if config.atoms is None else config.support,
        priorities=None if config.alpha is None else loader.update_priorities,
    )
    optimiser = opt.adam(model, lr=config.learning_rate, clip_norm=config.clip_norm)
    schedule = falling(config.updates) if config.anneal else None
    return Learner(model, optimiser, source, loader, loss, config.updates, BEST, schedule=schedule)


def run(config: Config) -> dict[str, float]:
    """Trains and measures; returns what `ai.examples.agents.training.train` does."""
    return train(config, learner(config))


def reproduce(*, seed: int = 0) -> dict[str, float]:
    """Trains the `cartpole` preset; `return` should be at least 475."""
    torch.set_num_threads(1)
    return run(replace(PRESETS["cartpole"], seed=seed, trial=f"reproduce/cartpole-dqn-{seed}"))


def main() -> None:
    """Runs the example with a typed command line."""
    torch.set_num_threads(1)
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
