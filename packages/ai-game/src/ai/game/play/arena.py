"""Matches between players, round-robin tables and ratings.

Source: Elo 1978, "The rating of chessplayers"; the ratings are the maximum-likelihood ones of Bradley, Terry 1952,
draws counted as half a win each; their intervals come from the curvature of the likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.arguments import check_amount, check_count
from ai.game.play.players import Player, check_players
from ai.game.protocol import Game, State, chances, check_actions, check_game, move_weights, outcome_for

ELO_SCALE = 400 / np.log(10)
_PAIRS, _MOVES, _TABLE = range(3)  # streams of a seed: what pairs of games share, what players draw by, and matches
_LUCK = 1 << 32  # apart from the openings' numbers


@dataclass(frozen=True)
class Score:
    """Wins, draws and losses, from the first player's view.

    Args:
        wins: of the first player.
        draws: games without a winner.
        losses: of the first player.
        distinct: how many of the games differ in seats, opening or moves, which is all that `ratings` counts as
            evidence: players without luck repeat one game for ever. None where nobody counted: then all do.

    >>> Score(6, 2, 2).points
    0.7
    """

    wins: int
    draws: int
    losses: int
    distinct: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_count(0, wins=self.wins, draws=self.draws, losses=self.losses)
        if self.distinct is not None:
            check_count(0, distinct=self.distinct)
            if self.distinct > self.games:
                raise ValueError(f"distinct must be at most the {self.games} games, got {self.distinct}")

    @property
    def games(self) -> int:
        """How many games were played."""
        return self.wins + self.draws + self.losses

    @property
    def points(self) -> float:
        """The share of points: 1 for a win, a half for a draw."""
        return (self.wins + self.draws / 2) / max(self.games, 1)


def match(
    game: Game,
    first: Player,
    second: Player,
    games: int,
    *,
    seed: int = 0,
    opening_moves: int = 0,
    max_moves: int = 10_000,
) -> Score:
    """Plays `games` games side by side, the seats taken in turn.

    Args:
        game: of two players.
        first: whose score is counted; begins in games 0, 2, 4, …
        second: begins in the others.
        games: how many.
        seed: of openings and of players that draw.
        opening_moves: random moves before the players take over; both seats of a pair of games get the same ones, and
            the same luck where the game has any.
        max_moves: a game that goes on for longer is a draw.

    Raises:
        ValueError: the game is not for two, or `games` or `max_moves` is not positive.

    >>> from ai.game import TicTacToe, perfect_player, random_player, solve
    >>> game = TicTacToe()
    >>> match(game, perfect_player(solve(game)), random_player(game), 100).losses
    0
    """
    check_game(game, "num_players", "num_actions", "init", "step", "terminal", "reward", "to_play")
    check_players(first=first, second=second)
    if game.num_players != 2:
        raise ValueError(f"game must be for two players, {type(game).__name__} is for {game.num_players}")
    check_count(1, games=games, max_moves=max_moves)
    check_count(0, opening_moves=opening_moves, seed=seed)
    pair_seeds = draws.fold_in(draws.row_seeds(seed, (games + 1) // 2), _PAIRS).repeat(2)[:games]
    state = _opened(game, pair_seeds, opening_moves)
    seat = np.arange(games) % 2  # of the first player
    seeds = draws.fold_in(draws.row_seeds(seed, games), _MOVES)
    played = draws.fold_in(draws.digest(state), seat)  # a number for each game, by all that happened in it
    outcome = np.zeros(games)
    for ply in range(max_moves):
        live = ~game.terminal(state)
        if not live.any():
            break
        mover = game.to_play(state)
        chance = chances(game, state)
        lucky = np.zeros(games, bool) if chance is None else chance.any(axis=1)
        action = np.zeros(games, np.int64)
        for player, mine in ((first, live & ~lucky & (mover == seat)), (second, live & ~lucky & (mover != seat))):
            if mine.any():
                moves = player(state[mine], draws.fold_in(seeds[mine], ply))
                action[mine] = check_actions(moves, int(mine.sum()), game.num_actions)
        if chance is not None and lucky.any():
            action[lucky] = draws.choose(draws.fold_in(pair_seeds[lucky], _LUCK + ply), chance[lucky])
        before, state = state, state.copy()  # what a game tells of a state may be a view into it
        state[live] = game.step(before[live], action[live])
        played[live] = draws.fold_in(played[live], action[live])
        outcome += np.where(live, outcome_for(seat, game.reward(state), mover), 0)
    outcome[~game.terminal(state)] = 0
    won, lost = int((outcome > 0).sum()), int((outcome < 0).sum())
    return Score(won, games - won - lost, lost, len(np.unique(played)))


def _opened(game: Game, seeds: NDArray[np.uint64], moves: int) -> State:
    """Returns starting states after random moves, none of which ends its game."""
    state = game.init(len(seeds), draws.fold_in(seeds, 0))  # a game draws from its seed what it likes
    for move in range(moves):
        live = ~game.terminal(state)
        choice = draws.choose(draws.fold_in(seeds[live], 1 + move), move_weights(game, state[live]))
        after = game.step(state[live], choice)
        state[live] = np.where(game.terminal(after), state[live], after)
    return state


@dataclass(frozen=True)
class Rating:
    """A player's rating and half the width of its 95 % interval; the mean of all players is 0."""

    elo: float
    margin: float


