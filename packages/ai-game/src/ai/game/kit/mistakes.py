"""The classic mistakes of a new game, each found in the record of random play and named.

None of them breaks a type or a shape: such a game is searched and learnt without complaint, and badly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.protocol import Game, State, chances, move_weights, outcome_for


class GameError(AssertionError):
    """A game breaks the protocol; the message names the rule."""


class Moment(NamedTuple):
    """One move of all games: `live [B]` tells which are not over yet."""

    state: State
    live: NDArray[np.bool_]
    action: NDArray[np.int64]
    following: State


History = list[Moment]
_NUMBER = {2: "two", 3: "three"}


def find_mistakes(game: Game, history: History, seeds: NDArray[np.uint64]) -> None:
    """Raises at the first mistake that a record of whole games shows.

    Raises:
        GameError: with the mistake's name.
    """
    nothing_seen(game, history)
    luck_in_the_state(game, seeds)
    if game.num_players > 1:
        one_mover(game, history)
    if game.num_players == 2:
        rewards_of_one_player(game, history, seeds)
        mover_unseen(game, history)


def nothing_seen(game: Game, history: History) -> None:
    """Finds observations that stay the same whatever is decided, while what may be decided next does not."""
    decisions = [moment.live & ~_drawn(game, moment.state) for moment in history]

    def told(read: Callable[[State], NDArray[Any]]) -> int:
        return len(
            {row.tobytes() for moment, who in zip(history, decisions, strict=True) for row in read(moment.state)[who]}
        )

    # who decides once a game needs to see nothing: the best of several dice is always the same
    if np.sum(decisions, axis=0).max() > 1 and told(game.observe) == 1 and told(game.legal) > 1:
        raise GameError(
            f"observe must show the position: it is the same at all {np.sum(decisions)} moves of "
            f"{len(history[0].live)} games, in which the legal moves differ"
        )


def _drawn(game: Game, state: State) -> NDArray[np.bool_]:
    """Returns where chance moves."""
    chance = chances(game, state)
    if chance is None:
        return np.zeros(len(state), np.bool_)
    drawn: NDArray[np.bool_] = chance.max(axis=1) > 0
    return drawn


def one_mover(game: Game, history: History) -> None:
    """Finds a `to_play` that never changes."""
    moves = [game.to_play(moment.state)[moment.live] for moment in history]
    movers = np.concatenate(moves)
    if len(moves) > 1 and (movers == movers[0]).all():
        raise GameError(
            f"to_play must tell who moves: it is {movers[0]} at all {len(movers)} moves of {len(history[0].live)} "
            f"games of {_NUMBER.get(game.num_players, game.num_players)} players, and a search would choose for one of "
            "them alone"
        )


def rewards_of_one_player(game: Game, history: History, seeds: NDArray[np.uint64]) -> None:
    """Finds rewards from one player's view: taken as the mover's, that player wins whoever moves last."""
    ends = _decided(game, history)
    for attempt in range(8):
        if not _one_sided(ends):
            return
        ends = np.concatenate([ends, _decided(game, _played(game, draws.fold_in(seeds, 77, attempt)))])
    if not _one_sided(ends):
        return
    winner = int(ends[0, 0])
    raise GameError(
        f"reward must be from the view of the player who moved: player {winner} wins all of {len(ends)} games, whoever "
        f"makes the last move; if it is written from player {winner}'s view, turn its sign where the other moved"
    )


def _one_sided(ends: NDArray[np.int64]) -> bool:
    """Returns whether one player won all of `ends [E, 2]` (winner, last mover), and either of them moved last."""
    return len(ends) >= 4 and len(np.unique(ends[:, 0])) == 1 and min(np.bincount(ends[:, 1], minlength=2)) >= 2


def _decided(game: Game, history: History) -> NDArray[np.int64]:
    """Returns the winner and the last mover of each decided game, `[E, 2]`."""
    total = np.zeros(len(history[0].live))
    last = np.zeros(len(total), np.int64)
    for moment in history:
        mover = game.to_play(moment.state)
        total += np.where(moment.live, outcome_for(0, game.reward(moment.following), mover), 0.0)
        last = np.where(moment.live, mover, last)
    decided = total != 0
    return np.stack([np.where(total[decided] > 0, 0, 1), last[decided]], axis=1)


def _played(game: Game, seeds: NDArray[np.uint64]) -> History:
    """Returns a record of random games."""
    history: History = []
    state = game.init(len(seeds), seeds)
    while (live := ~game.terminal(state)).any():
        weights = np.where(live[:, None], move_weights(game, state), 1.0)
        action = draws.choose(draws.fold_in(seeds, len(history)), weights)
        following = game.step(state, action)
        history.append(Moment(state, live, action, following))
        state = following
        if len(history) == 1000:
            break
    return history


def mover_unseen(game: Game, history: History) -> None:
    """Finds observations of owned pieces from which the mover cannot be told, since they do not turn with the turn."""
    _look_alike(game, history)
    seen = [game.observe(moment.state).reshape(len(moment.live), -1).astype(np.float32) for moment in history]
    movers = [game.to_play(moment.state) for moment in history]
    if not _owned(game, history) or _told_directly(seen, movers, history):
        return
    # seen by the mover, a position looks more like the one two moves before than like the last; the first moves of all
    # say little, as there is nothing yet to change places
    next_move = next_own = 0
    for t in range(2, len(history) - 2):
        rows = history[t + 2].live & (movers[t] != movers[t + 1]) & (movers[t] == movers[t + 2])
        next_move += int((seen[t][rows] != seen[t + 1][rows]).sum())
        next_own += int((seen[t][rows] != seen[t + 2][rows]).sum())
    if next_own and next_move <= next_own:
        raise GameError(
            "observe must tell the mover: show the mover's own side first whoever moves, or add a plane that says who "
            "moves; here the sides keep their places when the turn passes"
        )


def _look_alike(game: Game, history: History) -> None:
    """Finds two positions that look the same to different movers but do not play the same."""
    known: dict[bytes, tuple[int, bytes]] = {}
    for step, moment in enumerate(history):
        legal, movers = game.legal(moment.state), game.to_play(moment.state)
        observed = game.observe(moment.state)
        for row in np.flatnonzero(moment.live):
            found = int(movers[row]), legal[row].tobytes()
            mover, moves = known.setdefault(observed[row].tobytes(), found)
            if mover != found[0] and moves != found[1]:
                raise GameError(
                    "observe must tell the mover: one observation is shown to both players, whose legal moves differ: "
                    f"{step=}, row {row}"
                )


def _owned(game: Game, history: History) -> bool:
    """Returns whether observations look like two players' pieces: planes that never overlap, or both signs."""
    seen = np.concatenate([game.observe(moment.state)[moment.live] for moment in history]).astype(np.float32)
    if (seen > 0).any() and (seen < 0).any() and np.array_equal(np.unique(np.abs(seen)), [0, 1]):
        return True
    if seen.ndim < 3 or seen.shape[1] < 2:
        return False
    planes = seen.any(axis=tuple(range(2, seen.ndim))).any(axis=0)
    return bool(planes.sum() >= 2 and ((seen != 0).sum(axis=1) <= 1).all())


