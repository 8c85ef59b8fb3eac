"""Masses on a line to be brought to rest in its middle: continuous actions, and an optimum that is known.

Source: Bertsekas 2005, "Dynamic programming and optimal control", volume 1, section 4.1 (linear-quadratic regulator).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEPS = 10
_MOVED = np.array([[1.0, 0.5], [0.0, 1.0]])  # position and velocity half a second on
_PUSHED = np.array([0.125, 0.5])  # what a force of 1 adds to them meanwhile
_COST, _FORCE_COST = np.diag([1.0, 0.1]), 0.5


def _solve() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns how the best force follows from the state, `[STEPS, 2]`, and what is then paid, `[STEPS + 1, 2, 2]`."""
    gains, costs = np.zeros((STEPS, 2)), np.zeros((STEPS + 1, 2, 2))
    for t in reversed(range(STEPS)):
        after = _COST + costs[t + 1]  # a step costs where it leads to
        gains[t] = -(_PUSHED @ after @ _MOVED) / (_FORCE_COST + _PUSHED @ after @ _PUSHED)
        led = _MOVED + np.outer(_PUSHED, gains[t])
        costs[t] = led.T @ after @ led + _FORCE_COST * np.outer(gains[t], gains[t])
    return gains, costs


GAINS, COSTS = _solve()


class PointMass:
    """N masses that a force in [-1, 1] pushes for ten steps; distance, speed and force cost. See `Environments`.

    What is seen is the position, the velocity and the share of the steps that are left.

    Args:
        num: N.
        render_mode: as of Gymnasium's; a picture can be had in any.

    >>> env = PointMass(2)
    >>> env.reset(0).shape, env.step(np.zeros((2, 1)))[1].shape
    ((2, 3), (2,))
    """

    num_actions = None
    action_shape = (1,)
    observation_shape = (3,)

    def __init__(self, num: int, render_mode: str | None = None) -> None:
        self.num = num
        self._rng = np.random.default_rng(0)
        self._state, self._t = np.zeros((num, 2)), 0

    def reset(self, seed: int) -> NDArray[np.float32]:
        """Begins an episode in every row, at rest somewhere in [-1, 1]."""
        self._rng = np.random.default_rng(seed)
        return self._begin()

    def step(
        self, action: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Pushes with `action` `[N, 1]`."""
        cut = np.zeros(self.num, bool)
        if self._t == STEPS:
            return self._begin(), np.zeros(self.num, np.float32), np.zeros(self.num, bool), cut
        force = np.clip(np.asarray(action, np.float64).reshape(self.num), -1, 1)
        self._state = self._state @ _MOVED.T + force[:, None] * _PUSHED
        self._t += 1
        cost = np.einsum("ni,ij,nj->n", self._state, _COST, self._state) + _FORCE_COST * force**2
        return self._seen(), -cost.astype(np.float32), np.full(self.num, self._t == STEPS), cut

    def render(self) -> NDArray[np.uint8]:
        """Returns a picture of the first mass, `[64, 256, 3]`; the middle is marked."""
        picture = np.full((64, 256, 3), 255, np.uint8)
        picture[32], picture[16:48, 128] = 200, 120
        at = int(np.clip(128 + 80 * self._state[0, 0], 6, 249))
        picture[26:38, at - 6 : at + 6] = (40, 90, 200)
        return picture

    def close(self) -> None:
        """Has nothing to close."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later episodes depend on."""
        return {"rng": self._rng.bit_generator.state, "state": self._state.copy(), "t": self._t}

    def load_state_dict(self, state: Mapping[str, Any]) -> NDArray[np.float32]:
        """Goes on where `state_dict` was taken."""
        self._rng.bit_generator.state = state["rng"]
        self._state, self._t = np.array(state["state"]), int(state["t"])
        return self._seen()

    def _begin(self) -> NDArray[np.float32]:
        self._state, self._t = np.zeros((self.num, 2)), 0
        self._state[:, 0] = self._rng.uniform(-1, 1, self.num)
        return self._seen()

    def _seen(self) -> NDArray[np.float32]:
        left = np.full((self.num, 1), 1 - self._t / STEPS)
        return np.concatenate([self._state, left], axis=1).astype(np.float32)


def optimal(model: Any, seen: Mapping[str, Tensor], generator: Any, n_steps: int) -> dict[str, Tensor]:
    """Acts as is best, without any model: an `Act`."""
    obs = seen["obs"].numpy().astype(np.float64)
    t = np.clip(np.rint(STEPS * (1 - obs[:, 2])).astype(np.int64), 0, STEPS - 1)
    return {"action": torch.from_numpy((GAINS[t] * obs[:, :2]).sum(axis=1, keepdims=True))}


def best_return(position: NDArray[np.floating], velocity: NDArray[np.floating], t: int = 0) -> NDArray[np.float64]:
    """Returns the most that states can still earn from step `t` on, `[N]`, where no force would leave [-1, 1].

    >>> best_return(np.array([0.0, 0.5]), np.array([0.0, 0.0])).round(3)
    array([-0.   , -0.504])
    """
    state = np.stack([position, velocity], axis=1).astype(np.float64)
    earned: NDArray[np.float64] = -np.einsum("ni,ij,nj->n", state, COSTS[t], state)
    return earned
