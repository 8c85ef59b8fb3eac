"""Environments by name."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import GymnasiumEnvironments, VectorEnvironments

World = GymnasiumEnvironments | VectorEnvironments


def world(name: str, num: int) -> World:
    """Returns `num` environments of that name; `hidden:NAME` shows every other number only, such as no speeds."""
    if name.startswith("ALE/"):
        return VectorEnvironments(name, num)
    if name.startswith("hidden:"):
        return GymnasiumEnvironments(lambda: _hidden(name.removeprefix("hidden:")), num)
    return GymnasiumEnvironments(name, num)


def _hidden(name: str) -> Any:
    import gymnasium

    env = gymnasium.make(name, disable_env_checker=True)
    shown: Any = env.observation_space
    space = gymnasium.spaces.Box(shown.low[::2], shown.high[::2], dtype=shown.dtype)

    def every_other(obs: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(obs[::2])

    return gymnasium.wrappers.TransformObservation(env, every_other, space)
