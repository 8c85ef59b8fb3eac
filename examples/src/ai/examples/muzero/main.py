"""Learns a game together with a model of its rules, and plays by searching in that model alone.

Command: `ai-examples muzero tictactoe`, or `python -m ai.examples.muzero --help` for presets and options.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ai.data import Datagen, ReplayBuffer
from ai.data.batch.device import checked_device
from ai.data.datagen import DatagenLoader
from ai.examples.alphazero.truth import lost_lines, wrong_moves
from ai.examples.cli import read_config
from ai.examples.muzero.asked import Asked, Requests
from ai.examples.muzero.luck import LuckModel
from ai.examples.muzero.model import Model
from ai.examples.muzero.reanalyse import Reanalyse
from ai.examples.selflearn import LearnConfig, asked, learn, make_engine, make_game, report
from ai.game import (
    Gumbel,
    Hog,
    HogSolver,
    Play,
    Puct,
    Search,
    SelfPlay,
    Solution,
    TicTacToe,
    match,
    random_player,
    solve,
)
from ai.game.protocol import Game, State
from ai.train import MuZero

COMMITMENT = 0.1  # more of it, and the codes are settled before anything is known of luck


@dataclass(frozen=True)
class Config(LearnConfig):
    """What a run needs; every field is an option of the command line."""

    game: str = "tictactoe"
    """What to learn: tictactoe, cartpole (Gymnasium's CartPole-v1), hog, or the import path of a game."""
    trial: str = "muzero"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    unroll: int = 5
    """Steps that the model is unrolled in training."""
    n_step: int = 100
    """Rewards summed before the search's value takes over in the value's target."""
    support_size: int = 5
    """Of values and rewards, after the invertible transform."""
    alpha: float | None = None
    """Exponent of prioritised replay; None draws uniformly."""
    consistency_weight: float = 0.0
    """Weight of the distance between states foreseen and states seen."""
    codes: int = 0
    """Outcomes of luck that the model tells apart after an action (stochastic MuZero); 0 for a model without luck."""
    dim: int = 128
    """Width of the networks."""
    dim_state: int = 64
    """Size of the embedding."""
    reanalyse: int | None = 8
    """Updates between two batches whose targets are searched again; None for never."""
    steps: int = 6000
    """Number of updates."""
    replay_ratio: float = 8.0
    """How often a position is learnt from on average."""
    clip_norm: float | None = 5.0
    """Largest norm of a gradient."""
    push_interval: int = 50
    """Updates between two sets of parameters for self-play."""


PRESETS = {
    "tiny": Config(
        play=Play(games=8, simulations=4), steps=4, batch_size=16, task_interval=2, save_interval=2, reanalyse=2
    ),
    "tictactoe": Config(
        play=Play(games=64, simulations=32, rule=Puct(normalize=False), opening_share=0.8, opening_moves=8),
        steps=14_000,
        minutes=15,
        consistency_weight=1.0,
        dim=256,
        dim_state=128,
        reanalyse=None,
        task_interval=1000,
        save_interval=1000,
    ),
    "cartpole": Config(
        game="cartpole",
        play=Play(games=8, simulations=25, rule=Gumbel()),
        n_step=50,
        support_size=20,
        alpha=1.0,
        steps=7100,
        buffer=60_000,
        replay_ratio=40.0,
        minutes=30,
    ),
    "hog": Config(
        game="hog",
        play=Play(
            games=64,
            simulations=24,
            rule=Puct(normalize=False),
            opening_share=0.8,
            opening_moves=12,
            max_moves=100,
        ),
        codes=32,
        unroll=3,
        n_step=10,
        steps=4000,
        minutes=20,
        consistency_weight=1.0,
        reanalyse=None,
        task_interval=1000,
        save_interval=1000,
    ),
}
DESCRIPTIONS = {
    "tiny": "seconds; for tests",
    "tictactoe": "a quarter of an hour; no lost line at 32 simulations",
    "cartpole": "up to half an hour; under 50,000 steps of the environment",
    "hog": "minutes; a game of dice whose luck is learnt too, beside its exact solution",
}


class Judge:
    """Chooses moves as a match would, without noise, from the network alone (0 simulations) or a search in its model.

    Args:
        game: tells what is seen and which moves are legal; its rules are not used.
        model: the learned model.
        simulations: of the search.
    """

    def __init__(self, game: Game, model: Model, simulations: int) -> None:
        self.game, self.model, self.simulations = game, model, simulations
        rule = Puct(normalize=game.num_players == 1)
        self._search = Search.learned(model, game.num_actions, simulations=max(simulations, 1), rule=rule)

    def __call__(self, state: State) -> NDArray[np.int64]:
        """Returns one move a position, `[B]`."""
        observation, legal = self.game.observe(state), self.game.legal(state)
        if self.simulations:
            return self._search(observation, legal=legal).action
        with torch.inference_mode():
            logits, _ = self.model(torch.from_numpy(observation).to(self.model.device))
        action: NDArray[np.int64] = np.where(legal, logits.cpu().numpy(), -np.inf).argmax(axis=1)
        return action


def run(config: Config) -> dict[str, float]:
    """Trains and measures; returns what `measure` finds of the best snapshot, the `seconds` and `environment_steps`."""
    checked_device(config.device)
    game = make_game(config.game)
    solution = truth(game)
    engine = make_engine(config)
    check_luck(game, config)
    model, play_model = (network(game, config).init(seed=config.seed) for _ in range(2))
    model.to(config.device)
    if (node := asked(config, Requests(play_model))) is not None:
        source = SelfPlay(game, evaluator=Asked(node), play=config.play)
    else:
        if engine is None:  # else it plays on the CPUs of other machines
            play_model.to(config.device)
        source = SelfPlay(game, play_model, config.play)
    loader = Datagen(source).loader(
        config.batch_size,
        config.device,
        n_workers=config.workers,
        buffer=ReplayBuffer(
            config.buffer,
            unroll=config.unroll,
            first_only=() if later_seen(config) else ("obs",),
            n_step=config.n_step,
            alpha=config.alpha,
            seed=config.seed,
        ),
        replay_ratio=config.replay_ratio,
        min_steps=min(8 * config.batch_size, config.buffer // 2),
        seed=config.seed,
        engine=engine,
    )
    loss = MuZero(
        model.support,
        obs_unrolled=later_seen(config),
        consistency_weight=config.consistency_weight,
        commitment_weight=COMMITMENT,
        priorities=None if config.alpha is None else loader.update_priorities,
    )
    trial, ran = learn(
        config,
        model,
        loader,
        loss if config.reanalyse is None else reanalysing(loss, loader, game, config),
        task=lambda model, step: measure(game, model, solution, (0, 32)),
        best_by="fault" if isinstance(solution, Solution) else f"{yardstick(game)}_32",
        mode="min" if isinstance(solution, Solution) else "max",
    )
    found = measure(game, model, solution, (0, 8, 32), episodes=100) | ran
    name = yardstick(game)
    perfect = isinstance(solution, Solution)
    curves = ("wrong_0", "wrong_32", "lost_32") if perfect else (f"{name}_0", f"{name}_32", "loss")
    report(trial, found, curves)
    return found


def truth(game: Game) -> Solution | HogSolver | None:
    """Returns what knows the best moves of a game, where that is known."""
    if isinstance(game, Hog):
        return HogSolver(game)
    return solve(game) if isinstance(game, TicTacToe) else None


def check_luck(game: Game, config: Config) -> None:
    """Refuses what cannot learn luck.

    Raises:
        ValueError: codes of luck where the model is asked elsewhere, which asks of no afterstates.
    """
    if config.codes < 0:
        raise ValueError(f"codes must be at least 0, got {config.codes}")
    if config.codes and config.inferencer:
        raise ValueError(f"codes ({config.codes}) must be 0 with inferencer, which is asked of no afterstates")


def later_seen(config: Config) -> bool:
    """Returns whether the loss needs the observations of unrolled steps as well."""
    return config.consistency_weight > 0 or config.codes > 0


def reanalysing(loss: MuZero, loader: DatagenLoader, game: Game, config: Config) -> Reanalyse:
    """Returns the loss with targets renewed as self-play searches."""
    interval = config.reanalyse or 1
    play = config.play
    return Reanalyse(loss, loader, game.num_actions, interval=interval, simulations=play.simulations, rule=play.rule)


def network(game: Game, config: Config) -> Model:
    """Returns the model for a game: values turn their sign with the player, or are discounted."""
    discount = -1.0 if game.num_players == 2 else game.discount
    make = partial(LuckModel, num_codes=config.codes) if config.codes else Model
    return make(
        game.observation_shape,
        game.num_actions,
        discount=discount,
        dim=config.dim,
        dim_state=config.dim_state,
        support_size=config.support_size,
    )


def measure(
    game: Game,
    model: Model,
    solution: Solution | HogSolver | None,
    simulations: tuple[int, ...],
    *,
    episodes: int = 20,
) -> dict[str, float]:
    """Returns, by the number of simulations, wrong moves and lost lines; else the mean return or points.

    Of Hog, the share of games won of the best player, without any chance in it, and the chance given away a move.
    """
    found: dict[str, float] = {}
    for count in simulations:
        judge = Judge(game, model, count)
        if isinstance(solution, HogSolver):
            found[f"points_{count}"] = solution.points(judge)
            found[f"given_away_{count}"] = given_away(solution, judge)
        elif solution is not None:
            found[f"wrong_{count}"] = wrong_moves(solution, judge)
            found[f"lost_{count}"] = lost_lines(game, judge)
            found["fault"] = 1e4 * found[f"lost_{count}"] + found[f"wrong_{count}"]  # of the most simulations
        elif game.num_players == 1:
            found[f"return_{count}"] = mean_return(game, judge, episodes)
        else:
            player = lambda state, seed, judge=judge: judge(state)  # noqa: E731
            found[f"points_{count}"] = match(game, player, random_player(game), episodes, opening_moves=2).points
    return found


def given_away(solution: HogSolver, judge: Judge) -> float:
    """Returns the chance of winning that a judge's moves give away, in the mean of all positions."""
    states = solution.positions()
    scores = solution.score(states)
    return float((scores.max(axis=1) - scores[np.arange(len(states)), judge(states)]).mean() / 2)


def yardstick(game: Game) -> str:
    """Returns the name under which `measure` tells how well an unsolved game is played."""
    return "return" if game.num_players == 1 else "points"


def mean_return(game: Game, judge: Judge, episodes: int) -> float:
    """Returns the mean sum of rewards of `episodes` games of a one-player game."""
    state = game.init(episodes, 12345)
    total = np.zeros(episodes)
    while len(live := np.flatnonzero(~game.terminal(state))):
        state[live] = game.step(state[live], judge(state[live]))
        total[live] += game.reward(state[live])
    return float(total.mean())


def reproduce(*, seed: int = 0) -> dict[str, float]:
    """Trains the `tictactoe` preset; `lost_32` should be 0."""
    torch.set_num_threads(1)
    return run(replace(PRESETS["tictactoe"], seed=seed, trial=f"reproduce/tictactoe-muzero-{seed}"))


def reproduce_cartpole(*, seed: int = 0) -> dict[str, float]:
    """Trains the `cartpole` preset; `return_32` should be at least 475."""
    torch.set_num_threads(1)
    return run(replace(PRESETS["cartpole"], seed=seed, trial=f"reproduce/cartpole-muzero-{seed}"))


def reproduce_hog(*, seed: int = 0, codes: int = 32, minutes: float = 20) -> dict[str, float]:
    """Trains the `hog` preset; `points_32` is the share of games won of the best player, at most 0.5.

    Args:
        seed: of weights, games and the order of the data.
        codes: of luck; 0 for a model without luck, to compare.
        minutes: of training.
    """
    torch.set_num_threads(1)
    name = f"reproduce/hog-muzero-{codes}-{seed}"
    return run(replace(PRESETS["hog"], seed=seed, codes=codes, minutes=minutes, trial=name))


def main() -> None:
    """Runs the example with a typed command line."""
    torch.set_num_threads(1)
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
