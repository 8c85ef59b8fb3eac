"""2048 by a search of its luck, on values that an n-tuple network learnt by temporal differences.

`hatch run reproduce 2048`: the network learns from its own games, which its best move alone plays; then that move, and
searches with 25 and 100 simulations of the rules on the same values, play the same number of games.

Source: Szubert, Jaśkowski 2014, Temporal Difference Learning of N-Tuple Networks for the Game 2048: afterstates, and
lines and squares of four cells whose turned and mirrored places share one table.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.examples.selflearn import make_game
from ai.game import Player, Puct, Search, Twenty48, fast, greedy_player, random_player, search_player

TUPLES = ((0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 4, 5), (1, 2, 5, 6), (5, 6, 9, 10))
EXPONENTS = 18  # tiles of 2^1 to 2^17, and nothing
SPREAD = 100.0  # points by which a slide is worse that the prior gives a share 1 / e of the best one's


class Tuples:
    """Values of boards as sums over tables, one entry of each for every turned and mirrored place of its cells.

    Attributes:
        tables: `[tuples, 18 ** 4]` points.
        places: `[tuples * 8, 4]` cells, of each tuple's places one after the other.
    """

    def __init__(self) -> None:
        self.game = make_game("ai.game:Twenty48")
        board = np.arange(16).reshape(4, 4)
        sides = [np.rot90(seen, turn).ravel() for seen in (board, board.T) for turn in range(4)]
        self.tables = np.zeros((len(TUPLES), EXPONENTS**4))
        self.places = np.array([side[list(cells)] for cells in TUPLES for side in sides])
        rules: dict[str, Callable[..., Any]] = {
            "play_row": Twenty48.play_row,
            "legal_row": Twenty48.legal_row,
            "worth": _worth,
        }
        self._learn, self._judge = fast.bound(_learn, entry=_entry, **rules), fast.bound(_judge, **rules)

    def learn(self, games: int, *, rate: float, luck: np.random.Generator) -> float:
        """Plays by the best slide and learns from what follows; returns the mean score.

        Args:
            games: how many.
            rate: share of a board's error that an update takes back, where no two places see the same.
            luck: draws the tiles.
        """
        rows = np.zeros(3, self.game.dtype)
        rows[0] = self.game.init(1)[0]
        score: float = self._learn(rows, self.tables, self.places, rate / len(self.places), games, luck)
        return score

    def evaluate(self, state: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns logits of slides by their worth, `[B, 32]`, and the value of the best one, `[B]`."""
        logits, value = np.zeros((len(state), self.game.num_actions)), np.zeros(len(state))
        self._judge(state, np.zeros(1, self.game.dtype), self.tables, self.places, logits, value)
        return logits / SPREAD, value


