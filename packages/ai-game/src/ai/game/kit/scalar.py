"""A game written for one row, as small functions; all that the library needs is made of them.

With numba they are compiled into the batch's functions here and into the search's walk (`ai.game.search.expand`);
without, the same functions run by numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import draws, fast
from ai.game.arguments import check_count
from ai.game.protocol import Actions, Seed, State, check_actions, illegal_action

_OF_THE_BATCH = ("step", "observe", "legal", "terminal", "reward", "to_play")


class ScalarGame:
    """Extend it: `num_actions`, `observation_shape`, `dtype`, and three or four functions of one state, static methods.

    A state `s` is read and written by field, `s["board"]`. The dtype has the fields `player`, `over` and `reward`,
    which `play_row` sets, besides the game's own; of more than two players `reward` has a place for each, such as
    `("reward", "f4", 3)`. The functions may call others, and read tables and numbers, which count as they are when the
    game is first used; they take numbers, arrays and loops, as numba does. What they write to is all zeros before. A
    subclass may write a function of the batch itself, such as `observe`; then its search plays by those, slower.

    - `start_row(s, luck)`: sets up a state of zeros; `luck` is a uint64 of this row's own. May be left out.
    - `play_row(s, action)`: plays a legal action.
    - `legal_row(s, out)`: writes `out [A]` where play goes on.
    - `observe_row(s, out)`: writes `out [*observation_shape]`.
    - `chance_row(s, out)`: of games with luck: writes the probabilities `out [A]` where chance moves. May be left out.

    Attributes:
        branch_free: whether the functions work on all rows at once as they do on one: no branch and no loop depends on
            a state. Then they run at numpy's speed where numba is not.

    Example:
        >>> class Count(ScalarGame):
        ...     '''Who says 10 wins; one may add 1 or 2.'''
        ...     num_actions, observation_shape = 2, (11,)
        ...     dtype = np.dtype([("sum", "i4"), ("player", "i1"), ("over", "i1"), ("reward", "f4")])
        ...     @staticmethod
        ...     def play_row(s, action):
        ...         s["sum"] += action + 1
        ...         s["player"] = 1 - s["player"]
        ...         s["over"] = s["reward"] = s["sum"] == 10
        ...     @staticmethod
        ...     def legal_row(s, out):
        ...         out[0] = True
        ...         out[1] = s["sum"] < 9
        ...     @staticmethod
        ...     def observe_row(s, out):
        ...         out[s["sum"]] = 1
        >>> game = Count()
        >>> game.step(game.init(2), np.array([0, 1]))["sum"]
        array([1, 2], dtype=int32)
    """

    num_players = 2
    num_actions: int
    discount = 1.0
    observation_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    branch_free = False

    @staticmethod
    def start_row(s: Any, luck: Any) -> None:
        """Leaves the state all zeros."""

    @staticmethod
    def play_row(s: Any, action: Any) -> None:
        """Plays a legal action."""
        raise NotImplementedError

    @staticmethod
    def legal_row(s: Any, out: Any) -> None:
        """Writes which actions are legal."""
        raise NotImplementedError

    @staticmethod
    def observe_row(s: Any, out: Any) -> None:
        """Writes what the player to move sees."""
        raise NotImplementedError

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Returns `batch` starting states."""
        check_count(0, batch=batch)
        state = np.zeros(batch, self.dtype)
        if type(self).start_row is not ScalarGame.start_row:
            self._all["start"](state, draws.row_seeds(seed, batch))
        return state

    def step(self, state: State, action: Actions) -> State:
        """Returns the states after `action[B]`.

        Raises:
            ValueError: an action is illegal.
        """
        action = check_actions(action, len(state), self.num_actions)
        out = np.empty_like(state)
        if self._at_once:
            row = self._step_at_once(state, action, out)
        else:
            made = self._all
            row = made["step"](state, action, out, np.empty(self.num_actions, np.bool_), made["nothing"])
        if row >= 0:
            raise illegal_action(action, row)
        return out

    def observe(self, state: State) -> NDArray[np.float32]:
        """Returns what the players to move see, `[B, *observation_shape]`."""
        out = np.zeros((len(state), *self.observation_shape), np.float32)
        if self._at_once:
            self.observe_row(state, np.moveaxis(out, 0, -1))
        else:
            self._all["observe"](state, out)
        return out

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns which actions are legal, `[B, A]`."""
        out = np.zeros((len(state), self.num_actions), np.bool_)
        if self._at_once:
            self.legal_row(state, out.T)
            out &= (state["over"] == 0)[:, None]
        else:
            self._all["legal"](state, out)
        return out

    def terminal(self, state: State) -> NDArray[np.bool_]:
        """Returns which games are over, `[B]`."""
        over: NDArray[np.bool_] = state["over"] != 0
        return over

    def reward(self, state: State) -> NDArray[np.float64]:
        """Returns what the last move earned who made it, `[B]`."""
        return state["reward"].astype(np.float64)

    def to_play(self, state: State) -> NDArray[np.int64]:
        """Returns who moves next, `[B]`."""
        return state["player"].astype(np.int64)

    @property
    def rules_by_row(self) -> bool:
        """Whether the functions of one state are all the rules: no subclass has functions of the batch of its own."""
        return all(getattr(type(self), name) is getattr(ScalarGame, name) for name in _OF_THE_BATCH)

    @property
    def _at_once(self) -> bool:
        return self.branch_free and not fast.available()

    def _step_at_once(self, state: State, action: Actions, out: State) -> int:
        """Plays all rows by numpy; returns the first row whose action is illegal, else -1."""
        live = state["over"] == 0
        illegal = live & ~self.legal(state)[np.arange(len(state)), action]
        if illegal.any():
            return int(illegal.argmax())
        played = state[live]
        self.play_row(played, action[live])
        out[live], out[~live] = played, state[~live]
        out["reward"][~live] = 0
        return -1

    @property
    def _all(self) -> dict[str, Any]:
        """The functions over all rows."""
        made: dict[bool, dict[str, Any]] = self.__dict__.setdefault("_made", {})
        if (compiled := fast.available()) not in made:
            play, legal, observe = self.play_row, self.legal_row, self.observe_row
            made[compiled] = {
                "start": fast.bound(_start, start_row=self.start_row),
                "step": fast.bound(_step, play_row=play, legal_row=legal),
                "legal": fast.bound(_legal, legal_row=legal),
                "observe": fast.bound(_observe, observe_row=observe),
                "nothing": np.zeros(1, self.dtype),
            }
            if hasattr(self, "chance_row"):
                made[compiled]["chance"] = fast.bound(_legal, legal_row=self.chance_row)
        return made[compiled]

    def __getstate__(self) -> dict[str, Any]:
        """What was compiled stays behind."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


