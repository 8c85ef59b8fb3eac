"""A network that learns any game for two, rated by matches against its own past."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ai.examples.saved import load_averaged
from ai.game import Game, NetEvaluator, Player, Rule, Score, Search, match, ratings, round_robin, search_player
from ai.lab import Trial
from ai.train import Snapshots, snapshot

Evaluate = Callable[[nn.Module], NetEvaluator]


class Ladder:
    """Rates a network that learns, as it learns: by matches against earlier snapshots of its trial.

    Args:
        path: The trial's folder, whose snapshots are the opponents; the scores are kept there, in `ladder.json`.
        game: For two.
        network: Makes the network.
        evaluate: From a network to its evaluator.
        rule: Of the searches.
        games: Against each opponent, from positions after four random moves, with 32 simulations.
        opponents: At most so many of the newest.
    """

    def __init__(
        self,
        path: Path,
        game: Game,
        network: Callable[[], Any],
        evaluate: Evaluate,
        rule: Rule | None,
        *,
        games: int = 20,
        opponents: int = 3,
    ) -> None:
        self._path, self._game, self._network, self._evaluate, self._rule = path, game, network, evaluate, rule
        self._games, self._opponents = games, opponents

    def __call__(self, model: nn.Module, step: int) -> float:
        """Returns the network's Elo above that of the first snapshot; 0 before there is one."""
        game, kept = self._game, self._path / "ladder.json"
        scores: dict[tuple[str, str], Score] = {}
        if kept.exists():
            for one, other, *score in json.loads(kept.read_text(encoding="utf-8")):
                if one < step:  # a run that goes on from an earlier snapshot meets later steps again
                    scores[str(one), str(other)] = Score(*score)
        snapshots = {
            int(path.name): path for path in (self._path / "snapshots").glob("[0-9]*") if path.name.isdecimal()
        }
        player = self._player(model)
        for earlier in sorted(at for at in snapshots if at < step)[-self._opponents :]:
            opponent = self._network()
            opponent.load_state_dict(snapshot.load_model_state(snapshots[earlier], ema=True))
            score = match(game, player, self._player(opponent.eval()), self._games, seed=step, opening_moves=4)
            scores[str(step), str(earlier)] = score
        if not scores:
            return 0.0
        rows = [[int(one), int(other), s.wins, s.draws, s.losses, s.distinct] for (one, other), s in scores.items()]
        kept.write_text(json.dumps(rows) + "\n", encoding="utf-8")
        table = ratings(scores)
        return table[str(step)].elo - table[min(table, key=int)].elo if str(step) in table else 0.0

    def _player(self, model: nn.Module) -> Player:
        return search_player(Search(self._game, self._evaluate(model), simulations=32, rule=self._rule))


def best_snapshot(trial: Trial) -> Path | None:
    """Returns the snapshot that a run judged best; None where there is none."""
    return Snapshots(trial.path / "snapshots", best_by="score", mode="max").best()


def elo_curve(
    trial: Trial,
    game: Game,
    network: Callable[[], Any],
    evaluate: Evaluate,
    rule: Rule | None,
    *,
    games: int = 20,
    count: int = 8,
) -> float:
    """Rates up to `count` of a trial's snapshots by a round robin of searches with 32 simulations.

    Returns:
        What the last is rated above the first. The ratings are drawn to `elo.png` and written to `elo.json`.
    """
    paths = sorted(path for path in (trial.path / "snapshots").iterdir() if path.name.isdecimal())
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, count).round().astype(int))]
    players = {}
    for path in chosen:
        model = network()
        load_averaged(model, trial, path)
        players[path.name] = search_player(Search(game, evaluate(model), simulations=32, rule=rule))
    if len(players) < 2:
        return 0.0
    table = ratings(round_robin(game, players, games, opening_moves=4))
    curve = {int(name): [rating.elo, rating.margin] for name, rating in table.items()}
    (trial.path / "elo.json").write_text(json.dumps(curve) + "\n", encoding="utf-8")
    save_curve(curve, trial.path / "elo.png")
    return table[chosen[-1].name].elo - table[chosen[0].name].elo


def save_curve(curve: Mapping[int, list[float]], path: Path) -> None:
    """Draws ratings with their 95 % intervals over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    elo, margin = np.array(list(curve.values())).T
    axes.errorbar(list(curve), elo, margin, marker="o", capsize=3)
    axes.set(xlabel="updates", ylabel="Elo, the mean of all being 0")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
