"""How fast and in how many steps do PPO, DQN and SAC learn, beside Stable-Baselines3 on the same settings?

    python benchmarks/rl.py [returns] [step] [ppo] [dqn] [sac] [--seeds 0 1 2] [--steps 100000] [--rounds 10]

Speed alone, in one to three minutes each: `ppo --seeds 1 --steps 25000`, `dqn --seeds 1 --steps 25000`,
`sac --seeds 1 --steps 5000`.

It needs stable-baselines3, unless `--ours-only`. Beside it DQN learns without its double estimate, which
Stable-Baselines3 has not, unless `--double`. The peers learn side by side in one process, one torch thread: each
run is cut into rounds, in which first one goes on, then the other. Rates are steps of the environment per second,
learning included, by the clock and by this process's CPU time; solved is the number of steps after which 20 training
episodes in a row had the wanted mean.
"""

import argparse
import random
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
from ai.data.generation.passes import PassesLoader
from ai.examples import dqn, ppo, sac
from ai.game import CartPole, GameEnvironments, GymnasiumEnvironments
from ai.train import HookInterface, RLTrainer

EXAMPLES: dict[str, Any] = {"ppo": ppo, "dqn": dqn, "sac": sac}
PRESETS = {"ppo": "cartpole", "dqn": "cartpole", "sac": "pendulum"}
STEPS = {"ppo": 100_000, "dqn": 100_000, "sac": 10_000}
GOALS = {"ppo": 475, "dqn": 475, "sac": -200}


class Silent(HookInterface):
    """Logs nothing."""

    def wants_log(self, step: int) -> bool:
        """Never."""
        return False


class Clock:
    """Rates of one peer's rounds."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []  # steps a second by the clock, and of CPU time

    def start(self) -> None:
        """Begins a round."""
        self._began = time.perf_counter(), time.process_time()

    def stop(self, steps: int) -> None:
        """Ends a round of so many steps."""
        wall, cpu = self._began
        self.rates.append((steps / (time.perf_counter() - wall), steps / (time.process_time() - cpu)))


class Ours:
    """The example's agent, with its settings, learning a stretch at a time."""

    def __init__(self, name: str, seed: int, steps: int, **settings: Any) -> None:
        example = EXAMPLES[name].main
        self.agent = example.learner(replace(example.PRESETS[PRESETS[name]], seed=seed, total_steps=steps, **settings))
        self.whole = self.agent.loader.updates if isinstance(self.agent.loader, PassesLoader) else 1
        self.clock, self.at, self.n_steps = Clock(), 0, 0
        torch.manual_seed(seed)
        self.random = global_random()

    def until(self, share: float) -> None:
        """Goes on until that share of all updates."""
        agent, before = self.agent, global_random(self.random)
        until = agent.updates if share == 1 else round(agent.updates * share / self.whole) * self.whole
        self.clock.start()
        self.at = RLTrainer(agent.loss, agent.loader, push_interval=None).train(
            agent.model, agent.optimiser, Silent(), step=self.at, steplimit=until, schedule=agent.schedule
        )
        self.clock.stop(agent.source.source.n_steps - self.n_steps)
        self.n_steps = agent.source.source.n_steps
        self.random = global_random(before)


def global_random(new: Any = None) -> Any:
    """Returns the states that a peer draws from, having put back others, so that neither draws from the other's."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    if new is not None:
        torch.set_rng_state(new[0])
        np.random.set_state(new[1])
        random.setstate(new[2])
    return states


def compare(name: str, seed: int, steps: int, rounds: int, alone: bool, double: bool) -> tuple[Clock, Clock]:
    """Lets both learn, by turns, prints what they came to, and returns the rates of their rounds."""
    settings = {"double": double} if name == "dqn" else {}
    ours, clock, goal = Ours(name, seed, steps, **settings), Clock(), GOALS[name]

    def told(who: str, rates: Clock, solved: float, last: float) -> None:
        wall, cpu = np.median(rates.rates, axis=0)
        print(
            f"{name} {steps:,} steps, seed {seed}, {who:18} {wall:8,.0f} steps/s, {cpu:8,.0f} of CPU, "
            f"solved at {solved:8,.0f}, last 20 episodes {last:7.1f}",
            flush=True,
        )

    if alone:
        for turn in range(1, rounds + 1):
            ours.until(turn / rounds)
    else:
        solved, last = theirs(name, seed, steps, rounds, clock, ours.until)
        told("Stable-Baselines3", clock, solved, last)
    told("ours", ours.clock, ours.agent.source.solved_at(goal), float(ours.agent.source.episodes[-20:, 1].mean()))
    return ours.clock, clock


def theirs(
    name: str, seed: int, steps: int, rounds: int, clock: Clock, then: Callable[[float], None]
) -> tuple[float, float]:
    """Stable-Baselines3 with the same settings, which lets another go on after each of its rounds.

    Returns:
        The steps until solved, and the mean of the last 20 episodes.
    """
    import stable_baselines3 as sb3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Note(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[int] = []
            self.returns: list[float] = []
            self.turns = self.noted = 0

        def _on_rollout_start(self) -> None:  # what was acted before is learnt
            if self.num_timesteps >= (self.turns + 1) * steps / rounds and self.turns < rounds - 1:
                self.turn()

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    self.returns.append(info["episode"]["r"])
                    self.steps.append(self.num_timesteps)
            return True

        def turn(self) -> None:
            clock.stop(self.num_timesteps - self.noted)
            self.turns, self.noted = self.turns + 1, self.num_timesteps
            then(self.turns / rounds)
            clock.start()

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
    clock.start()
    learner.learn(steps, callback=note)
    note.turns = rounds - 1
    note.turn()
    means = np.convolve(note.returns, np.full(20, 0.05), "valid") if len(note.returns) >= 20 else np.empty(0)
    reached = np.flatnonzero(means >= goal - 1e-9)
    solved = float(note.steps[reached[0] + 19]) if len(reached) else float("nan")
    return solved, float(np.mean(note.returns[-20:]))


def summary(name: str, ours: list[tuple[float, float]], peers: list[tuple[float, float]]) -> None:
    """Prints the medians of all rounds, and those of the ratios within a round."""
    print(f"{name}, medians of {len(ours)} rounds       steps/s    of CPU")
    for who, rates in (("ours", ours), ("Stable-Baselines3", peers), ("ratio", np.divide(ours, peers))):
        wall, cpu = np.median(rates, axis=0)
        print(f"  {who:28}{wall:10,.2f}{cpu:10,.2f}" if who == "ratio" else f"  {who:28}{wall:10,.0f}{cpu:10,.0f}")


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
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--double", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for what in options.what:
        if what in ("returns", "step"):
            returns() if what == "returns" else stepping()
            continue
        steps = options.steps or STEPS[what]
        rates: tuple[list[Any], list[Any]] = ([], [])
        for seed in options.seeds:
            alone, double = options.ours_only, options.ours_only or options.double
            for found, clock in zip(rates, compare(what, seed, steps, options.rounds, alone, double), strict=True):
                found += clock.rates
        if not options.ours_only:
            summary(what, *rates)


if __name__ == "__main__":
    main()