class ScalarChanceGame(ScalarGame):
    """A `ScalarGame` with luck, whose `chance_row` tells how likely each outcome is where chance moves."""

    @staticmethod
    def chance_row(s: Any, out: Any) -> None:
        """Writes the probability of each outcome; nothing where a player moves."""
        raise NotImplementedError

    def chance(self, state: State) -> NDArray[np.float64]:
        """Returns the probability of each outcome, `[B, A]`; zeros where a player moves or the game is over."""
        out = np.zeros((len(state), self.num_actions))
        self._all["chance"](state, out)
        return out


# The names of rules are free in what follows; `fast.bound` puts a game's own in their places.


def _start(state, luck):  # type: ignore[no-untyped-def]
    for b in range(state.shape[0]):
        start_row(state[b], luck[b])  # type: ignore[name-defined]  # noqa: F821


def _step(state, action, out, scratch, nothing):  # type: ignore[no-untyped-def]
    for b in range(state.shape[0]):
        out[b] = state[b]
        s = out[b]
        if s["over"] != 0:
            s["reward"] = nothing[0]["reward"]  # a number, or one for each player
        else:
            for a in range(scratch.shape[0]):
                scratch[a] = False
            legal_row(s, scratch)  # type: ignore[name-defined]  # noqa: F821
            if not scratch[action[b]]:
                return b
            play_row(s, action[b])  # type: ignore[name-defined]  # noqa: F821
    return -1


def _legal(state, out):  # type: ignore[no-untyped-def]
    for b in range(state.shape[0]):
        if state[b]["over"] == 0:
            legal_row(state[b], out[b])  # type: ignore[name-defined]  # noqa: F821


def _observe(state, out):  # type: ignore[no-untyped-def]
    for b in range(state.shape[0]):
        observe_row(state[b], out[b])  # type: ignore[name-defined]  # noqa: F821
