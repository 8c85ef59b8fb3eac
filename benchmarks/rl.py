"""How fast and in how many steps do PPO, DQN and SAC learn, beside Stable-Baselines3 on the same settings?

    python benchmarks/rl.py [returns] [step] [ppo] [dqn] [sac] [--seeds 0 1 2] [--steps 100000]

It needs stable-baselines3, unless `--ours-only`. Peers alternate in one process, one torch thread; rates are steps of
the environment per second of this process's CPU time, learning included; solved is the number of steps after which 20
training episodes in a row had the wanted mean.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from ai.data import lambda_returns, vtrace_returns
from ai.data.episodes.returns import n_step_rewards
from ai.examples import dqn, ppo, sac
from ai.game import CartPole, GameEnvironments, GymnasiumEnvironments
from ai.train import HookInterface, RLTrainer

EXAMPLES: dict[str, Any] = {"ppo": ppo, "dqn": dqn, "sac": sac}
PRESETS = {"ppo": "cartpole", "dqn": "cartpole", "sac": "pendulum"}
STEPS = {"ppo": 100_000, "dqn": 100_000, "sac": 10_000}
GOALS = {"ppo": 475, "dqn": 475, "sac": -200}
Outcome = tuple[float, float, float]  # steps a second, steps until solved, mean of the last 20 episodes


class Silent(HookInterface):
    """Logs nothing."""

    def wants_log(self, step: int) -> bool:
        """Never."""
        return False


def ours(name: str, seed: int, steps: int) -> Outcome:
    """The example's agent, with its settings."""
    example = EXAMPLES[name].main
    agent = example.learner(replace(example.PRESETS[PRESETS[name]], seed=seed, total_steps=steps))
    torch.manual_seed(seed)
    began = time.process_time()
    RLTrainer(agent.loss, agent.loader, push_interval=None).train(
        agent.model, agent.optimiser, Silent(), steplimit=agent.updates, schedule=agent.schedule
    )
    seconds = time.process_time() - began
    last = agent.source.episodes[-20:, 1]
    return agent.source.source.n_steps / seconds, agent.source.solved_at(GOALS[name]), float(last.mean())


