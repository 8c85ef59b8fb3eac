"""Any game of OpenSpiel whose players see everything and take turns, with luck or without, as a batch-first game.

A state is the moves that led to it, outcomes of chance among them, so it can be copied, compared and stored as any
other. OpenSpiel's own objects are remembered by those moves, the least used forgotten first; one that was forgotten is
played again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.arguments import check_count
from ai.game.protocol import Actions, Seed, State, check_actions, illegal_action

_INSTALL = "OpenSpielGame needs OpenSpiel: install it with pip install 'packages/ai-game[open-spiel]'"


class OpenSpielGame:
    """A game of OpenSpiel by its name, for one or two players.

    An observation is OpenSpiel's, with one more plane, or entry where it has no planes, that is 1 where the second
    player moves. Rewards are what a move changed in the players' returns, divided by the largest there can be where
    two play. Games of luck have `chance`.

    Args:
        name: such as 'chess', 'go(board_size=9)' or 'backgammon'.
        max_moves: ends longer games as they stand; None for the longest game that OpenSpiel foresees, luck included.
        keep: how many of its objects are remembered.

    Raises:
        ImportError: OpenSpiel is not installed.
        ValueError: there is no such game, players move at once or do not see everything, or there are more than two.

    >>> game = OpenSpielGame("tic_tac_toe")
    >>> game.reward(game.step(game.init(2), np.array([4, 0])))
    array([0., 0.])
    """

    discount = 1.0

    def __new__(cls, name: str = "", **options: Any) -> OpenSpielGame:
        """Returns a game with `chance` where it has luck."""
        kind = _OpenSpielChanceGame if cls is OpenSpielGame and name and _has_luck(name) else cls
        return super().__new__(kind)

    def __init__(self, name: str, *, max_moves: int | None = None, keep: int = 100_000) -> None:
        check_count(1, keep=keep, **({} if max_moves is None else {"max_moves": max_moves}))
        self.name, self.keep = name, keep
        self._game = game = _load(name)
        kind, pyspiel = game.get_type(), _pyspiel()
        if kind.dynamics != pyspiel.GameType.Dynamics.SEQUENTIAL:
            raise ValueError(f"name must be of a game whose players take turns, those of {name} move at once")
        if kind.information != pyspiel.GameType.Information.PERFECT_INFORMATION:
            raise ValueError(f"name must be of a game whose players see everything, those of {name} do not")
        if kind.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC:
            raise ValueError(f"name must be of a game that tells the probabilities of its luck, {name} does not")
        if game.num_players() > 2:
            raise ValueError(f"name must be of a game for one or two, {name} is for {game.num_players()}")
        if game.num_players() == 2 and kind.utility != pyspiel.GameType.Utility.ZERO_SUM:
            raise ValueError(f"name must be of a game where one's gain is the other's loss, {name} is none")
        self.num_players = game.num_players()
        self.num_actions = max(game.num_distinct_actions(), game.max_chance_outcomes())
        seen = tuple(game.observation_tensor_shape())
        self.observation_shape: tuple[int, ...] = (seen[0] + 1, *seen[1:])
        self.max_moves = max_moves or game.max_game_length() + game.max_chance_nodes_in_history()
        self._unit = max(abs(game.max_utility()), abs(game.min_utility())) if self.num_players == 2 else 1.0
        small = np.int16 if self.num_actions < 1 << 15 else np.int32
        self.dtype: np.dtype[Any] = np.dtype(
            [("moves", small, (self.max_moves,)), ("length", "i4"), ("player", "i1"), ("over", "i1"), ("reward", "f8")],
            align=True,
        )
        self._known: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Returns `batch` starting states; luck, where there is any, is chance's, so `seed` changes nothing."""
        return np.zeros(batch, self.dtype)

    def step(self, state: State, action: Actions) -> State:
        """Returns the states after `action[B]`, a player's or chance's.

        Raises:
            ValueError: an action is illegal.
        """
        action, out = check_actions(action, len(state), self.num_actions), state.copy()
        out["reward"] = 0
        for row in np.flatnonzero(state["over"] == 0):
            before, length, mover = self._object(state[row]), int(state["length"][row]), int(state["player"][row])
            if int(action[row]) not in before.legal_actions():
                raise illegal_action(action, int(row))
            after = before.clone()
            after.apply_action(int(action[row]))
            new = out[row]
            new["moves"][length], new["length"] = action[row], length + 1
            new["over"] = after.is_terminal() or length + 1 == self.max_moves
            new["reward"] = (after.returns()[mover] - before.returns()[mover]) / self._unit
            new["player"] = after.current_player() if after.current_player() >= 0 else mover
            self._remember(new, after)
        return out

    def observe(self, state: State) -> NDArray[np.float32]:
        """Returns what the players to move see, `[B, *observation_shape]`; the last plane tells the second player."""
        out = np.empty((len(state), *self.observation_shape), np.float32)
        for row, s in enumerate(state):
            out[row, :-1] = np.reshape(self._object(s).observation_tensor(int(s["player"])), out[row, :-1].shape)
        out[:, -1] = state["player"].reshape(-1, *[1] * (out.ndim - 2))
        return out

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns which actions are legal, or can happen, `[B, A]`."""
        out = np.zeros((len(state), self.num_actions), bool)
        for row in np.flatnonzero(state["over"] == 0):
            out[row, self._object(state[row]).legal_actions()] = True
        return out

    def terminal(self, state: State) -> NDArray[np.bool_]:
        """Returns which games are over, `[B]`."""
        over: NDArray[np.bool_] = state["over"] != 0
        return over

    def reward(self, state: State) -> NDArray[np.float64]:
        """Returns what the last move changed in the returns of who made it, `[B]`."""
        return state["reward"].astype(np.float64)

    def to_play(self, state: State) -> NDArray[np.int64]:
        """Returns who moves next, `[B]`; where chance moves, or the game is over, who moved last."""
        return state["player"].astype(np.int64)

    def render(self, state: State, row: int = 0) -> str:
        """Returns one state as OpenSpiel shows it."""
        return str(self._object(state[row]))

    def _object(self, state: np.void) -> Any:
        """Returns OpenSpiel's own state, which nobody may change."""
        moves = state["moves"][: state["length"]]
        with self._lock:
            if (found := self._known.get(key := moves.tobytes())) is not None:
                self._known.move_to_end(key)
                return found
        found = self._game.new_initial_state()
        for move in moves:
            found.apply_action(int(move))
        self._remember(state, found)
        return found

    def _remember(self, state: np.void, known: Any) -> None:
        with self._lock:
            self._known[state["moves"][: state["length"]].tobytes()] = known
            if len(self._known) > self.keep:
                self._known.popitem(last=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.name, self.max_moves, self.keep)


class _OpenSpielChanceGame(OpenSpielGame):
    """A game of OpenSpiel with luck."""

    def chance(self, state: State) -> NDArray[np.float64]:
        """Returns the probability of each outcome, `[B, A]`; zeros where a player moves or the game is over."""
        out = np.zeros((len(state), self.num_actions))
        for row in np.flatnonzero(state["over"] == 0):
            known = self._object(state[row])
            if known.is_chance_node():
                for outcome, probability in known.chance_outcomes():
                    out[row, outcome] = probability
        return out


def _made(name: str, max_moves: int, keep: int) -> OpenSpielGame:
    return OpenSpielGame(name, max_moves=max_moves, keep=keep)


def _has_luck(name: str) -> bool:
    return bool(_load(name).get_type().chance_mode != _pyspiel().GameType.ChanceMode.DETERMINISTIC)


def _load(name: str) -> Any:
    pyspiel = _pyspiel()
    try:
        return pyspiel.load_game(name)
    except pyspiel.SpielError as error:
        raise ValueError(f"name must be of a game of OpenSpiel, got {name!r}") from error


def _pyspiel() -> Any:
    try:
        import pyspiel  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return pyspiel
