"""Whether the sides from which a game looks the same turn its policy as they turn what is seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.kit.mistakes import GameError, History
from ai.game.protocol import State, SymmetricGame, move_weights


def unlike_symmetries(game: SymmetricGame, history: History, seeds: NDArray[np.uint64], max_steps: int = 64) -> None:
    """Finds symmetries that turn the board one way and the policy another.

    The turned game is played beside its own, where its start looks the same from that side; and two sides one after the
    other are held against the side that shows what they show.
    """
    if game.num_symmetries < 1:
        raise GameError(f"num_symmetries must count the side that changes nothing, got {game.num_symmetries}")
    start = game.init(len(seeds), seeds)
    seen = game.observe(start)
    for side in range(game.num_symmetries):
        turned, places = _turned(game, seen, side)
        unturned = np.arange(game.num_actions, dtype=np.float32)
        if not (np.sort(places, axis=1) == unturned).all():
            raise GameError(f"transform must give each of the policy's entries a place of its own: {side=}")
        if not (places == places[0]).all():
            raise GameError(f"transform must give the policy's entries the same places in every position: {side=}")
        if side == 0 and not ((places == unturned).all() and np.array_equal(turned, seen)):
            raise GameError("transform must change nothing where which is 0")
        # games whose start looks the same from this side can be played from both
        rows = _alike(turned, seen)
        _play_beside(game, start[rows], seeds[rows], side, max_steps)
    _one_after_the_other(game, history)


def _play_beside(game: SymmetricGame, state: State, seeds: NDArray[np.uint64], side: int, max_steps: int) -> None:
    """Plays games and, move by move, the same games seen from `side`."""
    twin = state
    for step in range(max_steps):
        live = ~game.terminal(state)
        state, twin, seeds = state[live], twin[live], seeds[live]
        if not len(state):
            return
        _, places = _turned(game, game.observe(state), side)
        action = draws.choose(draws.fold_in(seeds, 99, step), move_weights(game, state))
        moved = (places == action[:, None]).argmax(axis=1)
        allowed = game.legal(twin)[np.arange(len(twin)), moved]
        if allowed.all():
            state, twin = game.step(state, action), game.step(twin, moved)
            turned, _ = _turned(game, game.observe(state), side)
            alike = _alike(turned, game.observe(twin))
            paid = np.reshape(game.reward(state) == game.reward(twin), (len(state), -1)).all(axis=1)
            allowed = alike & paid & (game.terminal(state) == game.terminal(twin))
        if not allowed.all():
            row = int(allowed.argmin())
            raise GameError(
                "transform must turn the policy as it turns the observation: seen from the side, action "
                f"{action[row]} is {moved[row]}, and there it leads elsewhere: {side=}, {step=}"
            )


def _one_after_the_other(game: SymmetricGame, history: History, most: int = 16) -> None:
    """Finds sides whose boards go together as their policies do not."""
    if not history:
        return
    middle = history[len(history) // 2]
    state = middle.state[middle.live]
    sides = [_turned(game, game.observe(state), side) for side in range(min(game.num_symmetries, most))]
    for first, (board, entries) in enumerate(sides):
        for then in range(len(sides)):
            both, order = _turned(game, board, then)
            placed = entries[:, order[0].astype(np.int64)]
            same = [side for side, (shown, _) in enumerate(sides) if _alike(shown, both).all()]
            if any(np.array_equal(placed, sides[side][1]) for side in same):
                continue
            for side in same:
                if not _lead_alike(game, state, (first, then), placed[0], side, sides[side][1][0]):
                    raise GameError(
                        f"transform must turn the policy as it turns the observation: side {first} and then {then} "
                        f"show what side {side} shows, and put the policy elsewhere: {side=}"
                    )


def _lead_alike(
    game: SymmetricGame,
    state: State,
    turns: tuple[int, int],
    placed: NDArray[np.float32],
    side: int,
    places: NDArray[np.float32],
) -> bool:
    """Returns whether the moves that two ways of turning put in one place do the same, as in a board like itself."""
    for one, other in zip(placed.astype(np.int64), places.astype(np.int64), strict=True):
        legal = game.legal(state)
        if not np.array_equal(legal[:, one], legal[:, other]):
            return False
        played = state[legal[:, one]]
        after, beside = (game.step(played, np.full(len(played), action)) for action in (one, other))
        turned, _ = _turned(game, game.observe(after), turns[0])
        turned, _ = _turned(game, turned, turns[1])
        shown, _ = _turned(game, game.observe(beside), side)
        paid = np.reshape(game.reward(after) == game.reward(beside), (len(played), -1)).all(axis=1)
        if not (_alike(turned, shown) & paid & (game.terminal(after) == game.terminal(beside))).all():
            return False
    return True


def _turned(
    game: SymmetricGame, seen: NDArray[np.float32], side: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns observations from one side, and which action each of a turned policy's entries was, `[B, A]`."""
    number = np.broadcast_to(np.arange(game.num_actions, dtype=np.float32), (len(seen), game.num_actions))
    given = seen.copy(), number.copy()
    turned = game.transform(*given, np.full(len(seen), side))
    if not (np.array_equal(given[0], seen) and np.array_equal(given[1], number)):
        raise GameError(f"transform must not change the arrays it is given: {side=}")
    return turned


def _alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (one == other).all(axis=tuple(range(1, one.ndim)))
    return same
