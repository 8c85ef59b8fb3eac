"""Evaluators: what tells a search how good a position is and which moves look promising.

Any callable will do that takes observations, a float32 tensor `[B, ...]`, and returns `(logits [B, A], value [B])`: a
model, an inference client, a function. Values are from the view of the player to move.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ai.game import draws, fast
from ai.game.arguments import check_count, check_flag
from ai.game.protocol import Game, State, move_weights, outcome_for, reward_of_each
from ai.game.search.device import fetched, sent
from ai.game.search.rules.puct import Puct
from ai.game.search.rules.rule import Rule
from ai.model import fold
from ai.model.arguments import check_instance, check_whole

Evaluation = tuple[Any, Any]

_SWITCHING = threading.Lock()


@runtime_checkable
class StateEvaluator(Protocol):
    """An evaluator that looks at states, not at observations (rollouts, a perfect table)."""

    def evaluate(self, state: State) -> Evaluation:
        """Returns logits `[B, A]` and values `[B]`; also where a limit of moves cut a game off and none is legal."""
        ...


def check_evaluator(evaluator: Any) -> None:
    """Raises `TypeError` for what can evaluate no position, such as a class.

    >>> check_evaluator(print)
    """
    check_instance(evaluator=evaluator)
    if not (callable(evaluator) or isinstance(evaluator, StateEvaluator)):
        raise TypeError(f"evaluator must be a module, a function or have evaluate(state), got {evaluator!r}")


def evaluating(evaluator: Any) -> AbstractContextManager[None]:
    """Returns the context in which what an evaluator asks does not learn; one that does nothing where it has none."""
    context: AbstractContextManager[None] = getattr(evaluator, "evaluating", nullcontext)()
    return context


@dataclass
class NetEvaluator:
    """Runs a network the way that was measured to be fastest.

    Args:
        model: module from observations to `(logits, value)`; evaluated in eval mode, without gradients.
        chunk: at most so many rows a call; None for all at once. Small batches stay in the CPU's cache.
        channels_last: memory format for 4-d observations.
        dtype: None for the model's own, or `torch.bfloat16` (autocast).
        device: where the model lives; None to look.
        fold: run a copy made for it, with batch norms folded into convolutions (`ai.model.fold`) and, for
            `channels_last`, weights in that format; it is made anew where the model's weights have changed, which is
            looked at once a search.
    """

    model: nn.Module
    chunk: int | None = None
    channels_last: bool = False
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    fold: bool = False

    def __post_init__(self) -> None:
        self._depth = 0  # of `evaluating`, in all threads
        self._trains = False
        self._folded: nn.Module | None = None
        self._folded_of: list[Tensor] = []
        if self.chunk is not None:
            check_count(1, chunk=self.chunk)
        check_flag(channels_last=self.channels_last, fold=self.fold)
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model must be a module, got {type(self.model).__name__}: other evaluators need no wrap")

    def __call__(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and values on the CPU in float32 (float64 stays)."""
        if self._depth == 0 or not torch.is_inference_mode_enabled():
            with self.evaluating():
                return self(observation)
        if self.chunk is None or len(observation) <= self.chunk:
            return self._forward(observation)
        outputs = [self._forward(part) for part in torch.split(observation, self.chunk)]
        return torch.cat([logits for logits, _ in outputs]), torch.cat([value for _, value in outputs])

    @property
    def rule(self) -> Any:
        """The model's own, which a search takes where it is given none."""
        return getattr(self.model, "rule", None)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Holds the model in eval mode, without gradients.

        Entered once a search: to switch a model costs as much as a small one.
        """
        try:
            with _SWITCHING:
                self._depth += 1
                if self._depth == 1:
                    self._trains = self.model.training
                    if self._trains:
                        self.model.eval()
                    if self.fold:
                        self._refold()
            with torch.inference_mode():
                yield
        finally:
            with _SWITCHING:
                self._depth -= 1
                if self._depth == 0 and self._trains:
                    self.model.train()

    def _refold(self) -> None:
        # the numbers themselves are compared: a fused optimiser changes them without a trace
        tensors = [*self.model.parameters(), *self.model.buffers()]
        known = len(tensors) == len(self._folded_of) and all(map(torch.equal, tensors, self._folded_of))
        if self._folded is None or not known:
            self._folded = fold(self.model)
            self._folded_of = [tensor.detach().clone() for tensor in tensors]
            if self.channels_last:
                self._folded.to(memory_format=torch.channels_last)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        model = self._folded if self.fold and self._folded is not None else self.model
        device = self.device
        if device is None:  # looked at anew: a model may be moved
            first = next(self.model.parameters(), None)
            device = torch.device("cpu") if first is None else first.device
        x = sent(x, device)
        if not x.is_floating_point():  # frames travel as bytes
            x = x.float()
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.dtype is None:
            logits, value = model(x)
        else:
            with torch.autocast(device.type, self.dtype):
                logits, value = model(x)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits, value = logits.float(), value.float()
        logits, value = fetched(logits, value)
        return logits, value

    @classmethod
    def tuned(
        cls, model: nn.Module, observation: Tensor, *, allow_bf16: bool = False, seconds: float = 0.1
    ) -> NetEvaluator:
        """Returns the fastest evaluator for batches like `observation[B, ...]`, by measurement.

        Args:
            model: the network.
            observation: a batch of the size that the search will ask for.
            allow_bf16: whether lower precision may be chosen; it changes values in the third digit.
            seconds: how long to time each of the up to 16 candidates.

        Of a convolutional network on a CPU a folded copy runs, which changes values in the last digits. On Linux the
        process keeps up to 256 MiB that it frees: to return the memory of activations to the system, and to have it
        back at the next call, took a quarter of the time.
        """
        _keep_freed_memory()
        chunks = sorted({min(len(observation), c) for c in (32, 64, 128)} | {len(observation)})
        convolves = observation.dim() == 4 and any(parameter.dim() == 4 for parameter in model.parameters())
        folds = convolves and all(parameter.device.type == "cpu" for parameter in model.parameters()) and _folds(model)
        formats = (False, True) if convolves else (False,)
        dtypes = (None, torch.bfloat16) if allow_bf16 else (None,)
        candidates = (
            cls(model, chunk, form, dtype, fold=folds) for chunk in chunks for form in formats for dtype in dtypes
        )
        return min(candidates, key=lambda candidate: _seconds_a_call(candidate, observation, seconds))


class RolloutEvaluator:
    """Values a position by playing random games from it; the prior is uniform.

    A few random games say little, so that a search by them tries each move more than once: `rule` explores over three
    times as much as `Puct()`, which drops a move whose first game was lost. It is a search's where it is given none.

    Args:
        game: whose rules to play by.
        rollouts: games a position.
        seed: of the moves; a position's luck depends on the seed and the position alone, not on its neighbours.
        max_moves: a rollout that goes on for longer is worth what it has earned.
    """

    rule: ClassVar[Rule] = Puct(c_init=4.0)

    def __init__(self, game: Game, *, rollouts: int = 1, seed: int = 0, max_moves: int = 10_000) -> None:
        check_count(1, rollouts=rollouts, max_moves=max_moves)
        check_whole(seed=seed)
        self.game, self.rollouts, self.seed, self.max_moves = game, rollouts, seed, max_moves

    def evaluate(self, state: State) -> Evaluation:
        """Returns zero logits and the mean return of the rollouts, to the mover or to each of more than two players."""
        game = self.game
        current = np.repeat(state, self.rollouts)
        owner = np.array(game.to_play(current))  # which may be a view into the states
        many = game.num_players > 2
        value = np.zeros((len(current), game.num_players) if many else len(current))
        worth = np.ones(len(current))
        luck = draws.fold_in(draws.digest(state), self.seed).repeat(self.rollouts)
        luck = draws.fold_in(luck, np.tile(np.arange(self.rollouts), len(state)))
        live = np.flatnonzero(~game.terminal(current))
        for move in range(self.max_moves):
            if not len(live):
                break
            action = draws.choose(draws.fold_in(luck[live], move), move_weights(game, current[live]))
            mover = game.to_play(current[live])
            current[live] = game.step(current[live], action)
            if many:
                value[live] += worth[live, None] * reward_of_each(game, current[live])
            else:
                value[live] += worth[live] * outcome_for(owner[live], game.reward(current[live]), mover)
            worth[live] *= game.discount
            live = live[~game.terminal(current[live])]
        mean = value.reshape(len(state), self.rollouts, *value.shape[1:]).mean(axis=1)
        return np.zeros((len(state), game.num_actions)), mean


class CachedEvaluator:
    """Remembers evaluations by observation, so that a position met again, in any game or tree, costs no network call.

    Args:
        evaluator: what to ask for positions not met before.
        capacity: entries kept; a newer position replaces the one in its place.

    `clear` it whenever the network changes.
    """

    def __init__(self, evaluator: Callable[[Tensor], Evaluation] | nn.Module, *, capacity: int = 1 << 19) -> None:
        check_count(1, capacity=capacity)
        if not callable(evaluator):
            raise TypeError(f"evaluator must be a module or a function of observations, got {evaluator!r}")
        self.evaluator = NetEvaluator(evaluator) if isinstance(evaluator, nn.Module) else evaluator
        self.capacity = 1 << (capacity - 1).bit_length()
        self.hits = self.misses = 0
        self._keys = np.zeros((self.capacity, 2), np.uint64)
        self._logits: NDArray[np.float32] | None = None
        self._values = np.zeros(self.capacity, np.float32)
        self._mixers = np.zeros((0, 2), np.uint64)
        self._lock = threading.Lock()  # threads may share the memory; they ask the evaluator at the same time

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def rule(self) -> Any:
        """That of the evaluator behind, which a search takes where it is given none."""
        return getattr(self.evaluator, "rule", None)

    def evaluating(self) -> AbstractContextManager[None]:
        """Returns the context in which the evaluator behind does not learn."""
        return evaluating(self.evaluator)

    def clear(self) -> None:
        """Forgets all evaluations."""
        with self._lock:
            self._keys[:] = 0

    def __call__(self, observation: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns logits and values, asking the evaluator only for rows not met before."""
        if not len(observation):
            return self._asked(observation)
        if self._logits is None:
            return self._first(observation)
        if observation[0].numel() != len(self._mixers):
            raise ValueError(
                f"observation must have the {len(self._mixers)} numbers a row of those before, got "
                f"{observation[0].numel()}: a cache is for one game"
            )
        batch = len(observation)
        logits = np.empty((batch, self._logits.shape[1]), np.float32)
        values = np.empty(batch, np.float32)
        with self._lock:
            key, slot, missing = self._find(observation, logits, values)
            self.hits += batch - len(missing)
            self.misses += len(missing)
        if len(missing):
            rows = observation if len(missing) == batch else observation[torch.from_numpy(missing)]
            new = self._asked(rows)
            with self._lock:
                self._keep(missing, *new, key, slot, logits, values)
        return logits, values

    def _asked(self, observation: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the evaluator's answer, of the shape that there is room for: the kernels look at no bounds."""
        logits, values = _float32(*self.evaluator(observation))
        batch = len(observation)
        if values.size != batch:
            raise ValueError(
                f"evaluator must return one value a position to be remembered, got {values.size} for {batch}"
            )
        actions = logits.shape[-1] if self._logits is None else self._logits.shape[1]
        if logits.shape != (batch, actions):
            raise ValueError(f"evaluator must return logits of shape ({batch}, {actions}), got {logits.shape}")
        return logits, values

    def _keep(
        self,
        missing: NDArray[np.int64],
        new_logits: NDArray[np.float32],
        new_values: NDArray[np.float32],
        key: NDArray[np.uint64],
        slot: NDArray[np.int64],
        logits: NDArray[np.float32],
        values: NDArray[np.float32],
    ) -> None:
        """Writes new evaluations into the answer and into memory."""
        assert self._logits is not None
        if (compiled := fast.kernels(__name__)) is not None:
            held = (self._keys, self._logits, self._values)
            compiled.keep(missing, new_logits, new_values, key, slot, *held, logits, values)
            return
        logits[missing], values[missing] = new_logits, new_values
        at = slot[missing]
        self._keys[at], self._logits[at], self._values[at] = key[missing], new_logits, new_values

    def _first(self, observation: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Learns from the first answer how many actions there are, then remembers it."""
        logits, _ = self._asked(observation[:1])
        with self._lock:
            if self._logits is None:
                rng = np.random.default_rng(0)
                entries = observation[0].numel()
                self._mixers = rng.integers(0, 1 << 63, (entries, 2), np.uint64) * np.uint64(2) + np.uint64(1)
                self._logits = np.zeros((self.capacity, logits.shape[1]), np.float32)
        return self(observation)

    def _find(
        self, observation: Tensor, logits: NDArray[np.float32], values: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Writes what is known; returns each row's key and slot, and the rows that are not known.

        A key is 128 bits: two sums of the entries' bits times odd random numbers, mixed; never zero.
        """
        batch = len(observation)
        bits = observation.float().contiguous().numpy().reshape(batch, -1).view(np.uint32)
        if (compiled := fast.kernels(__name__)) is not None:
            key, slot = np.empty((batch, 2), np.uint64), np.empty(batch, np.int64)
            missing = np.empty(batch, np.int64)
            held = (self._mixers, self._keys, self._logits, self._values)
            count = compiled.find(bits, *held, key, slot, logits, values, missing)
            return key, slot, missing[:count]
        # the bits of a float of few digits are mostly low zeros: fold them down before they are multiplied
        wide = bits.astype(np.uint64)
        key = (wide ^ (wide >> np.uint64(16))) @ self._mixers
        key = (key ^ (key >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15) | np.array([0, 1], np.uint64)
        slot = (key[:, 0] & np.uint64(self.capacity - 1)).astype(np.int64)
        known = (self._keys[slot] == key).all(axis=1)
        assert self._logits is not None
        logits[:], values[:] = self._logits[slot], self._values[slot]
        return key, slot, np.flatnonzero(~known)


def _float32(logits: Any, values: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.ascontiguousarray(logits, np.float32), np.ascontiguousarray(values, np.float32).reshape(-1)


@cache
def _keep_freed_memory() -> None:
    """Has glibc, where it is the C library, keep what is freed instead of returning it to the system."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 1 << 28)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD


def _folds(model: nn.Module) -> bool:
    """Returns whether a model can be copied; one under the old `torch.nn.utils.weight_norm` cannot."""
    try:
        fold(model)
    except RuntimeError:
        return False
    return True


def _seconds_a_call(evaluator: NetEvaluator, observation: Tensor, seconds: float) -> float:
    evaluator(observation)
    best, start = float("inf"), time.perf_counter()
    while True:
        before = time.perf_counter()
        evaluator(observation)
        now = time.perf_counter()
        best = min(best, now - before)
        if now - start > seconds:
            return best
