"""`Rollouts`: a source of episodes that acts T steps in N environments at once.

Letters: N environments, T steps of a rollout, W rows of a window (T, what is repeated before it, and the moment after).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ai.data import Packed
from ai.data.generation.begun import began, check_begun
from ai.game.arguments import check_count, check_flag
from ai.game.environments.acting import Act, ByPolicy, device_of, evaluating, to_numpy
from ai.game.environments.protocol import Environments, Seen, by_key, check_environments, stepped

Row = dict[str, NDArray[Any]]

# What a rollout holds besides what is seen and said.
_WRITTEN = {"reward", "discount", "truncated", "is_step", "version"}
# Of what is said, one number a row.
_SCALARS = {"log_prob", "value"}


class Rollouts:
    """Each `next` gives T steps of N environments, cut where episodes end.

    It holds `obs`, whatever else is seen and whatever `act` returns, `reward`, `discount`, `truncated` and `version`;
    at the moment after the last step what is seen there, and its value if `act` gives one. For `Datagen.passes` (PPO)
    or `Datagen.loader` (DQN, SAC).

    Args:
        env: N environments, see `Environments`.
        model: acts, in evaluation mode, with the parameters that the trainer sends. Give it a copy of the model that
            is trained; each worker has its own. The very model acts with its newest parameters whatever is sent; where
            states are put back by hand, the loader's comes before the model's.
        act: how it acts; None samples from the policy of `model(obs) -> (policy, value)`, see `ByPolicy`.
        steps: T.
        context: steps before the T that each rollout has once more, for draws that look back: frames stacked less one,
            or burn-in.
        lookahead: steps at the end that can be drawn only with the next rollout, once what follows is known: `n_step`
            less one, or `unroll`.
        memory: shape of a row of what a recurrent model carries from step to step, zeros at an episode's start.
        newest_frame: keep the last of the frames that `obs` `[N, frames, …]` shows, for `ReplayBuffer(frame_stack=…)`.

    Raises:
        TypeError: one of these is no whole number.
        ValueError: `steps` is below 1, or `context` or `lookahead` below 0; at `next`, `act` returned no action, or
            something that is not of N rows; or an action or a reward was not finite, which one draw after another would
            carry into every parameter.
        RuntimeError: at `next`, another source or `evaluate` has begun `env` anew.

    Example:
        >>> import ai.model as m
        >>> from ai.data import Datagen
        >>> from ai.game import CartPole, GameEnvironments
        >>> class Net(m.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.policy, self.value = m.fc(4, 2), m.fc(4, 1)
        ...     def forward(self, obs):
        ...         return m.Categorical(self.policy(obs)), self.value(obs).squeeze(-1)
        >>> source = Rollouts(GameEnvironments(CartPole(), 8), Net(), steps=16)
        >>> batch = next(Datagen(source).passes(4, batches=2))
        >>> batch["obs"].shape[1:], batch["advantage"].shape == batch["action"].shape
        (torch.Size([4]), True)
    """

    def __init__(
        self,
        env: Environments,
        model: nn.Module,
        act: Act | None = None,
        steps: int = 32,
        *,
        context: int = 0,
        lookahead: int = 0,
        memory: tuple[int, ...] | None = None,
        newest_frame: bool = False,
    ) -> None:
        check_count(1, steps=steps, **{f"memory[{axis}]": size for axis, size in enumerate(memory or ())})
        check_count(0, context=context, lookahead=lookahead)
        check_flag(newest_frame=newest_frame)
        check_environments(env, model)
        if not callable(model):
            raise TypeError(f"model must be callable with observations, such as a torch.nn.Module, got {model!r}")
        self.env, self.model, self.steps = env, model, steps
        self.act: Act = ByPolicy() if act is None else act
        self.context, self.lookahead, self.memory, self.newest_frame = context, lookahead, memory, newest_frame
        self._tail: list[Row] = []
        self._started = False
        self._first_step = 0

    def begin_at(self, n_steps: int) -> None:
        """Lets the count of steps that `act` is told begin there, at the next `start`."""
        self._first_step = n_steps

    def start(self, seed: int, worker: int) -> None:
        """Begins an episode in every environment; every draw that follows is a function of `seed`."""
        self.model.eval()  # once, so that a copy need not be put there at each rollout
        self._device = device_of(self.model)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._version, self.n_steps = 0, self._first_step
        self._mark = began(self.env)
        self._begin(self.env.reset(seed))
        self._started = True

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Takes new parameters; episodes under way go on with them."""
        self.model.load_state_dict(state_dict)
        self._version = version

    def __next__(self) -> Packed:
        """Returns the next rollout."""
        self._check_started()
        check_begun(self.env, self._mark, "env")
        ended: list[tuple[NDArray[Any], NDArray[Any]]] = []
        with evaluating(self.model):  # it may be the very model that is trained
            while (made := self._packed(self._act(ended), ended)) is None:
                pass  # nothing can be drawn yet: T is less than what is looked ahead to, or all rows wait
        return made

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later rollouts depend on, parameters apart."""
        self._check_started()
        check_begun(self.env, self._mark, "env")
        state_of = getattr(self.env, "state_dict", None)
        return {
            "env": None if state_of is None else state_of(),
            "generator": self._generator.get_state(),
            "n_steps": self.n_steps,
            "version": self._version,
            "kept": (self.context, self.lookahead),
            "over": self._over.copy(),
            "return": self._return.copy(),
            "length": self._length.copy(),
            "memory": None if self._memory is None else self._memory.copy(),
            "tail": [{key: value.copy() for key, value in row.items()} for row in self._tail],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; call after `start`.

        Environments without a state begin their episodes anew, with the seed of `start`.

        Raises:
            RuntimeError: it was not started.
            ValueError: the state is of another number of environments, of another context, lookahead or memory; then
                nothing has changed.
        """
        self._check_started()
        load = None if state["env"] is None else getattr(self.env, "load_state_dict", None)
        if load is not None and len(state["over"]) != self.env.num:
            raise ValueError(f"the state is of {len(state['over'])} environments, env has {self.env.num}")
        kept = self.context, self.lookahead
        if load is not None and tuple(state.get("kept", kept)) != kept:  # earlier states did not say
            raise ValueError(f"the state is of context and lookahead {tuple(state['kept'])}, this source has {kept}")
        carried = None if state["memory"] is None else tuple(np.shape(state["memory"])[1:])
        if load is not None and carried != self.memory:
            raise ValueError(f"the state is of memory {carried}, this source has {self.memory}")
        self._generator.set_state(state["generator"])
        self.n_steps, self._version = state["n_steps"], state["version"]
        if load is None:
            return
        self._begin(load(state["env"]))
        self._over, self._return, self._length = (np.array(state[key]) for key in ("over", "return", "length"))
        self._memory = None if state["memory"] is None else np.array(state["memory"])
        self._tail = [{key: np.array(value) for key, value in row.items()} for row in state["tail"]]

    def _check_started(self) -> None:
        if not self._started:
            raise RuntimeError("start(seed, worker) must be called before the first rollout")

    def _begin(self, seen: Seen) -> None:
        num = self.env.num
        self._seen = by_key(seen)
        self._over = np.zeros(num, bool)  # rows whose last moment is seen: the next step begins them anew
        self._return, self._length = np.zeros(num), np.zeros(num, np.int64)
        self._memory = None if self.memory is None else np.zeros((num, *self.memory), np.float32)
        self._tail = []

    def _act(self, ended_episodes: list[tuple[NDArray[Any], NDArray[Any]]]) -> list[Row]:
        """Takes T steps; returns them after those that are repeated, and notes returns and lengths of what ended."""
        rows = list(self._tail)
        for _ in range(self.steps):
            row, said = self._ask()
            waiting = self._over
            seen, reward, ended, cut = stepped(self.env, row["action"])
            self._seen, self._over = by_key(seen), ended | cut
            row["reward"], row["discount"], row["truncated"] = reward, 1 - ended.astype(np.float32), cut
            row["is_step"] = ~waiting
            rows.append(row)
            if self._memory is not None:
                self._memory = np.where(_wide(waiting, self._memory), 0, said["memory"]).astype(np.float32)
            self._return += reward
            self._length += ~waiting
            self.n_steps += self.env.num - int(np.count_nonzero(waiting))
            if self._over.any() or waiting.any():
                finished = self._over & ~waiting
                ended_episodes.append((self._return[finished], self._length[finished]))
                self._return[self._over | waiting] = 0
                self._length[self._over | waiting] = 0
        kept = self.context + self.lookahead
        self._tail = rows[-kept:] if kept else []
        return rows

    def _ask(self) -> tuple[Row, Mapping[str, NDArray[Any]]]:
        """Returns the row of this moment so far, and all that `act` said."""
        seen = dict(self._seen) if self._memory is None else {**self._seen, "memory": self._memory}
        with torch.inference_mode():
            # A model may write over what it is shown, which is still to be stored; np.array copies.
            tensors = {key: torch.from_numpy(np.array(value)).to(self._device) for key, value in seen.items()}
            answer = self.act(self.model, tensors, self._generator, self.n_steps)
            said = to_numpy(answer)
        if clash := seen.keys() & ((said.keys() - {"memory"}) | _WRITTEN):
            raise ValueError(f"what env shows may not have the keys {sorted(clash)}: a rollout holds them already")
        self._check_said(said)
        # Copies: an environment may write its next moment over what it showed, a model over what it said.
        return {key: np.array(value) for key, value in {**said, **seen, "obs": self._stored(seen["obs"])}.items()}, said

    def _check_said(self, said: Mapping[str, NDArray[Any]]) -> None:
        if clash := said.keys() & _WRITTEN:
            raise ValueError(f"what act returns may not have the keys {sorted(clash)}: a rollout writes them itself")
        if missing := {"action", *(() if self._memory is None else ("memory",))} - said.keys():
            raise ValueError(f"act must return {sorted(missing)}, got {sorted(said)}")
        for key, value in said.items():
            wanted = (self.env.num, *(() if key in _SCALARS else value.shape[1:]))
            if value.shape != wanted:
                raise ValueError(f"act must return {key} of shape {wanted}, got {value.shape}")

    def _stored(self, obs: NDArray[Any]) -> NDArray[Any]:
        return obs[:, -1] if self.newest_frame else obs

    def _packed(self, rows: list[Row], ended: list[tuple[NDArray[Any], NDArray[Any]]]) -> Packed | None:
        """Returns the window's episodes, one environment after the other; None if no step of them may be drawn."""
        last: Row = {key: np.zeros_like(value) for key, value in rows[-1].items()}
        if "value" in last:
            moment, _ = self._ask()
            last |= {key: moment[key] for key in (*self._seen, "value")}
        else:
            last |= {**self._seen, "obs": self._stored(self._seen["obs"])}
        if self._memory is not None:
            last["memory"] = self._memory
        rows = [*rows, last]
        # [W, N, …] -> [N · W, …]: all moments of one environment, then the next one's
        columns = {key: np.stack([row[key] for row in rows], 1).reshape(-1, *rows[0][key].shape[1:]) for key in rows[0]}
        for key in ("action", "reward"):
            if columns[key].dtype.kind == "f" and not np.isfinite(columns[key]).all():
                row = int(np.argwhere(~np.isfinite(columns[key]))[0, 0]) // len(rows)
                raise ValueError(f"{key} must be finite, environment {row} of {self.env.num} had NaN or infinity")
        is_step = columns.pop("is_step")
        drawable = self._drawable(is_step, len(rows)) if self.context + self.lookahead else is_step
        sizes = np.diff(np.flatnonzero(~is_step), prepend=-1)
        useful = np.add.reduceat(drawable, np.cumsum(sizes) - sizes, dtype=np.int64) > 0
        if not useful.any():
            return None
        if not useful.all():
            keep = np.repeat(useful, sizes)
            columns, drawable, sizes = {key: c[keep] for key, c in columns.items()}, drawable[keep], sizes[useful]
        columns["version"] = np.full(len(drawable), self._version, np.int64)
        finished = {}
        if ended:
            finished["episode_length"] = np.concatenate([lengths for _, lengths in ended]).astype(np.float32)
            if "to_play" not in columns:  # of two players' rewards the sum says nothing
                finished["episode_return"] = np.concatenate([returns for returns, _ in ended]).astype(np.float32)
        return Packed(columns, sizes, drawable if self.context + self.lookahead else None, finished)

    def _drawable(self, is_step: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
        """Returns which steps become complete with this window: what they look ahead to is known now, not before."""
        steps, at = is_step.reshape(-1, width), np.arange(width)
        never = width + self.lookahead
        moments = np.where(steps, never, at)
        moments[:, -1] = np.where(self._over, width - 1, never)  # the window's end is no end of an episode
        end = np.minimum.accumulate(moments[:, ::-1], axis=1)[:, ::-1]
        known = np.minimum(at + 1 + self.lookahead, end)  # the moment by which all that follows is known
        return (steps & (known < width) & (known >= width - self.steps)).reshape(-1)


def _wide(rows: NDArray[np.bool_], like: NDArray[Any]) -> NDArray[np.bool_]:
    return rows.reshape(-1, *(1,) * (like.ndim - 1))