def round_robin(
    game: Game,
    players: Mapping[str, Player],
    games: int,
    *,
    seed: int = 0,
    opening_moves: int = 2,
    max_moves: int = 10_000,
) -> dict[tuple[str, str], Score]:
    """Plays a match of `games` games between each two players; arguments as of `match`, with openings by default."""
    if not isinstance(players, Mapping):
        raise TypeError(f"players must be a dict by name, got {type(players).__name__}")
    check_count(0, seed=seed)
    limits = {"opening_moves": opening_moves, "max_moves": max_moves}
    pairs = list(combinations(players, 2))
    seeds = draws.fold_in(draws.row_seeds(seed, len(pairs)), _TABLE)
    return {
        (one, other): match(game, players[one], players[other], games, seed=int(own), **limits)
        for (one, other), own in zip(pairs, seeds, strict=True)
    }


def ratings(scores: Mapping[tuple[str, str], Score], *, prior_games: float = 1.0) -> dict[str, Rating]:
    """Returns the Elo rating of each player in a table of matches.

    Args:
        scores: by pair of names; each weighs as much as it has distinct games.
        prior_games: so many drawn games against an average player are added to each record: without any, a player that
            never lost would be rated infinitely high.

    Raises:
        TypeError: `scores` is no table of `Score` by pair of names.
        ValueError: there are no scores, or `prior_games` is not positive, or too small for players who never lost.

    >>> table = ratings({("a", "b"): Score(75, 0, 25)}, prior_games=0.01)
    >>> round(table["a"].elo - table["b"].elo)
    191
    """
    if not isinstance(scores, Mapping):
        raise TypeError(f"scores must be a dict of Score by pair of names, got {type(scores).__name__}")
    if not scores:
        raise ValueError("scores must hold at least one match")
    for pair, score in scores.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(score, Score)):
            raise TypeError(f"scores must be a dict of Score by pair of names, got {score!r} by {pair!r}")
    check_amount(0, above=True, prior_games=prior_games)
    if alone := [name for name, other in scores if name == other]:
        raise ValueError(f"scores must be of two players each, {alone[0]!r} plays itself")
    names = list(dict.fromkeys(name for pair in scores for name in pair))
    index = {name: i for i, name in enumerate(names)}
    strength = np.zeros(len(names))
    for _ in range(100):
        gradient, curvature = _likelihood(strength, scores, index, prior_games)
        move = _solved(curvature, gradient, prior_games)
        strength += np.clip(move, -2, 2)
        if np.abs(move).max() < 1e-10:
            break
    _, curvature = _likelihood(strength, scores, index, prior_games)
    centred = np.eye(len(names)) - 1.0 / len(names)  # only differences mean something: how strong all are is not known
    deviation = np.sqrt(np.diag(centred @ _solved(curvature, centred, prior_games)))
    strength = strength - strength.mean()
    return {
        name: Rating(float(strength[i] * ELO_SCALE), float(1.96 * deviation[i] * ELO_SCALE))
        for name, i in index.items()
    }


def _solved(curvature: NDArray[np.float64], right: NDArray[np.float64], prior_games: float) -> NDArray[np.floating]:
    try:
        return np.linalg.solve(curvature, right)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"prior_games ({prior_games:g}) must be larger beside these scores: it bounds a player who never lost"
        ) from error


def _likelihood(
    strength: NDArray[np.float64],
    scores: Mapping[tuple[str, str], Score],
    index: Mapping[str, int],
    prior_games: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the gradient of the log likelihood and the negative of its second derivative."""
    expected = 1 / (1 + np.exp(-strength))
    gradient = prior_games * (0.5 - expected)
    curvature = np.diag(prior_games * expected * (1 - expected))
    for (one, other), score in scores.items():
        i, j = index[one], index[other]
        count = score.games if score.distinct is None else score.distinct
        chance = 1 / (1 + np.exp(strength[j] - strength[i]))
        surplus = count * (score.points - chance)
        gradient[i] += surplus
        gradient[j] -= surplus
        weight = count * chance * (1 - chance)
        curvature[i, i] += weight
        curvature[j, j] += weight
        curvature[i, j] -= weight
        curvature[j, i] -= weight
    return gradient, curvature
