"""CartPole with the rules known: a pole is kept upright by pushing its cart left or right.

Source: Barto, Sutton, Anderson 1983, "Neuronlike adaptive elements"; constants, Euler step and limits as in
Gymnasium's CartPole-v1, with which it agrees number for number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.arguments import check_amount, check_count
from ai.game.protocol import Actions, Seed, State, check_actions

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH, FORCE, TIME_STEP = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
ANGLE_LIMIT, POSITION_LIMIT = 12 * 2 * np.pi / 360, 2.4


class CartPole:
    """One player, reward 1 a step, over when the pole falls, the cart leaves or `max_steps` are done.

    Args:
        max_steps: length of a perfect game.
        discount: what a later reward is worth a step earlier.

    >>> game = CartPole()
    >>> game.reward(game.step(game.init(2, seed=0), np.array([0, 1])))
    array([1., 1.])
    """

    num_actions = 2
    num_players = 1
    dtype: np.dtype[Any] = np.dtype([("body", "f8", 4), ("steps", "i4"), ("over", "i1"), ("reward", "f4")], align=True)
    observation_shape: tuple[int, ...] = (4,)

    def __init__(self, *, max_steps: int = 500, discount: float = 0.997) -> None:
        check_count(1, max_steps=max_steps)
        check_amount(0, 1, above=True, discount=discount)
        self.max_steps = max_steps
        self.discount = discount

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Returns carts and poles near the middle: position, speed, angle and spin each within ±0.05."""
        check_count(0, batch=batch)
        state = np.zeros(batch, self.dtype)
        state["body"] = draws.uniform(draws.row_seeds(seed, batch), 4) * 0.1 - 0.05
        return state

    def step(self, state: State, action: Actions) -> State:
        """Returns the states 20 ms after a push to the left (0) or right (1)."""
        action = check_actions(action, len(state), self.num_actions)
        live = state["over"] == 0
        position, speed, angle, spin = state["body"].T
        cosine, sine = np.cos(angle), np.sin(angle)
        total_mass = CART_MASS + POLE_MASS
        moment = POLE_MASS * HALF_LENGTH
        push = (np.where(action == 1, FORCE, -FORCE) + moment * spin**2 * sine) / total_mass
        turn = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cosine**2 / total_mass))
        pull = push - moment * turn * cosine / total_mass
        moved = np.stack(
            [
                position + TIME_STEP * speed,
                speed + TIME_STEP * pull,
                angle + TIME_STEP * spin,
                spin + TIME_STEP * turn,
            ],
            axis=1,
        )
        out = state.copy()
        out["body"] = np.where(live[:, None], moved, state["body"])
        out["steps"] += live
        out["over"] = ~live | _fallen(out) | (out["steps"] >= self.max_steps)
        out["reward"] = live
        return out

    def observe(self, state: State) -> NDArray[np.float32]:
        """Returns `[B, 4]`: position (m), speed (m/s), angle (rad), spin (rad/s)."""
        return state["body"].astype(np.float32)

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns `[B, 2]`: both, until the game is over."""
        return np.repeat((state["over"] == 0)[:, None], 2, axis=1)

    def terminal(self, state: State) -> NDArray[np.bool_]:
        """Returns which games are over, `[B]`."""
        over: NDArray[np.bool_] = state["over"] != 0
        return over

    def truncated(self, state: State) -> NDArray[np.bool_]:
        """Returns which games `max_steps` ended with the pole upright, `[B]`: what is seen does not tell the time."""
        return self.terminal(state) & ~_fallen(state)

    def reward(self, state: State) -> NDArray[np.float64]:
        """Returns 1 for every step, the last included, and 0 once over."""
        return state["reward"].astype(np.float64)

    def to_play(self, state: State) -> NDArray[np.int64]:
        """Returns zeros: there is one player."""
        return np.zeros(len(state), np.int64)


def _fallen(state: State) -> NDArray[np.bool_]:
    body = np.abs(state["body"])
    fallen: NDArray[np.bool_] = (body[:, 0] > POSITION_LIMIT) | (body[:, 2] > ANGLE_LIMIT)
    return fallen
