"""Games of `ai.game` as environments."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.arguments import check_count, check_flag
from ai.game.environments.protocol import BEGIN, Seen, Step
from ai.game.protocol import Game, State, check_game, outcome_for

_LUCK = 1 << 32  # apart from what a game folds into its seed


class GameEnvironments:
    """N games side by side, stepped by one call; with two players, one policy plays both sides.

    Where luck moves, it is drawn by the odds of the game, and seen is what follows: a step goes from move to move.

    Args:
        game: the rules; it must be one that can be copied.
        num: N.
        mask: whether `legal` is seen; None means where there are two players, who then also see `to_play`, or luck,
            whose outcomes are among the numbers of actions.

    Raises:
        ValueError: `num` is below 1.
        TypeError: the game cannot be copied.

    >>> from ai.game import CartPole
    >>> env = GameEnvironments(CartPole(), 2)
    >>> env.reset(seed=0).shape
    (2, 4)
    >>> obs, reward, ended, cut = env.step(np.array([0, 1]))
    >>> reward
    array([1., 1.], dtype=float32)
    """

    def __init__(self, game: Game, num: int, *, mask: bool | None = None) -> None:
        check_count(1, num=num)
        check_flag(**({} if mask is None else {"mask": mask}))
        shown = ("num_players", "num_actions", "observation_shape", "observe")
        check_game(game, *shown, "init", "step", "terminal", "reward")
        if not getattr(game, "copyable", True):
            raise TypeError(
                f"game must be one that can be copied, {type(game).__name__} is not: use GymnasiumEnvironments"
            )
        if game.num_players > 2:
            raise ValueError(f"game must be for one or two players, {type(game).__name__} is for {game.num_players}")
        self.game, self.num = game, num
        self.num_actions, self.observation_shape = game.num_actions, game.observation_shape
        self._lucky = hasattr(game, "chance")
        self._mask = game.num_players == 2 or self._lucky if mask is None else mask
        self._cut = getattr(game, "truncated", None)
        self._over = np.zeros(0, bool)  # of each game; of none before `reset`

    def reset(self, seed: int) -> Seen:
        """Begins N games."""
        self._seeds, self._number = draws.row_seeds(seed, self.num), np.zeros(self.num, np.int64)
        self._draws = np.zeros(self.num, np.int64)  # of luck, in this game
        self._state, _ = self._after_luck(self.game.init(self.num, draws.fold_in(self._seeds, self._number)))
        self._over = self.game.terminal(self._state)
        return self._seen()

    def step(self, action: NDArray[Any]) -> Step:
        """Makes a move in every game that is not over, and begins the others anew."""
        over, game = self._begun(), self.game
        state = game.step(self._state, action)
        if over.any():
            self._number[over] += 1
            self._draws[over] = 0
            state[over] = game.init(int(over.sum()), draws.fold_in(self._seeds[over], self._number[over]))
        reward: NDArray[np.floating] = game.reward(state)
        if self._lucky:
            mover = game.to_play(self._state)
            state, paid = self._after_luck(state)
            reward = reward + outcome_for(mover, paid, np.zeros(self.num, np.int64))
        self._state, self._over = state, game.terminal(state)
        cut = np.zeros(self.num, bool) if self._cut is None else self._cut(state)
        return self._seen(), np.where(over, 0, reward).astype(np.float32), self._over & ~cut, cut

    def state_dict(self) -> dict[str, Any]:
        """Returns all games as bytes."""
        self._begun()
        raw = np.ascontiguousarray(self._state).view(np.uint8).reshape(self.num, -1).copy()
        seeds = self._seeds.view(np.int64).copy()
        return {"state": raw, "seeds": seeds, "number": self._number.copy(), "draws": self._draws.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Seen:
        """Goes on where `state_dict` was taken.

        Raises:
            ValueError: the state is of another number of games, or of another game.
        """
        shape = (self.num, self.game.dtype.itemsize)
        if np.shape(state["state"]) != shape:
            raise ValueError(f"state must be of {shape[0]} games of {shape[1]} bytes, got {np.shape(state['state'])}")
        self._seeds, self._number = np.array(state["seeds"]).view(np.uint64), np.array(state["number"])
        self._state = np.ascontiguousarray(state["state"]).view(self.game.dtype).reshape(self.num).copy()
        # a state that an older version wrote is of a game without luck
        self._draws = np.array(state.get("draws", np.zeros(self.num, np.int64)))
        self._over = self.game.terminal(self._state)
        return self._seen()

    def _after_luck(self, state: State) -> tuple[State, NDArray[np.float64]]:
        """Returns the states where a player moves or all is over, and what luck paid player 0 on the way."""

        def luck(lucky: NDArray[np.bool_]) -> NDArray[np.uint64]:
            seeds = draws.fold_in(self._seeds[lucky], self._number[lucky], _LUCK, self._draws[lucky])
            self._draws[lucky] += 1
            return seeds

        return draws.after_luck(self.game, state, luck)

    def _begun(self) -> NDArray[np.bool_]:
        """Returns which games are over.

        Raises:
            RuntimeError: none has begun.
        """
        if not len(self._over):
            raise RuntimeError(BEGIN)
        return self._over

    def _seen(self) -> Seen:
        game, state = self.game, self._state
        obs = game.observe(state)
        if not self._mask and game.num_players == 1:
            return obs
        seen: dict[str, NDArray[Any]] = {"obs": obs}
        if self._mask:
            seen["legal"] = game.legal(state)
        if game.num_players == 2:
            seen["to_play"] = game.to_play(state)
        return seen
