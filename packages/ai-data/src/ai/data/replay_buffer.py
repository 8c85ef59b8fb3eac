"""A replay buffer: episodes in a ring of tensors, drawn as steps or as short sequences.

Letters: B batch, K steps unrolled, T steps of an episode. A row is one moment; an episode has T + 1 of them.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai.data.arguments import check_at_least, check_rank, check_real, check_state, check_tensor, check_whole
from ai.data.batch.device import Arriving
from ai.data.batch.seeds import derive_seed, seed_from
from ai.data.episodes.drawing import Drawing
from ai.data.episodes.n_step_sums import MADE_OF, NStepSums
from ai.data.episodes.packing import Episode, Packed, pack
from ai.data.episodes.returns import full_returns, n_step_returns
from ai.data.episodes.ring import Ring
from ai.data.episodes.windows import cut_stacks, stacked, unrolled

# Of states; 1 did not say n_step, gamma and alpha.
_FORMAT = 2
_STATE_KEYS = {
    "capacity", "columns", "end", "open", "uses", "priority", "top_priority", "n_written", "n_drawn", "generator",
}  # fmt: skip


class ReplayBuffer:
    """The last `capacity` rows of episodes.

    A draw holds each key of the episodes (see `Episode`) but those of `omit_keys`, and besides

    - `index` `[B]` int64: names the first row of a draw for good, for `update` and `update_priorities`;
    - `mask` `[B, K+1]` bool, where unrolled: whether a step was taken there; rows past the end repeat the
      last one;
    - `target` `[B]` or `[B, K+1]` float32, with `n_step`: the value target. Where episodes hold no `value` to put in
      after the last reward, a finite `n_step` gives its parts instead: `n_step_reward`, `next_obs` (and whatever else
      `next_keys` names, where it is there) and `next_discount`, so that the target is `n_step_reward + next_discount *
      value(next_obs)`. The last is γⁿ, less where an episode is shorter, 0 beyond a true end, and negative where the
      other player moves;
    - `weight` `[B]` float32, with `alpha`: the importance weights, at most 1;
    - `context` `[B, burn_in]` bool, with `burn_in`: which of the rows before are there; the others repeat the first.

    Args:
        capacity: rows kept, T + 1 for an episode of T steps; the oldest are overwritten. Memory is allocated at the
            first episode and never grows: `n_bytes`.
        unroll: None draws single steps; K draws K + 1 rows in a row, with an axis for them.
        first_only: keys that an unrolled draw holds at its first row only.
        next_keys: keys to give as `next_KEY` at the row n steps on, beside the parts of a `target`; such as
            `("obs", "legal")` where not every action may be taken.
        omit_keys: keys that draws leave out, such as `("reward", "truncated", "version")` where a loss reads the n-step
            sums alone: each costs its copy.
        frame_stack: observations are frames of which a draw stacks so many, the oldest first: `obs` `[B, frames, …]`.
            Each is stored once; before an episode's first frame come zeros, or with `pad_frames="first"` that frame.
        pad_frames: `"zeros"` or `"first"`.
        burn_in: rows before the drawn one that an unrolled draw has too, with `mask` false, for models with a memory;
            `first_only` keys are then those of the first of these.
        n_step: rewards to sum before the value takes over in `target`; `math.inf` for all; None for no target.
        gamma: discount a step, besides the `discount` of the episodes.
        alpha: None draws uniformly; else in proportion to priority ** alpha. A new step has the highest so far.
        beta: exponent of the importance weights.
        max_reuse: how often a step may be drawn as the first of a draw.
        seed: of the draws; of several ranks each draws apart, once their loader is dealt among them.

    Source: Schaul et al., 2016, Prioritized Experience Replay; Schrittwieser et al., 2020, MuZero, appendix G.

    Example:
        >>> buffer = ReplayBuffer(1000, n_step=math.inf)
        >>> buffer.add({"obs": np.arange(4), "action": np.zeros(3), "reward": np.array([0.0, 0.0, 1.0])})
        >>> batch = buffer.sample(32)
        >>> batch["target"].unique().tolist(), len(buffer)
        ([1.0], 3)
    """

    def __init__(
        self,
        capacity: int,
        *,
        unroll: int | None = None,
        first_only: tuple[str, ...] = (),
        next_keys: tuple[str, ...] = ("obs",),
        omit_keys: tuple[str, ...] = (),
        frame_stack: int = 1,
        pad_frames: str = "zeros",
        burn_in: int = 0,
        n_step: float | None = None,
        gamma: float = 1.0,
        alpha: float | None = None,
        beta: float = 0.4,
        max_reuse: int | None = None,
        seed: int = 0,
    ) -> None:
        check_at_least(2, capacity=capacity)
        check_at_least(1, frame_stack=frame_stack)
        check_at_least(1, or_none=True, max_reuse=max_reuse)
        check_at_least(0, burn_in=burn_in)
        check_at_least(0, or_none=True, unroll=unroll)
        check_whole(seed=seed)
        check_real(gamma=gamma, beta=beta)
        check_real(or_none=True, n_step=n_step, alpha=alpha)
        if n_step is not None and n_step < 1:
            raise ValueError(f"n_step must be at least 1, got {n_step}")
        if n_step not in (None, math.inf) and n_step % 1:
            raise ValueError(f"n_step must be a whole number, got {n_step}")
        for name, keys in (("first_only", first_only), ("next_keys", next_keys), ("omit_keys", omit_keys)):
            if isinstance(keys, str):
                raise ValueError(f"{name} must be a tuple of keys, such as ({keys!r},), got the text {keys!r}")
            if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
                raise TypeError(f"{name} must be a tuple of keys, got {keys!r}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
        for name, exponent in (("alpha", alpha), ("beta", beta)):
            if exponent is not None and not 0 <= exponent < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {exponent}")
        if pad_frames not in ("zeros", "first"):
            raise ValueError(f"pad_frames must be 'zeros' or 'first', got {pad_frames!r}")
        if burn_in and unroll is None:
            raise ValueError(f"burn_in ({burn_in}) needs unroll: the rows to learn from after it")
        self.capacity = capacity = int(capacity)  # numpy's own would end up in states
        self.next_keys, self.omit_keys = next_keys, omit_keys
        self.frame_stack, self.pad_frames, self.burn_in = frame_stack, pad_frames, burn_in
        self.unroll = unroll
        self.first_only = first_only
        self.n_step = n_step
        self.gamma = gamma
        self.alpha = alpha
        self.beta = beta
        self.max_reuse = max_reuse
        self._ring = Ring(capacity)
        self._drawing = Drawing(capacity, alpha, max_reuse, int(seed))
        self._sums: NStepSums | None = None
        self._arriving: deque[Arriving] = deque()

    def __len__(self) -> int:
        """Steps that may be drawn."""
        return self._drawing.n_open

    @property
    def n_written(self) -> int:
        """Rows ever written."""
        return self._ring.n_written

    @property
    def n_drawn(self) -> int:
        """Steps ever drawn."""
        return self._drawing.n_drawn

    @property
    def n_bytes(self) -> int:
        """Memory of the ring in bytes; 0 before the first episode."""
        if not self._ring.columns:
            return 0
        return self._ring.n_bytes + self._drawing.n_bytes + (0 if self._sums is None else self._sums.n_bytes)

    @property
    def columns(self) -> dict[str, Tensor]:
        """The live rows by key, oldest first: a copy."""
        return {key: self.column(key) for key in self._ring.columns}

    def column(self, key: str) -> Tensor:
        """Returns one key's live rows, oldest first: a copy; empty before the first episode."""
        if self._ring.columns and (not isinstance(key, str) or key not in self._ring.columns):
            raise KeyError(f"{key!r} is not a key of this buffer: {sorted(self._ring.columns)}")
        return self._ring.columns[key][self._ring.live()] if self._ring.columns else torch.empty(0, device="cpu")

    def __repr__(self) -> str:
        keys = ", ".join(
            f"{key}: {str(column.dtype).removeprefix('torch.')}[{', '.join(map(str, column.shape[1:]))}]"
            for key, column in self._ring.columns.items()
        )
        n_rows = min(self._ring.n_written, self.capacity)
        return f"ReplayBuffer({len(self)} steps in {n_rows} of {self.capacity} rows, {keys or 'no episodes yet'})"

    def add(self, episode: Episode) -> None:
        """Appends one episode."""
        self.extend(pack([episode]))

    def extend(self, episodes: Packed) -> None:
        """Appends episodes.

        Raises:
            ValueError: one is longer than the ring, or unlike the earlier ones in keys, shapes or dtypes; or with all
                rewards to sum, one was cut off and holds no value of what was to come.
        """
        if not isinstance(episodes, Packed):
            raise TypeError(f"episodes must be Packed, got {type(episodes).__name__}: add takes a single one")
        if episodes.lengths.max() > self.capacity:
            raise ValueError(
                f"an episode of {episodes.lengths.max() - 1} steps needs {episodes.lengths.max()} rows, "
                f"capacity is {self.capacity}"
            )
        self._settle()
        columns = dict(episodes.columns)
        if self.n_step == math.inf:
            self._check_ends(columns, episodes.lengths)
            columns["target"] = full_returns(columns, episodes.lengths, self.gamma)
        self._check(columns)
        sums = self._sums_at_hand()
        kept, places, is_step = self._ring.write(columns, episodes.lengths)
        if episodes.drawable is not None:
            is_step &= episodes.drawable
        self._drawing.write(places, is_step[kept])
        self._drawing.close(cut_stacks(self._ring, self.frame_stack))
        if sums is not None:
            sums.write(places)
        elif self.n_step not in (None, math.inf):
            self._n_step_sums()

    def sample(self, batch_size: int) -> dict[str, Tensor]:
        """Returns a draw of `batch_size`, by copies.

        Without `max_reuse` and priorities draws are with replacement; with `max_reuse` a batch holds a step once.

        Raises:
            ValueError: no step may be drawn, or with `max_reuse` fewer than `batch_size`.
        """
        check_at_least(1, batch_size=batch_size)
        self._settle()
        places, weight = self._drawing.draw(batch_size, min(self._ring.n_written, self.capacity), self.beta)
        index = torch.from_numpy(self._ring.number_at(places))
        batch = self._gather(torch.from_numpy(places), index)
        batch["index"] = index
        return batch if weight is None else batch | {"weight": weight}

    def update_priorities(self, index: Tensor, priority: Tensor) -> None:
        """Sets the priorities of draws by their `index`; those overwritten since are passed over.

        Tensors of a GPU are not waited for: they are under way until the buffer is next drawn from, added to or saved,
        which then waits for what the GPU had to do before this call.

        Raises:
            ValueError: the buffer has no priorities, or one is negative or not finite (of tensors of a GPU, once they
                have come); then nothing has changed.
        """
        if self.alpha is None:
            raise ValueError("this buffer draws uniformly: give alpha to have priorities")
        check_tensor(index=index, priority=priority)
        if index.ndim != 1 or index.shape != priority.shape:
            raise ValueError(
                f"priority must be one number for each index, got the shapes {tuple(priority.shape)} and "
                f"{tuple(index.shape)}"
            )
        arriving = Arriving(index.detach(), priority.detach())
        if arriving.here:
            self._set_priorities(*arriving.wait())
        else:
            self._arriving.append(arriving)

    def _settle(self) -> None:
        """Takes the priorities that were under way, in the order in which they were sent."""
        while self._arriving:
            self._set_priorities(*self._arriving.popleft().wait())

    def _set_priorities(self, index: Tensor, priority: Tensor) -> None:
        values = priority.to(torch.float64).numpy()
        if not np.isfinite(values).all():
            raise ValueError("priority must be finite, got NaN or infinity")
        if len(values) and values.min() < 0:
            raise ValueError(
                f"priority must be at least 0, got {values.min():g}: of an error give its size, error.abs()"
            )
        alive = self._ring.is_alive(index).numpy()
        self._drawing.set_priorities((index % self.capacity).numpy(), alive, values)

    def update(self, index: Tensor, **columns: Tensor) -> int:
        """Rewrites keys in place (reanalyse) at the rows `index`, `[B]` or `[B, K+1]`; returns how many still lived.

        For a draw's later rows take `index[:, None] + torch.arange(K + 1)` where `mask` is true.
        """
        check_tensor(index=index, **columns)
        index = index.cpu()
        alive = self._ring.is_alive(index)
        for key, values in columns.items():
            if key not in self._ring.columns:
                raise ValueError(f"{key!r} is not a key of this buffer: {sorted(self._ring.columns)}")
            if values.shape != index.shape + self._ring.columns[key].shape[1:]:
                raise ValueError(
                    f"{key!r} must have shape {tuple(index.shape + self._ring.columns[key].shape[1:])}, got "
                    f"{tuple(values.shape)}"
                )
        sums = self._sums_at_hand()
        for key, values in columns.items():
            column = self._ring.columns[key]
            column[index[alive] % self.capacity] = values.detach().cpu()[alive].to(column.dtype)
        if MADE_OF & columns.keys():
            self._ring.n_changes += 1
            if sums is not None:
                sums.rewrite(index[alive])
        return int(alive.sum())

    def episode(self, index: int) -> dict[str, Tensor]:
        """Returns the rows of an episode from row `index` to its end, by key, with their `index`, to search anew."""
        check_whole(index=index)
        if not bool(self._ring.is_alive(torch.tensor(index, device="cpu"))):
            raise ValueError(f"index ({index}) is not among the live rows of this buffer")
        numbers = torch.arange(index, int(self._ring.end[index % self.capacity]) + 1, device="cpu")
        return {**{k: c[numbers % self.capacity] for k, c in self._ring.columns.items()}, "index": numbers}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later draws depend on, the live rows oldest first."""
        self._settle()
        return {
            "format": _FORMAT,
            "capacity": self.capacity,
            "n_step": self.n_step,
            "gamma": self.gamma,
            "alpha": self.alpha,
            **self._ring.state_dict(),
            **self._drawing.state_dict(self._ring.live()),
        }

    def position(self) -> dict[str, Any]:
        """Returns what the next draws depend on besides the rows, where they are drawn uniformly."""
        return self._drawing.position()

    def go_on(self, position: Mapping[str, Any]) -> None:
        """Draws as it did from a `position` on."""
        self._drawing.go_on(position)

    def draw_apart(self, rank: int, world: int) -> None:
        """Draws on as rank `rank` of `world`: each rank's buffer began with the same seed, and none may draw alike."""
        check_rank(rank, world)
        if world > 1:
            self._drawing.draw_by(derive_seed(seed_from(self._drawing.position()["generator"]), rank, world))

    def check_state(self, state: dict[str, Any]) -> None:
        """Does nothing if `state` is of a buffer like this one.

        Raises:
            ValueError: it is no buffer's state, or of a newer format, or its capacity, n_step, gamma or alpha differ.
        """
        check_state(state, "ReplayBuffer", _STATE_KEYS)
        if (number := state.get("format", 1)) not in range(1, _FORMAT + 1):
            raise ValueError(
                f"the state is of a buffer of format {number!r}, this version reads formats up to {_FORMAT}"
            )
        for name in ("capacity", "n_step", "gamma", "alpha"):
            if name in state and state[name] != getattr(self, name):  # format 1 held the capacity alone
                raise ValueError(
                    f"the state is of a buffer of {name} {state[name]}, this one has {getattr(self, name)}"
                )
        if (state["priority"] is None) != (self.alpha is None):
            raise ValueError("the state must be of a buffer with priorities exactly where this one has them")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Becomes the buffer that `state` was taken of.

        Raises:
            ValueError: as of `check_state`, or the state is damaged; then nothing has changed.
        """
        self.check_state(state)
        try:
            ring = Ring.restored(self.capacity, state)
            draws = self._drawing.restored(state, ring.live())
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise ValueError(f"the state of this buffer is damaged: {error}") from error
        self._arriving.clear()
        self._ring, self._drawing, self._sums = ring, draws, None

    def _check_ends(self, columns: dict[str, np.ndarray], lengths: np.ndarray) -> None:
        """Refuses episodes whose full return is not known."""
        if "value" in columns or "discount" not in columns:
            return
        cut = np.flatnonzero(columns["discount"][np.cumsum(lengths) - 2] != 0)
        if len(cut):
            raise ValueError(
                f"n_step=inf needs a value where an episode goes on after its last step, episode {cut[0]} of "
                f"{len(lengths)} was cut off and holds none: give value, or a finite n_step"
            )

    def _check(self, columns: dict[str, np.ndarray]) -> None:
        """Allocates the ring for the first episodes, or compares later ones with it."""
        own = {"index", "mask", "weight", "context"}
        if self.n_step not in (None, math.inf):
            parts = {"n_step_reward", "next_discount", *(f"next_{key}" for key in self.next_keys)}
            own |= {"target"} if "value" in columns else parts
        for name, keys in (("first_only", self.first_only), ("omit_keys", self.omit_keys)):
            if unknown := sorted(set(keys) - columns.keys()):
                raise ValueError(f"{name} names the keys {unknown}, episodes have {sorted(columns)}")
        if clash := sorted(own & columns.keys()):
            raise ValueError(f"episodes may not have the keys {clash}: draws hold them already")
        if self.n_step is not None and "reward" not in columns:
            raise ValueError(f"n_step ({self.n_step}) needs episodes with a reward, got the keys {sorted(columns)}")
        if self.n_step is not None and "discount" not in columns:
            raise ValueError(
                f"n_step ({self.n_step}) needs a discount of packed episodes, 0 where one ends, got the keys "
                f"{sorted(columns)}"
            )
        if self.n_step is not None and columns["reward"].ndim != 1:
            shape = columns["reward"].shape[1:]
            raise ValueError(f"reward must be one number a step for n-step sums, got the shape {shape} a step")
        if self.frame_stack > 1 and "obs" not in columns:
            raise ValueError(
                f"frame_stack ({self.frame_stack}) needs episodes with obs, got the keys {sorted(columns)}"
            )
        self._ring.check(columns)

    def _gather(self, start: Tensor, index: Tensor) -> dict[str, Tensor]:
        numbers, places = index, start
        known: dict[str, Tensor] = {}
        if self.unroll is not None:
            numbers, known = unrolled(self._ring, index, self.burn_in, self.unroll)
            places = numbers % self.capacity

        def gathered(keys: Iterable[str], numbers: Tensor, places: Tensor) -> Iterator[tuple[str, Tensor]]:
            for key in keys:
                alone = numbers.ndim == 2 and key in self.first_only
                at, place = (numbers[:, 0], places[:, 0]) if alone else (numbers, places)
                if key == "obs" and self.frame_stack > 1:
                    yield key, stacked(self._ring, at, self.frame_stack, self.pad_frames)
                else:
                    yield key, self._ring.rows(key, place)

        batch = dict(gathered((key for key in self._ring.columns if key not in self.omit_keys), numbers, places))
        if self.n_step not in (None, math.inf):
            rewards, factor = self._n_step_sums().at(places)
            end = self._ring.end.index_select(0, start)
            steps_left = (end if self.unroll is None else end[:, None]) - numbers
            after = numbers + steps_left.clamp(max=int(self.n_step or 0))
            places_after = after % self.capacity
            if "value" in self._ring.columns:
                batch["target"] = n_step_returns(rewards, factor, self._ring.rows("value", places_after))
            else:
                batch["n_step_reward"], batch["next_discount"] = rewards, factor
                there = [key for key in self.next_keys if key in self._ring.columns]
                batch |= {f"next_{key}": column for key, column in gathered(there, after, places_after)}
        return batch | known

    def _n_step_sums(self) -> NStepSums:
        """Returns the sums of the live rows, by what is to be summed now."""
        sums = self._sums_at_hand()
        if sums is None:
            sums = self._sums = NStepSums(self._ring, int(self.n_step or 0), self.gamma)
        return sums

    def _sums_at_hand(self) -> NStepSums | None:
        """Returns the sums that hold now; None where there are none, or a copy that shares the ring has changed it."""
        if self._sums is None or self.n_step in (None, math.inf):
            return None
        return self._sums if self._sums.are_of(self._ring, int(self.n_step or 0), self.gamma) else None
