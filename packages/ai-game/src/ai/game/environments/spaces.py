"""Gymnasium's spaces: what is seen by the library's keys, and actions as an environment takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INSTALL = "environments of Gymnasium need gymnasium: install it with pip install 'packages/ai-game[gym]'"
# What Gymnasium calls the parts of a goal-conditioned observation, and what they are called here.
_KEYS = {"observation": "obs", "achieved_goal": "achieved", "desired_goal": "goal"}


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


class Observations:
    """How what one environment shows becomes arrays.

    Args:
        space: a box or a discrete space, or a dict of these.

    Raises:
        TypeError: it is another space, or a dict without an observation.
    """

    def __init__(self, space: Any) -> None:
        spaces = gymnasium().spaces
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"obs": space}
        self.names = {key: _KEYS.get(key, key) for key in parts}  # Gymnasium's -> ours
        if "obs" not in self.names.values():
            raise TypeError(f"observations by key must have 'obs' or 'observation', got {sorted(parts)}")
        for key, part in parts.items():
            if not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
                raise TypeError(f"{key} must be seen as a box of numbers, got {part}: flatten it by a wrapper")
        self.is_dict = isinstance(space, spaces.Dict)
        self.like = {name: (tuple(parts[key].shape), parts[key].dtype) for key, name in self.names.items()}
        self.shape: tuple[int, ...] = self.like["obs"][0]

    def empty(self, num: int) -> dict[str, NDArray[Any]]:
        """Returns room for `num` observations."""
        return {name: np.empty((num, *shape), dtype) for name, (shape, dtype) in self.like.items()}

    def named(self, seen: Any) -> Mapping[str, Any]:
        """Returns what was seen by the library's keys."""
        return {self.names[key]: value for key, value in seen.items()} if self.is_dict else {"obs": seen}


class ActionSpace:
    """How actions of a policy become those of an environment.

    Whole numbers count from the space's start. A box with bounds is reached from [-1, 1] on each axis, clipped there,
    so that one policy fits every box; without bounds actions are taken as they are.

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
        self._middle: NDArray[Any] | None = None
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            self._start = np.asarray(space.start)
            self._dtype = space.dtype
        elif isinstance(space, spaces.MultiBinary):
            self._dtype = space.dtype
        elif isinstance(space, spaces.Box):
            self._dtype = space.dtype
            if np.isfinite(space.low).all() and np.isfinite(space.high).all():
                low, high = space.low.astype(np.float64), space.high.astype(np.float64)
                self._middle, self._half = (low + high) / 2, (high - low) / 2
        else:
            raise TypeError(f"actions must be discrete or a box of numbers, got {space}")
        self._is_float = isinstance(space, spaces.Box)
        self._as_is = self.num_actions is not None and not self._start

    def __call__(self, action: NDArray[Any], num: int) -> NDArray[Any]:
        """Returns `action` `[N, …]` as the environment takes it.

        Raises:
            ValueError: its shape is not `[N, *shape]`, or a choice is outside the space.
        """
        array = np.asarray(action)
        if array.shape != (num, *self.shape):
            raise ValueError(f"action must have shape {(num, *self.shape)}, got {array.shape}")
        if self.num_actions is not None:
            own = array.tolist()  # few numbers: Python is faster here than two reductions
            if not (0 <= min(own) and max(own) < self.num_actions):
                raise ValueError(f"action must be in [0, {self.num_actions}), got {own}")
        if self._as_is:
            return array.astype(self._dtype, copy=False)
        if self._middle is not None:
            array = np.clip(array, -1, 1) * self._half + self._middle
        return (array + self._start if not self._is_float else array).astype(self._dtype)
