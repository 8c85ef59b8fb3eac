"""Any Gymnasium environment with discrete actions, played by the batch like a game.

Such an environment cannot be copied, so its rules cannot be searched: a search of it needs a learned model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.arguments import check_amount, check_instance_of_gymnasium, check_made, legal_of
from ai.game.protocol import Actions, Seed, State, check_actions, illegal_action

_INSTALL = "GymnasiumGame needs gymnasium: install it with pip install 'packages/ai-game[gym]'"


class GymnasiumGame:
    """One player in a Gymnasium environment; a state is what was last seen of one of its instances.

    Only the newest state of an instance can be stepped: `game.copyable` is False. Instances are made when they are
    needed and used again once their episode is over or was given back by `release`; `close`, or the end of the game
    itself, closes them all.

    Frames, boxes of uint8, are shown as they are, in bytes; other boxes as float32; anything else that Gymnasium can
    flatten (discrete, dict, tuple, multi-binary) as a flat vector. Where an environment tells `info["action_mask"]`,
    those are the legal actions.

    Args:
        environment: a registered name, or a function that makes an instance; names under `ALE/` are registered first.
        discount: what a later reward is worth a step earlier.
        options: passed to `gymnasium.make`, where a name is given.

    Raises:
        ImportError: gymnasium is not installed.
        TypeError: `environment` is neither a name nor a function, or makes no environment; or actions are not discrete,
            or observations have no fixed size.
        ValueError: there are options for a function, which would not be given them.

    >>> game = GymnasiumGame("CartPole-v1")
    >>> state = game.step(game.init(2, seed=0), np.array([0, 1]))
    >>> game.observe(state).shape, game.reward(state)
    ((2, 4), array([1., 1.]))
    """

    num_players = 1
    copyable = False

    def __init__(self, environment: str | Callable[[], Any], *, discount: float = 0.997, **options: Any) -> None:
        check_amount(0, 1, above=True, discount=discount)
        check_made(environment, options)
        self._environment, self._options, self.discount = environment, options, discount
        spaces, first = _gymnasium().spaces, self._make()
        check_instance_of_gymnasium(first)
        actions, seen = first.action_space, first.observation_space
        if not isinstance(actions, spaces.Discrete):
            first.close()
            raise TypeError(f"environment must have discrete actions, got {actions}")
        self._space = None if isinstance(seen, spaces.Box) else seen
        box = seen if self._space is None else spaces.flatten_space(seen)
        if not isinstance(box, spaces.Box):
            first.close()
            raise TypeError(f"environment must show something of a fixed size, got {seen}")
        self._first_action = int(actions.start)
        self.num_actions = int(actions.n)
        self.observation_shape: tuple[int, ...] = tuple(box.shape)
        self.dtype: np.dtype[Any] = np.dtype(
            [
                ("seen", "u1" if box.dtype == np.uint8 else "f4", self.observation_shape),
                ("allowed", "?", (self.num_actions,)),
                ("slot", "i8"),
                ("tick", "i8"),
                ("reward", "f8"),
                ("over", "i1"),
                ("cut", "i1"),
            ],
            align=True,
        )
        self._own([first])

    def _own(self, instances: list[Any]) -> None:
        self._pool: list[Any] = instances
        self._ticks = [0] * len(instances)
        self._free = list(range(len(instances)))
        self._close = weakref.finalize(self, _close_all, self._pool)

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Resets `batch` instances; row `b` is seeded by `row_seeds(seed, batch)[b]`."""
        state = np.zeros(batch, self.dtype)
        for row, own in enumerate(draws.row_seeds(seed, batch)):
            if not self._free:
                self._pool.append(self._make())
                self._ticks.append(0)
                self._free.append(len(self._pool) - 1)
            slot = self._free.pop()
            seen, info = self._pool[slot].reset(seed=int(own % np.uint64(1 << 31)))
            self._note(state[row], slot, seen, info)
        return state

    def step(self, state: State, action: Actions) -> State:
        """Returns the states after `action[B]`.

        Raises:
            ValueError: an action is illegal; or a state is not the newest of its instance, which therefore cannot go on
                from it; or the environment's mask is none of its actions, or allows none while the episode goes on.
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
            if not state["allowed"][row, action[row]]:
                raise illegal_action(action, int(row))
        if len(np.unique(state["slot"][live])) < len(live):
            raise ValueError("state must hold each environment once: Gymnasium environments cannot be copied")
        out = state.copy()
        out["reward"] = 0
        for row in live:
            slot = int(state["slot"][row])
            seen, reward, ended, cut, info = self._pool[slot].step(int(action[row]) + self._first_action)
            out[row]["reward"], out[row]["over"], out[row]["cut"] = reward, ended or cut, cut and not ended
            self._note(out[row], slot, seen, info)
            if ended or cut:
                self._free.append(slot)
        return out

    def release(self, state: State) -> None:
        """Gives back the instances of games that nobody will go on with; later states of theirs are refused."""
        for slot, tick, over in zip(state["slot"], state["tick"], state["over"], strict=True):
            if not over and tick > 0 and slot < len(self._pool) and self._ticks[slot] == tick:
                self._ticks[slot] += 1
                self._free.append(int(slot))

    def close(self) -> None:
        """Closes every instance; the game can be begun anew."""
        self._close()
        self._own([])

    def observe(self, state: State) -> NDArray[Any]:
        """Returns what was seen last, `[B, *observation_shape]`, float32, or uint8 of frames."""
        return state["seen"].copy()

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns `[B, A]`: what the environment allows, all actions unless it says; none once the episode is over."""
        legal: NDArray[np.bool_] = state["allowed"] & (state["over"] == 0)[:, None]
        return legal

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
            if self._environment.startswith("ALE/"):
                _register_atari()
            return _gymnasium().make(self._environment, **self._options)
        return self._environment()

    def _note(self, row: np.void, slot: int, seen: Any, info: dict[str, Any]) -> None:
        """Writes what an instance shows into a state, which tells whether its episode is over."""
        self._ticks[slot] += 1
        row["slot"], row["tick"] = slot, self._ticks[slot]
        row["seen"] = seen if self._space is None else _gymnasium().spaces.flatten(self._space, seen)
        if info.get("action_mask") is None or row["over"]:
            row["allowed"] = True
            return
        row["allowed"] = legal_of(info, (self.num_actions,))
        if not row["allowed"].any():
            raise ValueError("info['action_mask'] must allow an action while the episode goes on, got zeros")

    def __getstate__(self) -> dict[str, Any]:
        """Instances stay behind: a copy makes its own."""
        return {name: value for name, value in self.__dict__.items() if name not in _OWNED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own([])


_OWNED = ("_pool", "_ticks", "_free", "_close")


def _close_all(instances: list[Any]) -> None:
    while instances:
        instances.pop().close()


def _register_atari() -> None:
    try:
        import ale_py
    except ImportError as error:
        raise ImportError(_INSTALL.replace("gymnasium:", "ale-py for Atari's games:")) from error
    _gymnasium().register_envs(ale_py)


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return gymnasium