def theirs(name: str, seed: int, steps: int) -> Outcome:
    """Stable-Baselines3 with the same settings."""
    import stable_baselines3 as sb3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Note(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[int] = []
            self.returns: list[float] = []

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    self.returns.append(info["episode"]["r"])
                    self.steps.append(self.num_timesteps)
            return True

    note, goal = Note(), GOALS[name]
    learner: Any
    if name == "ppo":
        c = ppo.main.PRESETS["cartpole"]
        learner = sb3.PPO(
            "MlpPolicy", make_vec_env(c.env, c.num_envs, seed=seed), n_steps=c.steps,
            batch_size=c.num_envs * c.steps, n_epochs=c.passes, gamma=c.gamma, gae_lambda=c.lam, ent_coef=0.0,
            learning_rate=lambda p: p * c.learning_rate,
            clip_range=lambda p: p * c.clip, device="cpu", seed=seed,
        )  # fmt: skip
    elif name == "dqn":
        d = dqn.main.PRESETS["cartpole"]
        # Its loss is Huber's with a line from 1 on: rewards of a thousandth make it the square that ours is.
        smaller = {"wrapper_class": gym.wrappers.TransformReward, "wrapper_kwargs": {"func": lambda r: r / d.huber}}
        learner = sb3.DQN(
            "MlpPolicy", make_vec_env(d.env, d.num_envs, seed=seed, **smaller), n_steps=d.n_step,
            learning_rate=(lambda left: left * d.learning_rate) if d.anneal else d.learning_rate,
            batch_size=d.batch_size, buffer_size=d.buffer, learning_starts=d.min_steps, gamma=d.gamma,
            target_update_interval=round(d.follow_every * d.batch_size / d.replay_ratio), train_freq=d.steps,
            gradient_steps=int(d.steps * d.num_envs * d.replay_ratio / d.batch_size),
            exploration_fraction=d.explore_steps / steps, exploration_final_eps=d.explore_last,
            max_grad_norm=d.clip_norm or 1e9, policy_kwargs={"net_arch": [d.dim, d.dim]}, device="cpu", seed=seed,
        )  # fmt: skip
    else:
        s = sac.main.PRESETS["pendulum"]
        learner = sb3.SAC(
            "MlpPolicy", make_vec_env(s.env, 1, seed=seed), learning_rate=s.learning_rate, gamma=s.gamma,
            buffer_size=s.buffer, learning_starts=s.min_steps, batch_size=s.batch_size, device="cpu", seed=seed,
        )  # fmt: skip
    began = time.process_time()
    learner.learn(steps, callback=note)
    seconds = time.process_time() - began
    means = np.convolve(note.returns, np.full(20, 0.05), "valid") if len(note.returns) >= 20 else np.empty(0)
    reached = np.flatnonzero(means >= goal - 1e-9)
    solved = float(note.steps[reached[0] + 19]) if len(reached) else float("nan")
    return learner.num_timesteps / seconds, solved, float(np.mean(note.returns[-20:]))


def stepping(n: int = 1500, num: int = 8) -> None:
    """Prints how fast environments alone step."""
    actions = np.random.default_rng(0).integers(0, 2, (n, num))

    def rate(env: Any) -> float:
        env.reset(seed=0)
        began = time.process_time()
        for action in actions:
            env.step(action)
        return n * num / (time.process_time() - began)

    makers: dict[str, Callable[[], Any]] = {
        "Gymnasium, make_vec sync": lambda: gym.make_vec("CartPole-v1", num, "sync"),
        "ours over Gymnasium": lambda: GymnasiumEnvironments("CartPole-v1", num),
        "ours over ai.game.CartPole": lambda: GameEnvironments(CartPole(), num),
    }
    found: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(10):
        for name in makers if turn % 2 == 0 else reversed(makers):
            found[name].append(rate(makers[name]()))
    theirs = np.array(next(iter(found.values())))
    for name, rates in found.items():
        print(
            f"stepping {num} CartPoles, {name:28} {np.median(rates):9,.0f} steps/s, "
            f"{np.median(np.array(rates) / theirs):.3f} x Gymnasium's in the same turn"
        )


def returns(n: int = 10_000) -> None:
    """Prints how many of `n` random episodes have a return that a slow loop does not find."""
    slow: Any = SimpleNamespace(**run_path(str(Path(__file__).parents[1] / "tests/data/episodes/test_returns.py")))

    def wrong(got: Any, want: Any, lengths: Any) -> int:
        off = (np.abs(np.atleast_2d(got) - np.atleast_2d(want)) > 1e-4).any(0)
        return int(np.count_nonzero(np.add.reduceat(off, np.cumsum(lengths) - lengths)))

    for two_players in (False, True):
        columns, lengths = slow.random_episodes(7, n, two_players)
        found = {}
        for lam in (0.0, 0.95, 1.0):
            got = lambda_returns(columns, lengths, 0.99, lam)
            found[f"λ {lam:g}"] = wrong(got, slow.slow_gae(columns, lengths, 0.99, lam), lengths)
        for n_step in (1, 3, 20):
            got = torch.stack(n_step_rewards(*slow.as_rows(columns, lengths), n_step, 0.99, int(lengths.sum())))
            found[f"{n_step}-step"] = wrong(got, slow.slow_n_step(columns, lengths, n_step, 0.99), lengths)
        got = vtrace_returns(columns, lengths, columns["ratio"], 0.99, lam=0.9, c_max=0.8)
        want = slow.slow_vtrace(columns, lengths, 0.99, 0.9, 1.0, 0.8)
        found["V-trace"] = wrong(got, want, lengths)
        players = "two players" if two_players else "one player"
        print(f"{n:,} episodes of {players}, wrong: {found}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["returns", "step", "ppo", "dqn", "sac"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--ours-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for what in options.what:
        if what in ("returns", "step"):
            returns() if what == "returns" else stepping()
            continue
        steps = options.steps or STEPS[what]
        for seed in options.seeds:
            peers: dict[str, Callable[[], Outcome]] = {"ours": lambda: ours(what, seed, steps)}  # noqa: B023
            if not options.ours_only:
                peers["Stable-Baselines3"] = lambda: theirs(what, seed, steps)  # noqa: B023
            for name in peers if seed % 2 == 0 else reversed(peers):
                rate, solved, last = peers[name]()
                print(
                    f"{what} {steps:,} steps, seed {seed}, {name:18} {rate:8,.0f} steps/s, solved at {solved:8,.0f}, "
                    f"last 20 episodes {last:7.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
