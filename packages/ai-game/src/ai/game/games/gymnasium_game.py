"""Any Gymnasium environment with discrete actions, played by the batch like a game.

Such an environment cannot be copied, so its rules cannot be searched: a search of it needs a learned model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.protocol import Actions, Seed, State, check_actions

_INSTALL = "GymnasiumGame needs gymnasium: install it with pip install 'packages/ai-game[gym]'"


class GymnasiumGame:
    """One player in a Gymnasium environment; a state is what was last seen of one of its instances.

    Only the newest state of an instance can be stepped: `game.copyable` is False. Instances are made when they are
    needed and used again once their episode is over.

    Args:
        environment: a registered name, or a function that makes an instance.
        discount: what a later reward is worth a step earlier.
        options: passed to `gymnasium.make`.

    Raises:
        ImportError: gymnasium is not installed.
        TypeError: actions are not discrete, or observations are no box of numbers.

    >>> game = GymnasiumGame("CartPole-v1")
    >>> state = game.step(game.init(2, seed=0), np.array([0, 1]))
    >>> game.observe(state).shape, game.reward(state)
    ((2, 4), array([1., 1.]))
    """

    num_players = 1
    copyable = False

    def __init__(self, environment: str | Callable[[], Any], *, discount: float = 0.997, **options: Any) -> None:
        if not 0 < discount <= 1:
            raise ValueError(f"discount must be in (0, 1], got {discount}")
        self._environment, self._options, self.discount = environment, options, discount
        self._pool: list[Any] = []
        self._ticks: list[int] = []
        self._free: list[int] = []
        spaces, first = _gymnasium().spaces, self._make()
        actions, seen = first.action_space, first.observation_space
        if not isinstance(actions, spaces.Discrete):
            raise TypeError(f"environment must have discrete actions, got {actions}")
        if not isinstance(seen, spaces.Box):
            raise TypeError(f"environment must show a box of numbers, got {seen}")
        self._first_action = int(actions.start)
        self.num_actions = int(actions.n)
        self.observation_shape: tuple[int, ...] = tuple(seen.shape)
        self.dtype: np.dtype[Any] = np.dtype(
            [
                ("seen", "f4", self.observation_shape),
                ("slot", "i8"),
                ("tick", "i8"),
                ("reward", "f8"),
                ("over", "i1"),
                ("cut", "i1"),
            ],
            align=True,
        )
        self._pool, self._ticks, self._free = [first], [0], [0]

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Resets `batch` instances; row `b` is seeded by `row_seeds(seed, batch)[b]`."""
        state = np.zeros(batch, self.dtype)
        for row, own in enumerate(draws.row_seeds(seed, batch)):
            if not self._free:
                self._pool.append(self._make())
                self._ticks.append(0)
                self._free.append(len(self._pool) - 1)
            slot = self._free.pop()
            seen, _ = self._pool[slot].reset(seed=int(own % np.uint64(1 << 31)))
            self._ticks[slot] += 1
            state[row]["seen"], state[row]["slot"], state[row]["tick"] = seen, slot, self._ticks[slot]
        return state

    def step(self, state: State, action: Actions) -> State:
        """Returns the states after `action[B]`.

        Raises:
            ValueError: a state is not the newest of its instance, which therefore cannot go on from it.
        """
        action = check_actions(action, len(state), self.num_actions)
        live = np.flatnonzero(state["over"] == 0)
        for row in live:
            slot = int(state["slot"][row])
            if slot >= len(self._pool) or self._ticks[slot] != state["tick"][row]:
                raise ValueError(
                    f"state must be the newest of its environment, row {row} is not: Gymnasium environments cannot be "
                    "copied, so search them with a learned model (Search.learned)"
                )
        if len(np.unique(state["slot"][live])) < len(live):
            raise ValueError("state must hold each environment once: Gymnasium environments cannot be copied")
        out = state.copy()
        out["reward"] = 0
        for row in live:
            slot = int(state["slot"][row])
            seen, reward, ended, cut, _ = self._pool[slot].step(int(action[row]) + self._first_action)
            self._ticks[slot] += 1
            out[row]["seen"], out[row]["tick"], out[row]["reward"] = seen, self._ticks[slot], reward
            out[row]["over"], out[row]["cut"] = ended or cut, cut and not ended
            if ended or cut:
                self._free.append(slot)
        return out

    def observe(self, state: State) -> NDArray[np.float32]:
        """Returns what was seen last, `[B, *observation_shape]`."""
        return state["seen"].astype(np.float32)

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns `[B, A]`: every action, until the episode is over."""
        return np.repeat((state["over"] == 0)[:, None], self.num_actions, axis=1)

    def terminal(self, state: State) -> NDArray[np.bool_]:
        """Returns which episodes are over, cut off ones included, `[B]`."""
        over: NDArray[np.bool_] = state["over"] != 0
        return over

    def truncated(self, state: State) -> NDArray[np.bool_]:
        """Returns which episodes were cut off, by a limit of time, where the environment itself had gone on."""
        cut: NDArray[np.bool_] = state["cut"] != 0
        return cut

    def reward(self, state: State) -> NDArray[np.float64]:
        """Returns what the last action earned, `[B]`."""
        return state["reward"].astype(np.float64)

    def to_play(self, state: State) -> NDArray[np.int64]:
        """Returns zeros: there is one player."""
        return np.zeros(len(state), np.int64)

    def _make(self) -> Any:
        if isinstance(self._environment, str):
            return _gymnasium().make(self._environment, **self._options)
        return self._environment()

    def __getstate__(self) -> dict[str, Any]:
        """Instances stay behind: a copy makes its own."""
        return {**self.__dict__, "_pool": [], "_ticks": [], "_free": []}


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return gymnasium
