"""How a position is shown: which cells hold whose stones, and what an action means on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ai.game import Game
from ai.game.protocol import State


@dataclass(frozen=True)
class View:
    """What a page needs to draw a game.

    Args:
        kind: `'cells'` where an action is a cell, `'columns'` where it is a column, `'text'` for all other games, which
            are shown as they render themselves.
        height: of the board; 0 for text.
        width: of the board; 0 for text.
        passes: whether the last action, after those of the cells, passes.
    """

    kind: Literal["cells", "columns", "text"]
    height: int = 0
    width: int = 0
    passes: bool = False


def view_of(game: Game) -> View:
    """Returns how a game can be shown, told by its observations: two planes of stones that stay where they are put."""
    shape = game.observation_shape
    if len(shape) != 3 or shape[0] != 2:
        return View("text")
    _, height, width = shape
    cells, actions = height * width, game.num_actions
    if actions in (cells, cells + 1):
        view = View("cells", height, width, actions == cells + 1)
    elif actions == width:
        view = View("columns", height, width)
    else:
        return View("text")
    return view if _stones_stay(game) else View("text")


def cells_of(game: Game, state: State) -> list[list[int]]:
    """Returns whose stone lies on each cell of one position, `[1]`: 0 free, 1 the first player's, 2 the other's."""
    own, other = game.observe(state)[0] > 0
    mine, theirs = (1, 2) if int(game.to_play(state)[0]) == 0 else (2, 1)
    rows: list[list[int]] = np.where(own, mine, np.where(other, theirs, 0)).tolist()
    return rows


def as_text(game: Game, state: State) -> str:
    """Returns one position as the game renders it, or its fields."""
    render: Any = getattr(game, "render", None)
    return str(render(state)) if render is not None else str(state[0])


def _stones_stay(game: Game) -> bool:
    """Whether no stone moves in a few moves: boards that are turned for the other player would seem to jump."""
    state = game.init(1)
    for move in range(6):
        before = np.array(cells_of(game, state)) > 0
        legal = np.flatnonzero(game.legal(state)[0])
        state = game.step(state, legal[[(7 * move) % len(legal)]])
        if (before & (np.array(cells_of(game, state)) == 0)).any():
            return False
        if game.terminal(state)[0]:
            break
    return True
