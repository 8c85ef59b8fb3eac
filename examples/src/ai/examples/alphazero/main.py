"""Learns a game for two from self-play alone; tic-tac-toe and Connect Four are measured against perfect play.

Command: `ai-examples alphazero tictactoe`, or `python -m ai.examples.alphazero --help` for presets and options;
`--game my_package.my_game:MyGame` learns a game of your own.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from ai.data import Datagen, ReplayBuffer
from ai.data.batch.device import checked_device
from ai.data.datagen import DatagenLoader
from ai.examples.alphazero import connect4
from ai.examples.alphazero.ladder import Ladder
from ai.examples.alphazero.loss import AlphaZero
from ai.examples.alphazero.model import MLP, ResNet
from ai.examples.alphazero.truth import Judge, lost_lines, wrong_moves
from ai.examples.cli import read_config
from ai.examples.selflearn import LearnConfig, asked, learn, make_engine, make_game, report
from ai.game import (
    Augment,
    ConnectFour,
    Game,
    NetEvaluator,
    Play,
    Player,
    Puct,
    RolloutEvaluator,
    Search,
    SelfPlay,
    SymmetricEvaluator,
    SymmetricGame,
    TicTacToe,
    match,
    search_player,
    solve,
)
from ai.lab.files.folder import resolve

RULE = Puct(normalize=False)


@dataclass(frozen=True)
class Config(LearnConfig):
    """What a run needs; every field is an option of the command line."""

    game: str = "tictactoe"
    """What to learn: tictactoe, connect4, or the import path of a game for two."""
    trial: str = "alphazero"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    channels: int = 64
    """Channels of the residual network."""
    blocks: int = 3
    """Residual blocks."""
    places: bool = False
    """Whether the residual network learns a number for each channel of each cell."""
    value_weight: float = 1.0
    """Weight of the value's error."""
    value_error: Literal["squared", "entropy"] = "squared"
    """Of the value: its square, or the cross-entropy of the chance to win that it tells."""
    search_share: float = 0.0
    """Share of the search's value in the value's target; the rest is the outcome."""
    fast_weight: float = 1.0
    """Weight of the policy's error at moves made by a fast search."""
    precision: Literal["bf16"] | None = None
    """Of the network, while training and playing; None is float32."""
    positions: int = 1000
    """Solved positions to measure by, where no move wins at once; training never sees them (Connect Four)."""
    plies: tuple[int, int] = (12, 25)
    """Least and greatest number of stones on them; the solver is slow below 12."""
    strong_games: int = 0
    """Games at the end against a search of 1,000 random games a move, with 400 simulations (a game of your own)."""


PRESETS = {
    "tiny": Config(
        play=Play(games=8, simulations=8, rule=RULE),
        steps=4,
        batch_size=16,
        task_interval=2,
        save_interval=2,
        channels=8,
        blocks=1,
        positions=6,
        plies=(24, 25),
    ),
    "tictactoe": Config(
        play=Play(games=64, simulations=32, rule=RULE, opening_share=0.8, opening_moves=8, cache=1 << 14),
        steps=8000,
        replay_ratio=6.0,
        task_interval=1000,
        save_interval=2000,
    ),
    "connect4": Config(
        game="connect4",
        play=Play(
            games=256,
            simulations=64,
            fast_simulations=32,
            full_share=0.5,
            rule=Puct(c_init=1.6, normalize=False, prove=True),
            temperature_moves=10,
            late_temperature=0.4,
            tolerance=0.1,
            random_share=0.15,
            opening_share=0.8,
            opening_moves=24,
            cache=1 << 20,
        ),
        workers=2,
        steps=36_000,
        minutes=60,
        replay_ratio=3.0,
        buffer=600_000,
        weight_decay=1e-3,
        value_error="entropy",
        search_share=0.25,
        fast_weight=0.25,
        precision="bf16",
        least_rate=0.0,
        push_interval=100,
        task_interval=6000,
        save_interval=6000,
        keep_snapshots=None,
    ),
}
PRESETS["othello6"] = replace(
    PRESETS["connect4"],
    game="ai.game:Othello(size=6)",
    play=replace(
        PRESETS["connect4"].play,
        simulations=96,
        fast_simulations=24,
        full_share=0.35,
        random_share=0.05,
        opening_moves=8,
    ),
    channels=32,
    value_error="squared",
    value_weight=1.5,
    steps=15_000,
    minutes=25,
    least_rate=0.02,
    buffer=300_000,
    replay_ratio=8.0,
    task_interval=1500,
    save_interval=1500,
    strong_games=40,
)
DESCRIPTIONS = {
    "tiny": "seconds; for tests",
    "tictactoe": "a minute; no lost line and every position right",
    "connect4": "an hour on two cores",
    "othello6": "twenty minutes on two cores; Othello on 6 × 6 cells",
}


