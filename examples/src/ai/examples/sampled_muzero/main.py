"""Learns continuous actions by a search in a learned model, among actions that its policy proposes.

Command: `ai-examples sampled_muzero point-mass`, or `python -m ai.examples.sampled_muzero --help` for presets and
options.

Source: Hubert et al. 2021, "Learning and planning in complex action spaces".
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ai.data.batch.device import checked_device
from ai.examples.agents.config import ReplayConfig
from ai.examples.agents.learner import Learner, falling, replayed
from ai.examples.agents.point_mass import optimal
from ai.examples.agents.training import train
from ai.examples.agents.worlds import world
from ai.examples.cli import read_config
from ai.examples.muzero.model import Model
from ai.game import ByPolicy, BySearch, LearnedModel, Rollouts, Search, evaluate
from ai.game.environments.acting import Act
from ai.train import MuZero, opt


@dataclass(frozen=True)
class Config(ReplayConfig):
    """What a run needs; every field is an option of the command line."""

    env: str = "point-mass"
    """`point-mass`, whose optimum is known, or a name of Gymnasium."""
    trial: str = "sampled-muzero"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    num_envs: int = 32
    """Environments side by side."""
    total_steps: int = 15_000
    """Steps of all environments together."""
    gamma: float = 1.0
    """What a later reward is worth a step earlier."""
    batch_size: int = 128
    """Steps in a batch."""
    replay_ratio: float = 16.0
    """How often a step is learnt from on average."""
    buffer: int = 2000
    """Rows kept, few: what a search preferred among an old policy's wide samples holds the new one wide."""
    min_steps: int = 640
    """Steps before the first update."""
    samples: int = 12
    """Actions that the policy proposes at a position."""
    simulations: int = 24
    """Of the search, for each action taken."""
    rollout: int = 10
    """Steps that all environments take in a row."""
    unroll: int = 3
    """Steps that the model is unrolled in training."""
    n_step: int = 3
    """Rewards before the search's value takes over."""
    support_size: int = 5
    """Of values and rewards, after the invertible transform."""
    entropy_weight: float = 0.005
    """What the policy's entropy is paid."""
    consistency_weight: float = 1.0
    """Weight of the distance between states foreseen and states seen."""
    dim: int = 128
    """Width of the networks."""
    dim_state: int = 32
    """Size of the embedding."""
    anneal: bool = True
    """Whether the learning rate falls to 0 in a straight line."""
    clip_norm: float | None = 5.0
    """Largest norm of a gradient."""


PRESETS = {
    "tiny": Config(
        total_steps=120,
        num_envs=4,
        batch_size=8,
        replay_ratio=2.0,
        min_steps=40,
        buffer=1000,
        samples=3,
        simulations=4,
        dim=8,
        dim_state=8,
        episodes=2,
        final_episodes=2,
    ),
    "point-mass": Config(),
    "pendulum": Config(
        env="Pendulum-v1",
        total_steps=60_000,
        gamma=0.99,
        goal=-200,
        n_step=5,
        unroll=5,
        support_size=45,
        rollout=20,
        buffer=100_000,
    ),
}
DESCRIPTIONS = {
    "tiny": "seconds; for tests",
    "point-mass": "minutes; beside the optimum",
    "pendulum": "Gymnasium's, not tuned",
}


def learner(config: Config) -> Learner:
    """Returns the agent that the options describe."""
    device = checked_device(config.device)
    env = world(config.env, config.num_envs)
    if env.num_actions is not None or len(env.action_shape) != 1:
        raise ValueError(f"env must have continuous actions along one axis of numbers, {config.env} has not")
    model = Model(
        env.observation_shape,
        env.action_shape[0],
        continuous=True,
        discount=config.gamma,
        dim=config.dim,
        dim_state=config.dim_state,
        support_size=config.support_size,
    )
    model.init(seed=config.seed).to(device)
    ahead = max(config.unroll, config.n_step - 1)
    act = BySearch(search(config))
    rollouts = Rollouts(env, copy.deepcopy(model), act, config.rollout, lookahead=ahead)
    source, loader = replayed(config, rollouts, unroll=config.unroll)
    loss = MuZero(
        model.support,
        entropy_weight=config.entropy_weight,
        obs_unrolled=True,
        consistency_weight=config.consistency_weight,
    )
    optimiser = opt.adamw(model, lr=config.learning_rate, clip_norm=config.clip_norm)
    schedule = falling(config.updates) if config.anneal else None
    greedy = BySearch(search(config), temperature=0.0)
    return Learner(model, optimiser, source, loader, loss, config.updates, greedy, schedule=schedule)


def search(config: Config) -> Callable[[LearnedModel], Search]:
    """Returns what makes the search for a model."""
    return lambda model: Search.sampled(model, samples=config.samples, simulations=config.simulations)


def run(config: Config) -> dict[str, float]:
    """Trains and measures; returns what `ai.examples.agents.training.train` does.

    Besides, the mean return of the policy alone (`return_policy`), and in `point-mass` the most that the same episodes
    allow (`return_optimal`).
    """
    agent = learner(config)
    found = train(config, agent)
    found["return_policy"] = measured(config, agent.model, ByPolicy(greedy=True))
    if config.env == "point-mass":
        found["return_optimal"] = measured(config, agent.model, optimal)
    print(", ".join(f"{name} {value:g}" for name, value in found.items() if name.startswith("return")))
    return found


def measured(config: Config, model: nn.Module, act: Act) -> float:
    """Returns the mean return by another way to act, over the episodes that `train` measures last."""
    env = world(config.env, min(20, config.final_episodes))
    return float(evaluate(env, model, act, episodes=config.final_episodes, seed=2_000_003).mean())


def reproduce(*, seed: int = 0) -> dict[str, float]:
    """Trains the `point-mass` preset; `return` should come near `return_optimal`, which nothing can pass."""
    torch.set_num_threads(1)
    return run(replace(PRESETS["point-mass"], seed=seed, trial=f"reproduce/point-mass-{seed}"))


def main() -> None:
    """Runs the example with a typed command line."""
    torch.set_num_threads(1)
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
