"""Vector environments of Gymnasium, such as ALE's in C++ or those in processes of their own."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.arguments import check_flag, check_made, legal_of
from ai.game.environments.protocol import BEGIN, Seen, Step
from ai.game.environments.spaces import ActionSpace, Observations, check_mask, gymnasium
from ai.model.arguments import check_whole


class VectorEnvironments:
    """A vector environment of Gymnasium, whatever runs below it.

    It has no state: a resumed run begins its episodes anew. Use `GymnasiumEnvironments` where a run has to resume
    exactly.

    Args:
        environment: a registered name, or a function that makes the vector environment; a name takes ALE's C++
            environment for `ALE/…`, with 4 frames stacked and skipped.
        num: N, where a name is given; else None.
        mask: whether `legal` is seen, from `info["action_mask"]`; one that observations hold is seen anyway.
        options: passed to `gymnasium.make_vec`.

    Raises:
        ImportError: gymnasium is not installed.
        TypeError: `environment` is neither a name nor a function, or what it makes is no vector environment.
        ValueError: `num` or options are given where they have no use; or it resets within the step that ends an
            episode, so that the last observation is not seen; at `reset` and `step`, a row has no mask.

    >>> env = VectorEnvironments("CartPole-v1", 3, vectorization_mode="sync")
    >>> env.reset(seed=0).shape
    (3, 4)
    """

    def __init__(
        self, environment: str | Callable[[], Any], num: int | None = None, *, mask: bool = False, **options: Any
    ) -> None:
        check_made(environment, options)
        check_whole(or_none=True, num=num)
        check_flag(mask=mask)
        if isinstance(environment, str) and (num is None or num < 1):
            raise ValueError(f"num must be at least 1 where a name is given, got {num}")
        if not isinstance(environment, str) and num is not None:
            raise ValueError(f"num ({num}) must be None where a function is given: what it makes has its own")
        self._environment, self._num, self._mask, self._options = environment, num, mask, options
        self._env: Any = self._make()
        if not isinstance(self._env, gymnasium().vector.VectorEnv):
            made = type(self._env).__name__
            raise TypeError(
                f"environment must make a vector environment of Gymnasium, got {made}: use GymnasiumEnvironments"
            )
        mode = self._env.metadata.get("autoreset_mode")
        if mode != gymnasium().vector.AutoresetMode.NEXT_STEP:
            raise ValueError(f"environment must reset in the step after an end (AutoresetMode.NEXT_STEP), got {mode}")
        self.num: int = self._env.num_envs
        self._observations = Observations(self._env.single_observation_space)
        self._actions = ActionSpace(self._env.single_action_space)
        check_mask(mask, self._observations, self._actions)
        self.observation_shape = self._observations.shape
        self.num_actions, self.action_shape = self._actions.num_actions, self._actions.shape

    def reset(self, seed: int) -> Seen:
        """Begins an episode in every row."""
        if self._env is None:
            self._env = self._make()
        # it seeds its rows by this number and those that follow it: those of a neighbouring seed lie elsewhere
        first = draws.row_seeds(seed, 1)[0] % np.uint64(1 << 31)
        return self._as_seen(*self._env.reset(seed=int(first)))

    def step(self, action: NDArray[Any]) -> Step:
        """Steps every row."""
        if self._env is None:
            raise RuntimeError(BEGIN)
        shown, reward, ended, cut, info = self._env.step(self._actions(action, self.num))
        ended = np.array(ended, bool)
        return self._as_seen(shown, info), np.asarray(reward).astype(np.float32), ended, np.asarray(cut, bool) & ~ended

    def close(self) -> None:
        """Closes the environment and what runs below it."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _as_seen(self, shown: Any, info: Mapping[str, Any]) -> Seen:
        like = self._observations.like
        named = {key: np.array(value, like[key][1]) for key, value in self._observations.named(shown).items()}
        if self._mask:
            named["legal"] = self._legal(info)
        return named if self._observations.is_dict or self._mask else named["obs"]

    def _legal(self, info: Mapping[str, Any]) -> NDArray[np.bool_]:
        told = np.broadcast_to(info.get("_action_mask", True), self.num)
        if not told.all():  # rows that say nothing have zeros there
            raise ValueError(f"mask=True needs info['action_mask'] of every row, got none of {np.flatnonzero(~told)}")
        return legal_of(info, (self.num, self._actions.num_actions or 0))

    def _make(self) -> Any:
        if not isinstance(self._environment, str):
            return self._environment()
        if self._environment.startswith("ALE/"):
            import ale_py

            gymnasium().register_envs(ale_py)
        return gymnasium().make_vec(self._environment, num_envs=self._num, **self._options)

    def __getstate__(self) -> dict[str, Any]:
        """The environment stays behind: a copy makes its own at `reset`."""
        return {**self.__dict__, "_env": None}
