"""The step of a search that plays the moves of all new edges in one call, compiled from a game's rules for one row.

Any game that has them as `ai.game.kit.scalar.ScalarGame` does is walked so; nothing here knows one by name.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ai.game import fast
from ai.game.protocol import Game
from ai.game.search.tree import Leaf


@runtime_checkable
class RowRules(Game, Protocol):
    """A game that has its rules for one row, and the fields `player`, `over` and `reward` in its states."""

    @property
    def rules_by_row(self) -> bool:
        """Whether they are all its rules: a subclass may have functions of the batch that say otherwise."""

    def play_row(self, s: Any, action: Any) -> None:
        """Plays a legal action."""

    def legal_row(self, s: Any, out: Any) -> None:
        """Writes which actions are legal."""

    def observe_row(self, s: Any, out: Any) -> None:
        """Writes what the player to move sees."""


def row_kernel(game: Game) -> Any:
    """Returns the compiled step of a game, as `expand_rows`; None without numba, or where the rules do not allow it.

    Luck, limits of moves that are not ends and more than two players take the longer way, over the batch's functions.
    """
    if not fast.available() or not isinstance(game, RowRules) or not game.rules_by_row:
        return None
    if hasattr(game, "chance") or hasattr(game, "truncated") or game.num_players > 2:
        return None
    return fast.bound(expand_rows, play_row=game.play_row, legal_row=game.legal_row, observe_row=game.observe_row)


def expand_rows(states, reward, discount, terminal, legal, rows, leaf, seen, live, gamma):  # type: ignore[no-untyped-def]
    """Plays the fresh edges; returns how many lead on, listed in `live [R]` and shown in `seen`, zeros before."""
    # arrays are taken out before the loop, see `walk_numba`; each array that is handed over costs a tenth of a
    # microsecond, so that these are the tree's few that are written
    leaf = Leaf(*leaf)
    leaf_parent, leaf_action, leaf_node, leaf_fresh = leaf.parent, leaf.action, leaf.node, leaf.fresh
    count = 0
    for r in range(rows.shape[0]):
        if not leaf_fresh[r]:
            continue
        b, parent, action, node = rows[r], leaf_parent[r], leaf_action[r], leaf_node[r]
        states[b, node] = states[b, parent]
        s = states[b, node]
        mover = s["player"]
        play_row(s, action)  # type: ignore[name-defined]  # noqa: F821
        over = s["over"] != 0
        reward[b, node] = s["reward"]
        discount[b, node] = 0.0 if over else (gamma if s["player"] == mover else -gamma)
        terminal[b, node] = over
        for a in range(legal.shape[2]):
            legal[b, node, a] = False
        if not over:
            legal_row(s, legal[b, node])  # type: ignore[name-defined]  # noqa: F821
            observe_row(s, seen[count])  # type: ignore[name-defined]  # noqa: F821
            live[count] = r
            count += 1
    return count