def _told_directly(seen: list[NDArray[np.float32]], movers: list[NDArray[np.int64]], history: History) -> bool:
    """Returns whether some entry has one value whenever one player moves, and another whenever the other does."""
    whole = np.concatenate([rows[moment.live] for rows, moment in zip(seen, history, strict=True)])
    mover = np.concatenate([rows[moment.live] for rows, moment in zip(movers, history, strict=True)])
    one, other = whole[mover == 0], whole[mover == 1]
    if not len(one) or not len(other):
        return True
    constant = (one == one[0]).all(axis=0) & (other == other[0]).all(axis=0)
    return bool((constant & (one[0] != other[0])).any())


def luck_in_the_state(game: Game, seeds: NDArray[np.uint64], max_steps: int = 64) -> None:
    """Finds luck that is decided before it happens: positions that look alike, and part after the same move."""
    state = game.init(len(seeds), seeds)
    for step in range(max_steps):
        live = ~game.terminal(state)
        if not live.any():
            return
        weights = move_weights(game, state)
        # one draw for all games: those with the same choice make the same move
        action = draws.choose(
            np.full(len(seeds), draws.fold_in(seeds[:1], step)[0]), np.where(live[:, None], weights, 1)
        )
        following = game.step(state, action)
        before, after = game.observe(state), game.observe(following)
        known: dict[bytes, bytes] = {}
        for row in np.flatnonzero(live):
            key = before[row].tobytes() + weights[row].tobytes() + bytes([action[row] % 256, action[row] // 256 % 256])
            if known.setdefault(key, after[row].tobytes()) != after[row].tobytes():
                raise GameError(
                    "luck must not be drawn from the state: games that look alike part after the same move, so a "
                    f"search sees what will be drawn; give the game chance(state): {step=}, row {row}"
                )
        state = following
