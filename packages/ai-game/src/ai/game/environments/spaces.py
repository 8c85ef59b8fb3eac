"""Gymnasium's spaces: what is seen by the library's keys, and actions as an environment takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INSTALL = "environments of Gymnasium need gymnasium: install it with pip install 'packages/ai-game[gym]'"
# What Gymnasium and PettingZoo call the parts of an observation by key, and what they are called here.
_KEYS = {"observation": "obs", "achieved_goal": "achieved", "desired_goal": "goal", "action_mask": "legal"}


def gymnasium() -> Any:
    """Returns the package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return gymnasium


def check_mask(mask: bool, observations: "Observations", actions: "ActionSpace") -> None:
    """Does nothing where masks, if there are any, are of one choice and come from one place.

    Raises:
        ValueError: observations hold a mask, and `mask` is true too; or theirs is not one entry an action.
        TypeError: actions are not one choice.
    """
    shown = observations.like.get("legal")
    if mask and shown is not None:
        raise ValueError("mask must be False where observations hold a mask themselves, which is seen as legal")
    if (mask or shown is not None) and actions.num_actions is None:
        raise TypeError(f"a mask needs one choice among numbered actions, got actions of shape {actions.shape}")
    if shown is not None and shown[0] != (actions.num_actions,):
        raise ValueError(f"the mask in observations must have shape ({actions.num_actions},), got {shown[0]}")


class Observations:
    """How what one environment shows becomes arrays.

    Numbers of double precision are shown in single, as models take them. Of a dict `observation` is seen as `obs`,
    `action_mask` as `legal`, `achieved_goal` and `desired_goal` as `achieved` and `goal`.

    Args:
        space: a box or a discrete space, or a dict of these.

    Raises:
        TypeError: it is another space, or a dict without an observation or with two.
    """

    def __init__(self, space: Any) -> None:
        spaces = gymnasium().spaces
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"obs": space}
        self.names = {key: _KEYS.get(key, key) for key in parts}  # Gymnasium's -> ours
        if "obs" not in self.names.values():
            raise TypeError(f"observations by key must have 'obs' or 'observation', got {sorted(parts)}")
        for key, name in self.names.items():
            if key != name and name in parts:
                raise TypeError(f"observations by key must have one of {name!r} and {key!r}, got {sorted(parts)}")
        for key, part in parts.items():
            if not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
                raise TypeError(f"{key} must be seen as a box of numbers, got {part}: flatten it by a wrapper")
        self.is_dict = isinstance(space, spaces.Dict)
        self.like = {name: (tuple(parts[key].shape), _single(parts[key].dtype)) for key, name in self.names.items()}
        self.shape: tuple[int, ...] = self.like["obs"][0]

    def empty(self, num: int) -> dict[str, NDArray[Any]]:
        """Returns room for `num` observations."""
        return {name: np.empty((num, *shape), dtype) for name, (shape, dtype) in self.like.items()}

    def named(self, seen: Any) -> Mapping[str, Any]:
        """Returns what was seen by the library's keys."""
        return {self.names[key]: value for key, value in seen.items()} if self.is_dict else {"obs": seen}


class ActionSpace:
    """How actions of a policy become those of an environment.

    Whole numbers count from the space's start. An axis of a box with two bounds is reached from [-1, 1], clipped there,
    so that one policy fits every box; on any other axis actions are taken as they are, clipped at a bound it may have.

    Args:
        space: discrete, multi-discrete, multi-binary or a box.

    Attributes:
        num_actions: A of a discrete space, else None.
        shape: of one action.

    Raises:
        TypeError: it is another space.
    """

    def __init__(self, space: Any) -> None:
        spaces = gymnasium().spaces
        self.shape: tuple[int, ...] = tuple(space.shape or ())
        self.num_actions: int | None = int(space.n) if isinstance(space, spaces.Discrete) else None
        self._start: Any = 0
        self._choices: Any = None  # of each entry of an action, where there are several
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            self._start = np.asarray(space.start)
            self._choices = getattr(space, "nvec", None)
        elif isinstance(space, spaces.MultiBinary):
            self._choices = 2
        elif isinstance(space, spaces.Box):
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            closed = np.isfinite(low) & np.isfinite(high)
            self._low, self._high = np.where(closed, -1, low), np.where(closed, 1, high)
            low, high = np.where(closed, low, -1), np.where(closed, high, 1)
            self._middle, self._half = (low + high) / 2, (high - low) / 2
        else:
            raise TypeError(f"actions must be discrete or a box of numbers, got {space}")
        self._dtype = space.dtype
        self._is_box = isinstance(space, spaces.Box)
        self._as_is = self.num_actions is not None and not self._start

    def __call__(self, action: NDArray[Any], num: int) -> NDArray[Any]:
        """Returns `action` `[N, …]` as the environment takes it.

        Raises:
            ValueError: its shape is not `[N, *shape]`, or a choice is outside the space.
        """
        array = np.asarray(action)
        if array.shape != (num, *self.shape):
            raise ValueError(f"action must have shape {(num, *self.shape)}, got {array.shape}")
        if not self._is_box and array.dtype.kind == "f" and (array != np.rint(array)).any():
            raise ValueError(f"action must be whole numbers, got {array.tolist()}")
        if self.num_actions is not None:
            own = array.tolist()  # few numbers: Python is faster here than two reductions
            if not (0 <= min(own) and max(own) < self.num_actions):
                raise ValueError(f"action must be in [0, {self.num_actions}), got {own}")
        if self._as_is:
            return array.astype(self._dtype, copy=False)
        if self._choices is not None and ((array < 0) | (array >= self._choices)).any():
            raise ValueError(f"action must be at least 0 and below {self._choices}, got {array.tolist()}")
        taken: NDArray[Any] = array + self._start
        if self._is_box:
            taken = np.clip(array, self._low, self._high) * self._half + self._middle
            taken = taken if self._dtype.kind == "f" else np.rint(taken)
        return taken.astype(self._dtype)


def _single(dtype: Any) -> Any:
    return np.dtype(np.float32) if dtype == np.float64 else dtype
