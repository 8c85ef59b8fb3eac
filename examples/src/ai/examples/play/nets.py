"""The networks that ship with the examples, and the result that makes them."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ai.examples.alphazero.main import PRESETS, network
from ai.examples.alphazero.main import run as train
from ai.examples.saved import load_averaged
from ai.examples.selflearn import make_game
from ai.game import Game, Rule
from ai.lab import Trial
from ai.train import Snapshots


@dataclass(frozen=True)
class Shipped:
    """A game that can be played at once: the preset that learns it, its title, and the most minutes of that.

    None are the preset's own.
    """

    preset: str
    title: str
    minutes: float | None = None


GAMES = {
    "tictactoe": Shipped("tictactoe", "Tic-tac-toe"),
    "connect4": Shipped("connect4", "Connect Four"),
    "othello6": Shipped("othello6", "Othello, 6 × 6", 25),
}
_HERE = Path(__file__).parent


def load(name: str, weights: str | Path | None = None) -> tuple[Game, nn.Module]:
    """Returns a game of `GAMES` and its network, in evaluation mode.

    Args:
        name: of the game.
        weights: a safetensors file of a network of the same shape; None for the one that ships.

    Raises:
        ValueError: there is no such game, or the file is of another network.

    >>> game, model = load("tictactoe")
    >>> logits, value = model(torch.from_numpy(game.observe(game.init(1))))
    >>> logits.shape, round(value.item())
    (torch.Size([1, 9]), 0)
    """
    if name not in GAMES:
        raise ValueError(f"name must be one of {', '.join(GAMES)}, got {name!r}")
    config = PRESETS[GAMES[name].preset]
    model: nn.Module = network(config)
    file = _HERE / f"{name}.safetensors" if weights is None else Path(weights)
    kept, own = load_file(file), model.state_dict()
    if {key: tensor.shape for key, tensor in kept.items()} != {key: tensor.shape for key, tensor in own.items()}:
        raise ValueError(f"weights must be of the network that plays {name}, those of {file} are of another")
    model.load_state_dict({key: kept[key].to(tensor.dtype) for key, tensor in own.items()})
    return make_game(config.game), model.eval()


def rule(name: str) -> Rule | None:
    """Returns the rule by which a game's network was taught, and plays."""
    return PRESETS[GAMES[name].preset].play.rule


def reproduce(
    *, name: str = "tictactoe", seed: int = 0, minutes: float | None = None, trial: str | None = None
) -> dict[str, float]:
    """Trains one of the networks; writes it to `NAME.safetensors` in the trial's folder, in half precision.

    Args:
        name: of `GAMES`.
        seed: of weights, games and the order of the data.
        minutes: of training; None for those of `GAMES`.
        trial: one that has learnt it already by the same preset, such as `reproduce/connect4-0`; None trains.

    Raises:
        FileNotFoundError: the trial has no snapshots.
    """
    torch.set_num_threads(1)
    preset = PRESETS[GAMES[name].preset]
    minutes = minutes or GAMES[name].minutes or preset.minutes
    config = replace(preset, seed=seed, minutes=minutes, positions=200, trial=f"reproduce/play-{name}-{seed}")
    found = train(config) if trial is None else {}
    learnt, mode = Trial(trial or config.trial), "min" if config.game == "tictactoe" else "max"
    model: nn.Module = network(config)
    load_averaged(model, learnt, Snapshots(learnt.path / "snapshots", best_by="score", mode=mode).best())
    halved = {
        key: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for key, tensor in model.state_dict().items()
    }
    file = learnt.path / f"{name}.safetensors"
    save_file(halved, file)
    return found | {"bytes": file.stat().st_size}
