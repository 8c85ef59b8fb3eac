"""Instances of a Gymnasium environment, stepped one after the other."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.arguments import check_count, check_flag, check_instance_of_gymnasium, check_made, legal_of
from ai.game.environments.protocol import BEGIN, Seen, Step
from ai.game.environments.spaces import ActionSpace, Observations, check_mask, gymnasium

_GOLDEN = 0x9E3779B97F4A7C15


class GymnasiumEnvironments:
    """N instances of a Gymnasium environment, in this process.

    Every reset is seeded, so that an episode is its seed and its actions. A state is these, without pickle: what was
    done since the reset is done again. It resumes exactly where the environment is deterministic given its seed.

    A box of actions with bounds is reached from [-1, 1]; see `ActionSpace`. A goal-conditioned environment shows `obs`,
    `goal` and `achieved`.

    Args:
        environment: a registered name, or a function that makes one instance.
        num: N.
        mask: whether `legal` is seen, from `info["action_mask"]`; one that observations hold is seen anyway.
        options: passed to `gymnasium.make`.

    Raises:
        ImportError: gymnasium is not installed.
        TypeError: observations or actions are not numbers, or `environment` is neither a name nor a function, or makes
            a vector environment.
        ValueError: `num` is below 1, or there are options for a function, which takes none.

    >>> env = GymnasiumEnvironments("Pendulum-v1", 2)
    >>> env.reset(seed=0).shape, env.num_actions, env.action_shape
    ((2, 3), None, (1,))
    >>> obs, reward, ended, cut = env.step(np.zeros((2, 1), np.float32))
    """

    def __init__(self, environment: str | Callable[[], Any], num: int, *, mask: bool = False, **options: Any) -> None:
        check_made(environment, options)
        check_count(1, num=num)
        check_flag(mask=mask)
        self._environment, self.num, self._mask, self._options = environment, num, mask, options
        self._envs: list[Any] = []
        self._envs.append(self._make())
        self._over: list[bool] = []  # of each instance; of none before `reset`
        self._done: list[list[Any]] = []  # what was done in each instance since its reset
        first = self._envs[0]
        check_instance_of_gymnasium(first)
        if isinstance(first, gymnasium().vector.VectorEnv):
            raise TypeError("environment must make one instance, got a vector environment: use VectorEnvironments")
        self._observations, self._actions = Observations(first.observation_space), ActionSpace(first.action_space)
        check_mask(mask, self._observations, self._actions)
        self.observation_shape = self._observations.shape
        self.num_actions, self.action_shape = self._actions.num_actions, self._actions.shape
        self._legal = np.zeros((num, self.num_actions or 0), bool)

    def reset(self, seed: int) -> Seen:
        """Begins an episode in every instance."""
        self._seeds, self._number = draws.row_seeds(seed, self.num), np.zeros(self.num, np.int64)
        self._ready()
        seen = self._observations.empty(self.num)
        for row in range(self.num):
            self._begin(row, seen)
        return self._as_seen(seen)

    def step(self, action: NDArray[Any]) -> Step:
        """Steps every instance whose episode is not over, and begins the others' next one."""
        if not self._over:
            raise RuntimeError(BEGIN)
        taken = self._actions(action, self.num)
        kept = taken if taken.ndim == 1 else taken.copy()  # arrays may be scaled or clipped in place by an environment
        over, done, mask = self._over, self._done, self._mask
        names, is_dict = self._observations.names, self._observations.is_dict
        seen = self._observations.empty(self.num)
        obs = seen["obs"]
        reward, over_now = [0.0] * self.num, [False] * self.num
        ended, cut = np.zeros(self.num, bool), np.zeros(self.num, bool)
        for row, (env, own, as_given) in enumerate(zip(self._envs, taken, kept, strict=True)):
            if over[row]:
                self._number[row] += 1
                self._begin(row, seen)
                continue
            shown, reward[row], end, stop, info = env.step(own)
            done[row].append(as_given)
            if is_dict:
                for key, name in names.items():
                    seen[name][row] = shown[key]
            else:
                obs[row] = shown
            if end or stop:
                over_now[row], ended[row], cut[row] = True, end, stop and not end
            if mask:
                self._legal[row] = legal_of(info, self._legal.shape[1:])
        self._over = over_now
        return self._as_seen(seen), np.array(reward, np.float32), ended, cut

    def render(self, row: int = 0) -> Any:
        """Returns what the instance renders, an image with `render_mode="rgb_array"` among the options."""
        return self._envs[row].render()

    def state_dict(self) -> dict[str, Any]:
        """Returns the seeds, and what was done in each instance since its last reset."""
        if not self._over:
            raise RuntimeError(BEGIN)
        return {
            "seeds": self._seeds.view(np.int64).copy(),
            "number": self._number.copy(),
            "over": np.array(self._over),
            "done": {str(row): np.array(actions) for row, actions in enumerate(self._done)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Seen:
        """Begins every instance's last episode again and does what was done in it.

        Raises:
            ValueError: the state is no such one, or of another number of instances; then nothing has changed.
        """
        if missing := sorted({"seeds", "number", "over", "done"} - state.keys()):
            raise ValueError(f"state must be the state_dict of a GymnasiumEnvironments, {missing} are not in it")
        if len(state["over"]) != self.num:
            raise ValueError(f"the state is of {len(state['over'])} environments, this one has {self.num}")
        self._seeds, self._number = np.array(state["seeds"]).view(np.uint64), np.array(state["number"])
        self._ready()
        seen = self._observations.empty(self.num)
        for row, env in enumerate(self._envs):
            self._begin(row, seen)
            done = np.array(state["done"][str(row)])
            for own, kept in zip(done.copy(), done, strict=True):
                # numpy's numbers, as `step` gives them: of Python's some environments round otherwise
                shown, _, _, _, info = env.step(own)
                self._done[row].append(kept)
                self._note(row, shown, info, seen)
        self._over = np.asarray(state["over"]).tolist()
        return self._as_seen(seen)

    def close(self) -> None:
        """Closes the instances."""
        for env in self._envs:
            env.close()
        self._envs, self._over = [], []

    def _ready(self) -> None:
        while len(self._envs) < self.num:
            self._envs.append(self._make())
        self._over = [False] * self.num
        self._done = [[] for _ in range(self.num)]

    def _begin(self, row: int, seen: dict[str, NDArray[Any]]) -> None:
        # in Python's numbers, since arrays of one entry take ten times as long; the environment mixes its seed itself
        seed = (int(self._seeds[row]) + int(self._number[row]) * _GOLDEN & (1 << 64) - 1) >> 33
        self._done[row] = []
        shown, info = self._envs[row].reset(seed=seed)
        self._note(row, shown, info, seen)

    def _note(self, row: int, shown: Any, info: Mapping[str, Any], seen: dict[str, NDArray[Any]]) -> None:
        for name, value in self._observations.named(shown).items():
            seen[name][row] = value
        if self._mask:
            self._legal[row] = legal_of(info, self._legal.shape[1:])

    def _as_seen(self, seen: dict[str, NDArray[Any]]) -> Seen:
        if self._mask:
            return {**seen, "legal": self._legal.copy()}
        return seen if self._observations.is_dict else seen["obs"]

    def _make(self) -> Any:
        if isinstance(self._environment, str):
            return gymnasium().make(self._environment, **{"disable_env_checker": True, **self._options})
        made = self._environment()
        if any(made.unwrapped is other.unwrapped for other in self._envs):
            raise ValueError("environment must make another instance each time, it returned the same one again")
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Instances stay behind: a copy makes its own."""
        return {**self.__dict__, "_envs": [], "_over": []}
