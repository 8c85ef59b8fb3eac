"""Environments by name."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import GymnasiumEnvironments, VectorEnvironments

World = GymnasiumEnvironments | VectorEnvironments


def world(name: str, num: int, **options: Any) -> World:
    """Returns `num` environments of that name; `hidden:NAME` shows every other number only, such as no speeds.

    Args:
        name: Of Gymnasium; `ALE/…` takes ALE's own vector environment.
        num: How many.
        options: Passed to Gymnasium.
    """
    if name.startswith("ALE/"):
        return VectorEnvironments(name, num, **options)
    if name.startswith("hidden:"):
        return GymnasiumEnvironments(lambda: _hidden(name.removeprefix("hidden:"), **options), num)
    return GymnasiumEnvironments(name, num, **options)


def _hidden(name: str, **options: Any) -> Any:
    import gymnasium

    env = gymnasium.make(name, disable_env_checker=True, **options)
    shown: Any = env.observation_space
    space = gymnasium.spaces.Box(shown.low[::2], shown.high[::2], dtype=shown.dtype)

    def every_other(obs: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(obs[::2])

    return gymnasium.wrappers.TransformObservation(env, every_other, space)
