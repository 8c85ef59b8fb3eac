"""Environments by name."""

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.examples.agents.point_mass import PointMass
from ai.game import GymnasiumEnvironments, VectorEnvironments

World = GymnasiumEnvironments | VectorEnvironments | PointMass


def world(name: str, num: int, **options: Any) -> World:
    """Returns `num` environments of that name.

    `hidden:NAME` shows every other number only, such as no speeds; `held-K:NAME` takes each action K times in a row and
    counts that as one step, so that what is tried at random goes somewhere. Of `held-4:hidden:NAME` both hold.
    `masked:` before all others also shows which actions may be taken. A number that counts states is shown as a row
    with a single 1.

    Args:
        name: Of Gymnasium; `ALE/…` takes ALE's own vector environment, `point-mass` is `PointMass`; both take no such
            prefix.
        num: How many.
        options: Passed to Gymnasium.
    """
    if name == "point-mass":
        return PointMass(num, **options)
    if name.startswith("ALE/"):
        return VectorEnvironments(name, num, **options)
    if ":ALE/" in name:
        raise ValueError(f"env must have no prefix before ALE/…, whose frames are stacked and skipped, got {name}")
    if name.endswith(":point-mass"):
        raise ValueError(f"env must have no prefix before point-mass, which is none of Gymnasium's, got {name}")
    if ":masked:" in name:
        raise ValueError(f"env must have masked: once, before all other prefixes, got {name}")
    mask, bare = name.startswith("masked:"), name.removeprefix("masked:")
    return GymnasiumEnvironments(lambda: _as_row(_made(bare, **options)), num, mask=mask)


def _made(name: str, **options: Any) -> Any:
    import gymnasium

    if name.startswith("hidden:"):
        return _hidden(_made(name.removeprefix("hidden:"), **options))
    if name.startswith("held-"):
        times, _, rest = name.removeprefix("held-").partition(":")
        if not times.isdecimal() or int(times) < 1:
            raise ValueError(f"env must say how often an action is taken, such as held-4:NAME, got {name}")
        return _held(_made(rest, **options), int(times))
    return gymnasium.make(name, disable_env_checker=True, **options)


def _as_row(env: Any) -> Any:
    import gymnasium

    shown: Any = env.observation_space
    if not isinstance(shown, gymnasium.spaces.Discrete):
        return env
    states = np.eye(int(shown.n), dtype=np.float32)
    space = gymnasium.spaces.Box(0, 1, states[0].shape)
    return gymnasium.wrappers.TransformObservation(env, lambda state: states[state - shown.start], space)


def _hidden(env: Any) -> Any:
    import gymnasium

    shown: Any = env.observation_space
    if not isinstance(shown, gymnasium.spaces.Box) or not shown.shape:
        raise ValueError(f"env must show a row of numbers to be hidden:, got {shown}")
    space = gymnasium.spaces.Box(shown.low[::2], shown.high[::2], dtype=shown.dtype)

    def every_other(obs: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(obs[::2])

    return gymnasium.wrappers.TransformObservation(env, every_other, space)


def _held(env: Any, times: int) -> Any:
    import gymnasium

    class Held(gymnasium.Wrapper):
        """Takes each action several times, unless the episode ends first."""

        def step(self, action: Any) -> Any:
            total = 0.0
            for _ in range(times):
                obs, reward, ended, cut, info = self.env.step(copy.copy(action))  # which it may scale in place
                total += float(reward)
                if ended or cut:
                    break
            return obs, total, ended, cut, info

    return Held(env)
