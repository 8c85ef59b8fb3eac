"""What N environments in lock-step are to whoever acts in them."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ai.game.arguments import as_mask, check_has
from ai.model.arguments import check_instance

Seen: TypeAlias = NDArray[Any] | Mapping[str, NDArray[Any]]
"""What is seen: `[N, …]`, or arrays by key. Keys: `obs`; `legal` `[N, A]` bool, which actions may be taken; `to_play`
`[N]`, who moves, where two players take turns; `goal` and `achieved` for `ai.data.Hindsight`; any other goes along."""

BEGIN = "reset(seed) must be called before the first step or state: a copy, or what was closed, has no instances yet"
Step: TypeAlias = tuple[Seen, NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]


@runtime_checkable
class Environments(Protocol):
    """N environments in lock-step.

    When an episode is over, what is seen is its true last moment. The next step begins that row anew, whatever its
    action, with reward 0; a row that has to wait for others ends again instead. So each row is a moment of some
    episode, and a value beyond a cut can be told from what was seen there.

    It may also have `state_dict() -> dict` and `load_state_dict(state) -> Seen`, which make a run resume exactly. Where
    it has none, a resumed run begins its episodes anew.

    Attributes:
        num: N.

    >>> class Coins:
    ...     num = 4
    ...     def reset(self, seed):
    ...         self.rng = np.random.default_rng(seed)
    ...         return np.zeros((4, 1), np.float32)
    ...     def step(self, action):
    ...         won = (self.rng.integers(0, 2, 4) == action).astype(np.float32)
    ...         return np.zeros((4, 1), np.float32), won, np.zeros(4, bool), np.zeros(4, bool)
    >>> isinstance(Coins(), Environments)
    True
    """

    num: int

    def reset(self, seed: int) -> Seen:
        """Begins an episode in every row; all that follows is a function of `seed` and the actions."""

    def step(self, action: NDArray[Any]) -> Step:
        """Takes `action` `[N, …]`.

        Returns:
            What is seen; the reward `[N]` float32; `ended` `[N]`, whether the episode truly ended; `cut` `[N]`, whether
            it was broken off where it would have gone on. At most one of the two is true.
        """


def check_environments(env: Any, model: Any) -> None:
    """Raises `TypeError` for what are no environments, such as a game or a model, and for a model's class.

    >>> from ai.game import CartPole, GameEnvironments
    >>> check_environments(GameEnvironments(CartPole(), 8), model=None)
    """
    check_instance(model=model)
    check_has(("num", "reset", "step"), "environments, such as GameEnvironments(CartPole(), 8)", env=env)


def by_key(seen: Seen) -> dict[str, NDArray[Any]]:
    """Returns what is seen by key; `legal` may be of any type.

    Raises:
        ValueError: `legal` has other numbers than 0 and 1.
    """
    named = dict(seen) if isinstance(seen, Mapping) else {"obs": seen}
    if "legal" in named:
        named["legal"] = as_mask(named["legal"])
    return named


def stepped(env: Environments, action: NDArray[Any]) -> Step:
    """Takes a step, and brings what came of it to the types that the protocol names.

    Raises:
        ValueError: a reward, an end or a cut is not one number a row.
    """
    seen, reward, ended, cut = env.step(np.array(action))  # a copy, which it may write over
    for name, column in (("reward", reward), ("ended", ended), ("cut", cut)):
        if np.shape(column) != (env.num,):
            raise ValueError(f"env.step must give {name} of shape ({env.num},), got {np.shape(column)}")
    ended = np.array(ended, bool)
    return seen, np.array(reward, np.float32), ended, np.array(cut, bool) & ~ended
