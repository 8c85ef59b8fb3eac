"""Hog: a race in which each turn is one throw of as many dice as one dares."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.arguments import check_count
from ai.game.protocol import Actions, Seed, State, check_actions, illegal_action


class Hog:
    """Two players take turns; action k throws k + 1 dice. A 1 among them pays nothing, else their sum; `goal` wins.

    Chance moves where `thrown` dice lie on the table: outcome s is a sum, 0 where a 1 was among them. `own` and `other`
    are the points of who moves and of the other one. A game may go on for ever, though with no chance at all.

    Args:
        goal: points that win.
        dice: how many can be thrown at most.
        faces: of each die, alike.

    >>> game = Hog(dice=2)
    >>> state = game.step(game.init(1), np.array([1]))
    >>> [round(36 * p) for p in game.chance(state)[0]]  # 11 throws of 36 have a 1, then sums of 4 to 12
    [11, 0, 0, 0, 1, 2, 3, 4, 5, 4, 3, 2, 1]
    """

    num_players = 2
    discount = 1.0
    dtype: np.dtype[Any] = np.dtype(
        [("own", "i4"), ("other", "i4"), ("thrown", "i4"), ("player", "i1"), ("over", "i1"), ("reward", "f4")]
    )

    def __init__(self, *, goal: int = 100, dice: int = 6, faces: int = 6) -> None:
        check_count(1, goal=goal, dice=dice)
        check_count(2, faces=faces)
        self.goal, self.dice, self.faces = goal, dice, faces
        self.num_actions = dice * faces + 1
        self.observation_shape: tuple[int, ...] = (2 * (goal + 1) + dice,)

    @cached_property
    def odds(self) -> NDArray[np.float64]:
        """How likely each sum is of no, one, two, … dice, `[dice + 1, A]`; nothing of no dice."""
        odds = np.zeros((self.dice + 1, self.num_actions))
        face = (np.arange(self.faces + 1) >= 2) / self.faces
        sums = np.ones(1)
        for dice in range(1, self.dice + 1):
            sums = np.convolve(sums, face)
            odds[dice, : len(sums)] = sums
            odds[dice, 0] = 1.0 - sums.sum()
        return odds

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Returns games in which nobody has thrown."""
        check_count(0, batch=batch)
        return np.zeros(batch, self.dtype)

    def step(self, state: State, action: Actions) -> State:
        """Returns the states once dice were thrown, or once they lie.

        Raises:
            ValueError: there are no such dice, or no such sum.
        """
        action = check_actions(action, len(state), self.num_actions)
        live, lie = state["over"] == 0, state["thrown"] > 0
        illegal = live & ~self.legal(state)[np.arange(len(state)), action]
        if illegal.any():
            raise illegal_action(action, int(illegal.argmax()))
        out = state.copy()
        out["reward"] = 0
        out["thrown"] = np.where(live & ~lie, action + 1, 0)
        turned = live & lie
        total = np.where(turned, state["own"] + action, 0)
        out["own"], out["other"] = (
            np.where(turned, state["other"], state["own"]),
            np.where(turned, total, state["other"]),
        )
        out["player"] ^= turned
        out["over"] |= total >= self.goal
        out["reward"][turned] = (total >= self.goal)[turned]
        return out

    def observe(self, state: State) -> NDArray[np.float32]:
        """Returns `[B, 2 (goal + 1) + dice]`: a place for each number of points, one's own first, and of dice."""
        places = np.eye(self.goal + 1, dtype=np.float32)
        own, other = (places[np.minimum(state[name], self.goal)] for name in ("own", "other"))
        dice = np.arange(1, self.dice + 1) == state["thrown"][:, None]
        return np.concatenate([own, other, dice], 1, dtype=np.float32)

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns `[B, A]`: any number of dice, or the sums that those thrown can have."""
        dice = np.arange(self.num_actions) < self.dice
        legal: NDArray[np.bool_] = np.where((state["thrown"] > 0)[:, None], self.odds[state["thrown"]] > 0, dice)
        legal &= (state["over"] == 0)[:, None]
        return legal

    def chance(self, state: State) -> NDArray[np.float64]:
        """Returns how likely each sum is, `[B, A]`; zeros where a player moves or the game is over."""
        chance: NDArray[np.float64] = self.odds[state["thrown"]]
        return chance

    def terminal(self, state: State) -> NDArray[np.bool_]:
        """Returns which games are over, `[B]`."""
        over: NDArray[np.bool_] = state["over"] != 0
        return over

    def reward(self, state: State) -> NDArray[np.float64]:
        """Returns 1 where the last throw won, else 0."""
        return state["reward"].astype(np.float64)

    def to_play(self, state: State) -> NDArray[np.int64]:
        """Returns who moves next, `[B]`; where dice lie, who threw them."""
        return state["player"].astype(np.int64)

    def render(self, state: State, row: int = 0) -> str:
        """Returns the points of one game, those of the player to move first."""
        s = state[row]
        return f"{s['own']} : {s['other']}" + (f", {s['thrown']} dice lie" if s["thrown"] else "")