def run(config: Config) -> dict[str, float]:
    """Trains and measures; returns what the task finds of the best snapshot, and the `seconds` of training."""
    checked_device(config.device)
    if config.game == "tictactoe":
        return run_tictactoe(config)
    return run_connect4(config) if config.game == "connect4" else run_game(config)


def run_game(config: Config) -> dict[str, float]:
    """Learns a game of which nothing else is known, measured by its own past and by a search with random rollouts.

    At the end `points_1000` tells what 400 simulations take of 1,000 random games a move, by the rule that suits these.

    Raises:
        ValueError: `strong_games` is negative; raised before the training.
    """
    if config.strong_games < 0:
        raise ValueError(f"strong_games must be at least 0, got {config.strong_games}")
    game = make_game(config.game)
    wrap = Wrap(config.precision, game.observation_shape)
    model = network(config).init(seed=config.seed).to(config.device)
    rule = config.play.rule
    ladder = Ladder(resolve(config.trial), game, lambda: network(config), wrap, rule)
    rollouts = search_player(Search(game, RolloutEvaluator(game), simulations=100, rule=Puct()))

    def points(model: nn.Module, simulations: int, other: Player, games: int, seed: int) -> float:
        player = search_player(Search(game, wrap(model), simulations=simulations, rule=rule))
        return match(game, player, other, games, seed=seed, opening_moves=4, max_moves=config.play.max_moves).points

    def task(model: nn.Module, step: int) -> dict[str, float]:
        return {"elo": ladder(model, step), "points": points(model, 32, rollouts, 20, step)}

    postprocess = Augment(game) if isinstance(game, SymmetricGame) else None
    loader = self_play(game, config, postprocess)
    trial, ran = learn(
        config,
        model,
        loader,
        loss(config),
        task=lambda model, step: task(model, step) | {"updates": step},
        best_by="updates",  # the learning rate falls to the end, and the Elo of 60 games tells too little
        mode="max",
        precision=config.precision,
    )
    found = task(model, config.steps + 1) | ran
    if config.strong_games:
        strong = search_player(Search(game, RolloutEvaluator(game), simulations=1000))
        found["points_1000"] = points(model, 400, strong, config.strong_games, config.seed)
    report(trial, found, ("elo", "points", "policy_loss", "value_loss"))
    return found


def run_tictactoe(config: Config) -> dict[str, float]:
    """Learns tic-tac-toe, measured in all its positions and lines."""
    game, model = TicTacToe(), network(config).init(seed=config.seed).to(config.device)
    solution = solve(game)

    def task(model: nn.Module) -> dict[str, float]:
        found: dict[str, float] = {}
        for count in (0, 8, 32):
            judge = Judge(game, model, count, RULE)
            found |= {f"wrong_{count}": wrong_moves(solution, judge), f"lost_{count}": lost_lines(game, judge)}
        # a mistake of a search counts first, then those of the network alone
        return found | {"fault": 1e4 * (found["wrong_8"] + found["wrong_32"]) + found["wrong_0"]}

    loader = self_play(game, config, Augment(game))
    trial, ran = learn(
        config, model, loader, loss(config), task=lambda model, step: task(model), best_by="fault", mode="min"
    )
    found = task(model) | ran
    report(trial, found, ("wrong_0", "wrong_8", "wrong_32", "lost_8", "policy_loss", "value_loss"))
    return found


