"""On-policy batches: each rollout is gone over a few times in shuffled parts, and never again."""

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
import torch
from torch import Tensor

from ai.data.arguments import check_at_least, check_rank, check_state
from ai.data.batch.device import checked_device
from ai.data.batch.postprocess import Finish
from ai.data.batch.seeds import derive_seed
from ai.data.batch.turns import Turn
from ai.data.episodes.packing import Packed, packed
from ai.data.episodes.recent import RecentEpisodes
from ai.data.episodes.returns import lambda_returns
from ai.data.episodes.sequences import cut
from ai.data.generation.begun import began, check_begun
from ai.data.generation.options import PassesOptions, passes_options
from ai.data.generation.portable_state import from_portable, to_portable
from ai.data.storage.columns import described

if TYPE_CHECKING:
    from ai.data.batch.transform import Transform
    from ai.data.generation.source import Source

# What a position in a rollout, and the targets in it, are measured by.
_SETTINGS = ("passes", "batches", "gamma", "lam", "sequence")
_STATE_KEYS = {"seed", "generation", "at", "version", "params", "columns", "n_steps", "n_episodes", "recent", "source"}


class PassesLoader:
    """Endless batches of a source's rollouts, made by `Datagen.passes`.

    What one `next` of the source gives is a rollout. Its steps are shuffled anew for each of `passes` passes, by an
    order that is a function of (seed, rollout, pass), and cut into `batches` parts; then the next rollout is made. With
    `RLTrainer(push_interval=None)` it is made by the newest parameters.

    A batch holds the rollout's keys for single steps, and where there is a `value`, besides

    - `target` `[B]` float32: the λ-return;
    - `advantage` `[B]` float32: the λ-return less the value.

    Args:
        source: as of `Datagen`; it runs in this process.
        postprocess: as of `Datagen`.
        passes: times that each step is learnt from.
        device: where batches go.
        **options: see `PassesOptions`.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        source: "Source",
        postprocess: "Transform | None" = None,
        passes: int = 1,
        *,
        device: str | torch.device = "cpu",
        **options: Unpack[PassesOptions],
    ) -> None:
        check_at_least(1, passes=passes)
        chosen = passes_options(options)
        self.source, self.passes, self.batches, self.device = source, passes, chosen["batches"], checked_device(device)
        self.gamma, self.lam, self.sequence = chosen["gamma"], chosen["lam"], chosen["sequence"]
        self.seed = chosen["seed"]
        self._finish = Finish(postprocess, self.device, chosen["pin"])
        self._turn = Turn()
        self._at = 0  # batches so far
        self._generation, self._version = 0, 0
        self._params: Mapping[str, Any] | None = None
        self._columns: dict[str, Tensor] = {}  # the rollout at hand, one row a draw
        self._order: tuple[Tensor, ...] | None = None
        self._n_steps, self._n_episodes, self._recent = 0, 0, RecentEpisodes()
        self._start()

    def __repr__(self) -> str:
        rollout = described(dict(self._columns)) if self._columns else "no rollout yet"
        return (
            f"PassesLoader({self.passes} passes of {self.batches} batches on {self.device}, of "
            f"{type(self.source).__name__}, {rollout})"
        )

    @property
    def updates(self) -> int:
        """Batches of one rollout."""
        return self.passes * self.batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Returns the next batch, acting first where a rollout is used up.

        Raises:
            StopIteration: the source has ended.
            RuntimeError: another loader has begun the source anew.
            ValueError: a rollout cannot be cut into so many batches.
        """
        with self._turn:
            return self._next()

    def _next(self) -> Any:
        rollout, update = divmod(self._at, self.updates)
        turn, part = divmod(update, self.batches)
        if update == 0:
            check_begun(self.source, self._mark, "source")
            self._take(packed([next(self.source)], self._version))
        if part == 0 or self._order is None:
            n = len(next(iter(self._columns.values())))
            shuffle = torch.Generator().manual_seed(derive_seed(self.seed, rollout, turn))
            self._order = torch.randperm(n, generator=shuffle, device="cpu").tensor_split(self.batches)
        rows = self._order[part]
        self._at += 1
        return self._finish({key: c.index_select(0, rows) for key, c in self._columns.items()}, self.seed, self._at)

    def wants_params(self, batches: int = 1) -> bool:
        """Returns whether the source will act before so many more batches are drawn."""
        check_at_least(1, batches=batches)
        into = self._at % self.updates
        return into == 0 or into + batches > self.updates

    def update_params(self, state_dict: Mapping[str, Any]) -> int:
        """Gives the source a copy of the parameters and returns its version, counted from 1."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be one of a model, a dict by name, got {type(state_dict).__name__}")
        self._version += 1
        self._params = {
            key: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
            for key, value in state_dict.items()
        }
        with self._turn:
            self.source.update_params(self._params, self._version)
        return self._version

    def stats(self) -> dict[str, float]:
        """Returns figures for the log.

        `steps` and `rollouts` so far, `episodes` that ended, `version_lag` of the rollout at hand; `return` and
        `length`, means over the last 100 finished episodes, where the source tells them.
        """
        versions = self._columns.get("version")
        lag = 0.0 if versions is None else float(self._version - versions.double().mean())
        return {
            "steps": self._n_steps,
            "rollouts": -(-self._at // self.updates),
            "episodes": self._n_episodes,
            "version_lag": lag,
            **self._recent.stats(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the rollout at hand, the position in it, parameters, and the source's state where it has one.

        Raises:
            RuntimeError: another loader has begun the source anew.
        """
        check_begun(self.source, self._mark, "source")
        return {
            "seed": self.seed,
            **{name: getattr(self, name) for name in _SETTINGS},
            "generation": self._generation,
            "at": self._at,
            "version": self._version,
            "params": None if self._params is None else to_portable(dict(self._params)),
            "columns": dict(self._columns),
            "n_steps": self._n_steps,
            "n_episodes": self._n_episodes,
            "recent": self._recent.state_dict(),
            "source": to_portable(cast("Any", self.source).state_dict())
            if hasattr(self.source, "state_dict")
            else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`, in the middle of a rollout too: exactly where the source has states, else fresh.

        Raises:
            ValueError: the state is no such loader's, or its passes, batches, gamma, lam or sequence differ; then
                nothing has changed.
        """
        check_state(state, "PassesLoader", _STATE_KEYS)
        for name in _SETTINGS:
            if name in state and state[name] != getattr(self, name):
                raise ValueError(
                    f"the state is of a loader of {name} {state[name]}, this one has {getattr(self, name)}"
                )
        self.seed, self._generation = state["seed"], state["generation"] + 1
        self._at, self._version, self._order = state["at"], state["version"], None
        self._columns = {key: column.clone() for key, column in state["columns"].items()}
        self._n_steps, self._n_episodes = state["n_steps"], state["n_episodes"]
        self._recent.load_state_dict(state["recent"])
        self._params = from_portable(state["params"])
        self._start()
        if self._params is not None:
            self.source.update_params(self._params, self._version)
        if state["source"] is not None:
            cast("Any", self.source).load_state_dict(from_portable(state["source"]))

    def shard(self, rank: int, world: int) -> "PassesLoader":
        """Returns the loader of one rank, whose source has a seed of its own.

        It goes on with this one's counters and parameters, and begins with a rollout of its own.
        """
        check_rank(rank, world)
        other = copy.copy(self)
        other._turn = Turn()
        other.seed = derive_seed(self.seed, rank, world)
        other._at = -(-self._at // self.updates) * self.updates
        other._columns, other._order = {}, None
        other._recent = copy.deepcopy(self._recent)
        other._start()
        if self._params is not None:
            other.source.update_params(self._params, self._version)
        return other

    def _start(self) -> None:
        self._mark = began(self.source)
        self.source.start(derive_seed(self.seed, self._generation, 0), 0)

    def _take(self, made: Packed) -> None:
        """Makes a rollout the one at hand: its targets worked out, one row a step or a sequence."""
        if made.drawable is not None:
            raise ValueError("passes need rollouts without context or lookahead, got some steps that may not be drawn")
        columns = made.columns
        if "value" in columns:
            columns["target"] = lambda_returns(columns, made.lengths, self.gamma, self.lam)
            columns["advantage"] = columns["target"] - columns["value"].astype(np.float32)
        if self.sequence is None:
            rows, mask = np.flatnonzero(made.is_step), None
        else:
            rows, mask = cut(made.lengths, self.sequence)
        if len(rows) < self.batches:
            what = "steps" if mask is None else "sequences"
            raise ValueError(f"batches ({self.batches}) must not exceed the {len(rows)} {what} of a rollout")
        self._columns = {key: torch.from_numpy(column[rows]) for key, column in columns.items()}
        if mask is not None:
            self._columns["mask"] = torch.from_numpy(mask)
        self._n_steps += made.n_steps
        self._n_episodes += len(next(iter(made.finished.values()), ()))
        self._recent.add(made.finished)