def _worth(board: Any, tables: Any, places: Any) -> float:
    total = 0.0
    for p in range(places.shape[0]):
        total += tables[p // 8, _entry(board, places[p])]
    return total


def _entry(board: Any, place: Any) -> int:
    index = 0
    for k in range(4):
        index = index * 18 + int(board[place[k] // 4, place[k] % 4])
    return index


# `play_row`, `legal_row`, `worth` and `entry` are free below: `fast.bound` puts the game's rules there.


def _learn(rows, tables, places, rate, games, luck):  # type: ignore[no-untyped-def]
    s, tried, last = rows[1], rows[2], np.zeros((4, 4), np.int8)
    legal = np.zeros(32, np.bool_)
    scored = 0.0
    for _ in range(games):
        rows[1] = rows[0]
        begun = False
        while True:
            while s["waiting"] > 0:
                cell = luck.integers(0, 16)
                if s["board"][cell // 4, cell % 4] == 0:
                    play_row(s, 2 * cell + (luck.random() < 0.1))  # type: ignore[name-defined]  # noqa: F821
            legal[:4] = False
            if s["over"] == 0:
                legal_row(s, legal)  # type: ignore[name-defined]  # noqa: F821
            best, slide = 0.0, -1
            for a in range(4):
                if legal[a]:
                    rows[2] = rows[1]
                    play_row(tried, a)  # type: ignore[name-defined]  # noqa: F821
                    found = tried["reward"] + worth(tried["board"], tables, places)  # type: ignore[name-defined]  # noqa: F821
                    if slide < 0 or found > best:
                        best, slide = found, a
            if begun:
                change = rate * (best - worth(last, tables, places))  # type: ignore[name-defined]  # noqa: F821
                for p in range(places.shape[0]):
                    tables[p // 8, entry(last, places[p])] += change  # type: ignore[name-defined]  # noqa: F821
            if slide < 0:
                break
            play_row(s, slide)  # type: ignore[name-defined]  # noqa: F821
            scored += s["reward"]
            begun = True
            for cell in range(16):
                last[cell // 4, cell % 4] = s["board"][cell // 4, cell % 4]
    return scored / games


def _judge(state, rows, tables, places, logits, value):  # type: ignore[no-untyped-def]
    tried, legal = rows[0], np.zeros(32, np.bool_)
    for b in range(state.shape[0]):
        if state[b]["over"] != 0:
            continue
        if state[b]["waiting"] > 0:
            value[b] = worth(state[b]["board"], tables, places)  # type: ignore[name-defined]  # noqa: F821
            continue
        legal[:4] = False
        legal_row(state[b], legal)  # type: ignore[name-defined]  # noqa: F821
        value[b] = -np.inf
        for a in range(4):
            if legal[a]:
                rows[0] = state[b]
                play_row(tried, a)  # type: ignore[name-defined]  # noqa: F821
                logits[b, a] = tried["reward"] + worth(tried["board"], tables, places)  # type: ignore[name-defined]  # noqa: F821
                value[b] = max(value[b], logits[b, a])
        for a in range(4):
            logits[b, a] -= value[b]


def played(player: Player, games: int, luck: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Returns the score and the largest tile of each of some games, `[games]`, and how many slides were made in all."""
    game = Twenty48()
    state, score, slides = game.init(games), np.zeros(games), 0
    while True:
        while (lucky := game.chance(state).any(axis=1)).any():
            odds = game.chance(state[lucky]).cumsum(axis=1)
            drawn = luck.random((len(odds), 1)) * odds[:, -1:]
            state[lucky] = game.step(state[lucky], (odds > drawn).argmax(axis=1))
        live = np.flatnonzero(~game.terminal(state))
        if not len(live):
            return score, 2 ** state["board"].max(axis=(1, 2)).astype(np.int64), slides
        action = player(state[live], luck.integers(1 << 63, size=len(live), dtype=np.uint64))
        state[live] = game.step(state[live], action)
        score[live] += game.reward(state[live])
        slides += len(live)


def reproduce(
    *, seed: int = 0, minutes: float = 5, games: int = 50, simulations: tuple[int, ...] = (25, 100)
) -> dict[str, float]:
    """Returns median scores, and shares of games that made a tile of 2048.

    Args:
        seed: of the luck.
        minutes: of this process's time, in which the network learns; its rate falls with them.
        games: of each player.
        simulations: of the searches.

    Raises:
        ValueError: `games` is below 1, or `minutes` not above 0.
    """
    if games < 1 or not minutes > 0:
        raise ValueError(f"games and minutes must be above 0, got {games} and {minutes}")
    tuples, start, learnt, luck = Tuples(), time.process_time(), 0, np.random.default_rng(seed)
    chunk = 1
    while (gone := (time.process_time() - start) / (60 * minutes)) < 1:
        mean = tuples.learn(chunk, rate=0.5 * (1 - gone) + 0.01, luck=luck)
        learnt += chunk
        if chunk == 500 or chunk == 1:
            print(f"{learnt:7d} games, mean score {mean:,.0f}", flush=True)
        chunk = 500
    game, found = tuples.game, {"games_learnt": float(learnt)}
    players = {"random": random_player(game), "slide": greedy_player(game, tuples)} | {
        f"search_{count}": search_player(Search(game, tuples, simulations=count, rule=Puct())) for count in simulations
    }
    for name, player in players.items():
        begun = time.process_time()
        score, tile, slides = played(player, games, np.random.default_rng([seed, 1]))  # the same tiles for each
        took = time.process_time() - begun
        made = {f"{name}_{size}": float((tile >= size).mean()) for size in (2048, 4096, 8192)}
        found |= {f"{name}_median": float(np.median(score)), f"{name}_mean": float(score.mean()), **made}
        found |= {f"{name}_tile": float(np.median(tile)), f"{name}_ms": 1000 * took / slides}
        print(f"{name:12} median {np.median(score):9,.0f}  mean {score.mean():9,.0f}  {made}", flush=True)
    return found