def run_connect4(config: Config) -> dict[str, float]:
    """Learns Connect Four, measured by solved positions that training never sees.

    `right_N` is the share of them where N simulations keep the best outcome, 0 being the network alone, and
    `right_N_by_sides` where each position is looked at beside its mirror image.

    The best snapshot is chosen by other positions, so that choosing does not flatter the figures.
    """
    game, wrap = ConnectFour(), Wrap(config.precision)
    model = network(config).init(seed=config.seed).to(config.device)
    solved = connect4.solved_positions(config.positions, config.plies, seed=config.seed)
    choice = connect4.solved_positions(-(-config.positions // 3), config.plies, seed=config.seed + 1_000_000)
    ladder = Ladder(resolve(config.trial), game, lambda: network(config), wrap, connect4.RULE)

    def measure(model: nn.Module, simulations: tuple[int, ...]) -> dict[str, float]:
        evaluator = wrap(model)
        return {f"right_{count}": solved.right(evaluator, count) for count in simulations} | {
            f"value_of_{name}": value for name, value in solved.values(evaluator).items()
        }

    def task(model: nn.Module, step: int) -> dict[str, float]:
        found = measure(model, (0, 100))
        return found | {"choice_100": choice.right(wrap(model), 100), "elo": ladder(model, step)}

    augment = Augment(game)
    loader = self_play(game, config, lambda batch: augment(solved.withheld(batch)))
    trial, ran = learn(
        config,
        model,
        loader,
        loss(config),
        task=task,
        best_by="choice_100",
        mode="max",
        precision=config.precision,
    )
    found = measure(model, (0, 100, 400)) | ran
    sides = SymmetricEvaluator(game, wrap(model))
    found |= {f"right_{count}_by_sides": solved.right(sides, count) for count in (0, 100, 400)}
    report(trial, found, ("right_0", "right_100", "elo", "value_of_wins", "policy_loss", "value_loss"))
    return found


def self_play(game: Game, config: Config, postprocess: Any) -> DatagenLoader:
    """Returns batches of self-play."""
    engine = make_engine(config)
    player, wrap = network(config).init(seed=config.seed), Wrap(config.precision, game.observation_shape)
    if (node := asked(config, player)) is not None:
        source = SelfPlay(game, evaluator=node, play=config.play)
    else:
        if engine is None:  # else it plays on the CPUs of other machines
            player.to(config.device)
        source = SelfPlay(game, player, config.play, wrap=wrap)
    return Datagen(source, postprocess=postprocess).loader(
        config.batch_size,
        config.device,
        n_workers=config.workers,
        buffer=ReplayBuffer(config.buffer, n_step=float("inf"), seed=config.seed),
        replay_ratio=config.replay_ratio,
        min_steps=min(8 * config.batch_size, config.buffer // 2),
        seed=config.seed,
        engine=engine,
    )


def loss(config: Config) -> AlphaZero:
    """Returns the loss that a configuration names."""
    return AlphaZero(
        value_weight=config.value_weight,
        search_share=config.search_share,
        fast_weight=config.fast_weight,
        value_error=config.value_error,
    )


def network(config: Config) -> Any:
    """Returns the network that a configuration names.

    Raises:
        ValueError: `places` or `kernel_rate` is asked of a game whose network has no convolutions.
    """
    game = make_game(config.game)
    shape, actions = game.observation_shape, game.num_actions
    if config.game == "tictactoe" or len(shape) != 3:
        if config.places or config.kernel_rate is not None:
            raise ValueError(f"places and kernel_rate are of convolutions, which the network of {config.game} has not")
        return MLP(shape, actions)
    net = ResNet(shape, actions, nc=config.channels, n_blocks=config.blocks, places=config.places)
    return net.to(memory_format=torch.channels_last)  # training is a quarter faster so on a CPU


@dataclass(frozen=True)
class Wrap:
    """How a self-play worker runs its network: in chunks, a format and a precision that are measured where it may.

    Args:
        precision: as of `Config`.
        observation_shape: of the game.
    """

    precision: str | None = None
    observation_shape: tuple[int, ...] = ConnectFour.observation_shape

    def __call__(self, model: nn.Module) -> NetEvaluator:
        """Returns the evaluator."""
        if self.precision is None:
            return NetEvaluator(model)
        board = torch.zeros(128, *self.observation_shape, device="cpu")
        return NetEvaluator.tuned(model, board, allow_bf16=True, seconds=0.05)


def reproduce(*, seed: int = 0) -> dict[str, float]:
    """Trains the `tictactoe` preset; `lost_8`, `lost_32`, `wrong_8` and `wrong_32` should be 0."""
    torch.set_num_threads(1)
    return run(replace(PRESETS["tictactoe"], seed=seed, trial=f"reproduce/tictactoe-{seed}"))


def reproduce_connect4(
    *, seed: int = 0, minutes: float = 60, games: int = 100, hard_games: int = 100
) -> dict[str, float]:
    """Trains the `connect4` preset and plays the best snapshot against OpenSpiel's MCTSBot and its own forerunners.

    `right_0` should be at least 0.86 and `right_100` 0.93; `points_1000` at least 0.95 and `points_10000` 0.85.

    Args:
        seed: Of weights, games and positions.
        minutes: Of training; the matches take six more.
        games: Against the bot with 1,000 rollouts.
        hard_games: Against the bot with 10,000 rollouts.

    Raises:
        ImportError: Games are asked for and OpenSpiel is not installed; raised before the training.
    """
    if games or hard_games:
        connect4.open_spiel_player(1000)
    config = replace(PRESETS["connect4"], seed=seed, minutes=minutes, trial=f"reproduce/connect4-{seed}")
    found = run(config)
    return found | connect4.matches(
        config.trial,
        lambda: network(config),
        Wrap(config.precision),
        {1000: games, 10_000: hard_games},
        solved=connect4.solved_positions(config.positions, config.plies, seed=config.seed),
    )


def main() -> None:
    """Runs the example with a typed command line."""
    torch.set_num_threads(1)
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
