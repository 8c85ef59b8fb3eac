"""Learns to act by PPO: from numbers, from frames, with a memory, or among the actions that may be taken.

Command: `ai-examples ppo cartpole`, or `python -m ai.examples.ppo --help` for presets and options.
"""

import copy
from dataclasses import dataclass, replace

import torch

from ai.data import Datagen
from ai.data.batch.device import checked_device
from ai.examples.agents.config import AgentConfig
from ai.examples.agents.learner import Learner, falling
from ai.examples.agents.noted import Noted
from ai.examples.agents.training import train
from ai.examples.agents.worlds import World, world
from ai.examples.cli import read_config
from ai.examples.ppo.model import Atari, Perceptrons, Recurrent
from ai.game import ByPolicy, Rollouts
from ai.train import PPO, opt


@dataclass(frozen=True)
class Config(AgentConfig):
    """What a run needs; every field is an option of the command line."""

    trial: str = "ppo"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    steps: int = 32
    """Of each environment in a rollout."""
    passes: int = 20
    """Times that a rollout is gone over."""
    batches: int = 1
    """Parts of a pass."""
    lam: float = 0.8
    """How far rewards are trusted before the value; see `ai.data.lambda_returns`."""
    clip: float = 0.2
    """How far the ratio of probabilities may pay."""
    anneal: bool = True
    """Whether learning rate and clip fall to 0 in a straight line."""
    entropy: float = 0.0
    """Weight of the policy's entropy."""
    value_weight: float = 0.5
    """Weight of the value's error."""
    clip_norm: float | None = 0.5
    """Largest norm of a gradient."""
    dim: int = 64
    """Width of the networks."""
    normalize: bool = False
    """Whether observations are scaled by what was seen so far."""
    log_std: float = 0.0
    """Where the spread of continuous actions begins."""
    sequence: int | None = None
    """None for a policy that sees the moment alone; else one with an LSTM, learnt in sequences of so many steps."""


PRESETS = {
    "tiny": Config(total_steps=512, num_envs=2, steps=32, passes=2, episodes=2, final_episodes=2, dim=8),
    "cartpole": Config(gamma=0.98, goal=475),
    "cartpole-hidden": Config(
        env="hidden:CartPole-v1", gamma=0.98, lam=0.9, goal=475, sequence=16, steps=128, passes=10, batches=4,
        total_steps=200_000,
    ),
    "acrobot": Config(
        env="Acrobot-v1", num_envs=16, steps=256, passes=4, batches=64, lam=0.94, learning_rate=3e-4, anneal=False,
        normalize=True, goal=-100, total_steps=200_000,
    ),
    "mountaincar": Config(
        env="held-8:MountainCarContinuous-v0", num_envs=16, steps=128, passes=10, batches=8, gamma=0.99, lam=0.95,
        learning_rate=1e-3, normalize=True, goal=90, total_steps=50_000,
    ),
    "lunarlander": Config(
        env="LunarLander-v3", num_envs=16, steps=512, passes=6, batches=64, gamma=0.999, lam=0.98, entropy=0.01,
        learning_rate=5e-4, normalize=True, goal=200, total_steps=600_000,
    ),
    "pong": Config(
        env="ALE/Pong-v5", steps=128, passes=4, batches=4, lam=0.95, learning_rate=2.5e-4, clip=0.1, entropy=0.01,
        goal=18, total_steps=10_000_000,
    ),
}  # fmt: skip
DESCRIPTIONS = {
    "tiny": "seconds; for tests",
    "cartpole": "half a minute; the longest episode from about 30,000 steps on",
    "cartpole-hidden": "minutes; without speeds, by an LSTM",
    "acrobot": "a minute",
    "mountaincar": "a minute; each action held for eight steps",
    "lunarlander": "three minutes; needs box2d; 257 after 600,000 steps",
    "pong": "hours; wants a GPU (--device cuda)",
}


def build(config: Config, env: World) -> Perceptrons | Recurrent | Atari:
    """Returns the model for what is seen and done in an environment."""
    shape, continuous = env.observation_shape, env.num_actions is None
    n_actions = env.action_shape[0] if env.num_actions is None else env.num_actions
    if config.sequence is not None:
        return Recurrent(shape, n_actions, continuous=continuous, dim=config.dim)
    if len(shape) == 3:
        return Atari(n_actions, frames=shape[0])
    return Perceptrons(
        shape, n_actions, continuous=continuous, dim=config.dim, normalize=config.normalize, log_std=config.log_std
    )


def learner(config: Config) -> Learner:
    """Returns the agent that the options describe."""
    device = checked_device(config.device)
    env = world(config.env, config.num_envs)
    model = build(config, env).init(seed=config.seed).to(device)
    memory = model.memory if isinstance(model, Recurrent) else None
    source = Noted(Rollouts(env, copy.deepcopy(model), steps=config.steps, memory=memory))
    loader = Datagen(source).passes(
        config.passes,
        config.device,
        batches=config.batches,
        gamma=config.gamma,
        lam=config.lam,
        sequence=config.sequence,
        seed=config.seed,
    )
    updates = max(1, config.total_steps // (config.num_envs * config.steps)) * loader.updates
    left = falling(updates, every=loader.updates) if config.anneal else None
    clip = config.clip if left is None else lambda step: config.clip * left(step)
    loss = PPO(clip=clip, value_weight=config.value_weight, entropy=config.entropy)
    optimiser = opt.adam(model, lr=config.learning_rate, eps=1e-5, clip_norm=config.clip_norm)
    return Learner(model, optimiser, source, loader, loss, updates, ByPolicy(greedy=True), memory, left)


def run(config: Config) -> dict[str, float]:
    """Trains and measures; returns what `ai.examples.agents.training.train` does."""
    return train(config, learner(config))


def reproduce(*, seed: int = 0) -> dict[str, float]:
    """Trains the `cartpole` preset; `return` should be at least 475, and `solved_at` below 100,000."""
    torch.set_num_threads(1)
    return run(replace(PRESETS["cartpole"], seed=seed, trial=f"reproduce/cartpole-ppo-{seed}"))


def reproduce_hidden(*, seed: int = 0) -> dict[str, float]:
    """Trains the `cartpole-hidden` preset."""
    torch.set_num_threads(1)
    return run(replace(PRESETS["cartpole-hidden"], seed=seed, trial=f"reproduce/cartpole-hidden-ppo-{seed}"))


def reproduce_lunarlander(*, seed: int = 0) -> dict[str, float]:
    """Trains the `lunarlander` preset; `return` should be at least 200."""
    torch.set_num_threads(1)
    return run(replace(PRESETS["lunarlander"], seed=seed, trial=f"reproduce/lunarlander-ppo-{seed}"))


def reproduce_pong(*, seed: int = 0, device: str = "cuda") -> dict[str, float]:
    """Trains the `pong` preset; `return` should be at least 18."""
    return run(replace(PRESETS["pong"], seed=seed, device=device, trial=f"reproduce/pong-ppo-{seed}"))


def main() -> None:
    """Runs the example with a typed command line."""
    torch.set_num_threads(1)
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
