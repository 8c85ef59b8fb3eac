"""Dynamics that are known: the rules of a game, and an evaluator of its states."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ai.game import draws
from ai.game.protocol import Game, State, chances, check_states, reward_of_each
from ai.game.search.actions import NumberedActions
from ai.game.search.dynamics.evaluated import Evaluated, checked
from ai.game.search.evaluator import Evaluation, NetEvaluator, StateEvaluator, evaluating
from ai.game.search.expand import row_kernel
from ai.game.search.tree import Leaf, Shares, Tree, new_shares

Evaluator = Callable[[Tensor], Evaluation] | StateEvaluator | nn.Module


class Rules:
    """Edges are moves of a game; nodes hold its states."""

    def __init__(self, game: Game, evaluator: Evaluator) -> None:
        self.game = game
        self.num_actions = self.width = game.num_actions
        self.luck = hasattr(game, "chance")
        self._evaluator = NetEvaluator(evaluator) if isinstance(evaluator, nn.Module) else evaluator
        self._on_states = isinstance(evaluator, StateEvaluator)
        self._row_kernel = None if self._on_states else row_kernel(game)
        self._truncated = getattr(game, "truncated", None)
        self._states: State = np.zeros((0, 0), game.dtype)
        self._players = game.num_players
        self.shares: Shares | None = None  # of more than two players
        self.actions = NumberedActions(game.num_actions)

    def begin(self, seeds: NDArray[np.uint64]) -> None:
        """Draws nothing by the seeds of a search."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Returns a context in which a network does not learn."""
        return evaluating(self._evaluator)

    def allocate(self, batch: int, num_nodes: int) -> None:
        """Makes room for one state a node."""
        if self._states.shape != (batch, num_nodes):
            self._states = np.zeros((batch, num_nodes), self.game.dtype)
            self.shares = new_shares(batch, num_nodes, self._players) if self._players > 2 else None

    def root(self, tree: Tree, rows: NDArray[np.int64], state: State, legal: NDArray[np.bool_] | None) -> Evaluated:
        """Puts the roots of `rows` in place and evaluates them."""
        self.check(state)
        where = _whole(rows, tree)
        self._states[where, 0] = state
        allowed = self.game.legal(state)
        tree.legal[where, 0] = allowed if legal is None else allowed & legal
        if self.shares is not None:
            self.shares.mover[rows, 0] = self._mover(state)
        return self._shared(rows, np.zeros(len(rows), np.int64), self._evaluate(rows, state))

    def check(self, state: State) -> None:
        """Refuses states in which no player of this game is to move.

        Raises:
            ValueError: they are of another game, a game is over, or luck moves.
        """
        check_states(self.game, state)
        over = self.game.terminal(state)
        if over.any():
            raise ValueError(f"states must not be over, row {int(over.argmax())} is")
        if (chance := chances(self.game, state)) is not None and chance.any():
            lucky = np.asarray(chance.any(axis=1))
            raise ValueError(f"states must be a player's to move, in row {int(lucky.argmax())} luck moves")

    def check_move(self, tree: Tree, action: NDArray[np.int64]) -> None:
        """Refuses nothing: an action that is illegal leads nowhere."""

    def value(self, state: State) -> NDArray[np.floating]:
        """Returns the evaluator's value of each state, `[B]`; of more than two players each one's, `[B, players]`."""
        return self._evaluate(np.arange(len(state)), state).value

    def expand(self, tree: Tree, rows: NDArray[np.int64], leaf: Leaf) -> Evaluated:
        """Plays the move of each new edge, writes down what the rules say, and evaluates where the game goes on.

        Where a limit of moves cut the game off it is evaluated as well: nothing is played there, but it has a value.
        """
        game = self.game
        if self._row_kernel is not None:
            seen, live = np.zeros((len(rows), *game.observation_shape), np.float32), np.empty(len(rows), np.int64)
            written = tree.reward, tree.discount, tree.terminal, tree.legal
            count = self._row_kernel(self._states, *written, rows, tuple(leaf), seen, live, game.discount)
            if count == 0:
                return self._nothing()
            return Evaluated(live[:count], *self._ask(torch.from_numpy(seen[:count]), count))
        fresh = np.flatnonzero(leaf.fresh)
        if len(fresh) == 0:
            return self._nothing()
        games, parent, action, node = rows[fresh], leaf.parent[fresh], leaf.action[fresh], leaf.node[fresh]
        before = self._states[games, parent]
        state = game.step(before, action)
        self._states[games, node] = state
        over = game.terminal(state)
        # a walk ends where a limit of moves cut the game off, but the position has a value
        cut = self._truncated(state) if self._truncated is not None else np.zeros(len(state), bool)
        chance = chances(game, state)
        # luck takes no time: what follows it is discounted once, for the move before it
        sign = np.where(tree.chance[games, parent], 1.0, game.discount)
        if game.num_players == 2:
            sign[game.to_play(state) != game.to_play(before)] *= -1
        if self.shares is None:
            tree.reward[games, node] = game.reward(state)
        else:
            self.shares.reward[games, node], self.shares.value[games, node] = reward_of_each(game, state), 0.0
            self.shares.mover[games, node] = self._mover(state)
        tree.discount[games, node] = np.where(over & ~cut, 0.0, sign)
        tree.terminal[games, node] = over
        tree.legal[games, node] = game.legal(state)
        live = np.flatnonzero(~over | cut)
        if len(live) == 0:
            return self._nothing()
        if chance is None:
            return self._shared(games[live], node[live], self._evaluate(fresh[live], state[live]))
        tree.chance[games, node] = chance.any(axis=1)
        return self._shared(games[live], node[live], self._evaluate_luck(fresh[live], state[live], chance[live]))

    def _mover(self, state: State) -> NDArray[np.int64]:
        """Returns whose share counts at states: of -1 numpy would make the last player's."""
        mover = self.game.to_play(state)
        if ((mover < 0) | (mover >= self._players)).any():
            raise ValueError(f"{type(self.game).__name__}.to_play must be in [0, {self._players}), got {mover}")
        return mover

    def _shared(self, games: NDArray[np.int64], node: NDArray[np.int64], found: Evaluated) -> Evaluated:
        """Writes what each of more than two players expects at nodes, and returns the mover's share as the value."""
        if self.shares is None:
            return found
        self.shares.value[games, node] = found.value
        return found._replace(value=found.value[np.arange(len(games)), self.shares.mover[games, node]])

    def at_root(self, state: State) -> NDArray[np.bool_]:
        """Returns which of the states are those at the roots, `[B]`."""
        same = np.ones(len(state), bool)
        for name in self.game.dtype.names or ():
            same &= np.reshape(self._states[name][:, 0] == state[name], (len(state), -1)).all(axis=1)
        return same

    def keep(self, kept: NDArray[np.bool_], num_nodes: int) -> None:
        """Moves the nodes that are `kept [B, N]` to the first places, in their order, in room for `num_nodes`."""
        row, old = np.nonzero(kept)
        new = (kept.cumsum(axis=1) - 1)[row, old]
        states = self._states[row, old]
        parts = None if self.shares is None else [array[row, old] for array in self.shares]
        self.allocate(len(kept), num_nodes)
        self._states[row, new] = states
        for array, part in zip(self.shares or (), parts or (), strict=True):
            array[row, new] = part

    def _evaluate(self, rows: NDArray[np.int64], state: State) -> Evaluated:
        if self._on_states:
            outcome = self._evaluator.evaluate(state)  # type: ignore[union-attr]
            return Evaluated(rows, *checked(outcome, len(state), self.num_actions, self._players))
        return Evaluated(rows, *self._ask(torch.from_numpy(self.game.observe(state)), len(state)))

    def _evaluate_luck(self, rows: NDArray[np.int64], state: State, chance: NDArray[np.float64]) -> Evaluated:
        """Evaluates states where luck may move: the first value of such a one is that of an outcome drawn for it.

        What is drawn is told by the state alone; the visits that follow are shared by probability, without any draw.
        """
        game, lucky = self.game, np.asarray(chance.any(axis=1))
        many = self._players > 2
        ahead, factor = state.copy(), np.ones((len(state), 1))
        worth = np.zeros((len(state), self._players if many else 1))
        pending, weights = np.flatnonzero(lucky), chance[lucky]
        while len(pending):
            before = ahead[pending]
            after = game.step(before, draws.choose(draws.digest(before), weights))
            paid = reward_of_each(game, after) if many else game.reward(after)[:, None]
            worth[pending] += factor[pending] * paid
            turned = False if many else game.to_play(after) != game.to_play(before)
            factor[pending] *= (np.where(turned, -1.0, 1.0) * ~game.terminal(after))[:, None]
            ahead[pending] = after
            weights = game.chance(after)  # type: ignore[attr-defined]
            again = np.asarray(weights.any(axis=1))
            pending, weights = pending[again], weights[again]
        _, logits, value = self._evaluate(rows, ahead)
        with np.errstate(divide="ignore"):
            logits = np.where(lucky[:, None], np.log(chance), logits)
        value = worth + factor * np.reshape(value, (len(state), -1))
        return Evaluated(rows, logits, value if many else value[:, 0])

    def _ask(self, observation: Tensor, batch: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        return checked(self._evaluator(observation), batch, self.num_actions, self._players)  # type: ignore[operator]

    def _nothing(self) -> Evaluated:
        return Evaluated(np.zeros(0, np.int64), np.zeros((0, self.num_actions), np.float32), np.zeros(0, np.float32))


def _whole(rows: NDArray[np.int64], tree: Tree) -> NDArray[np.int64] | slice:
    """Returns rows as an index; all of them as a slice, which numpy follows faster."""
    return slice(None) if len(rows) == len(tree.size) else rows
