"""Keys and values of tokens that attention has seen, kept while a sequence grows.

Entries are counted, not named: the n-th attention that a forward goes through has entry n, whichever module that is.
So a block used twice has two entries, and a copied cache or a copied network goes on where the other left off.

Axes: `B` batch, `H` heads, `S` tokens seen, `D` width of a head.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass
class _Entry:
    """What one attention of a forward has seen: the first `used` keys and values of two buffers."""

    k: Tensor
    v: Tensor
    used: int
    queries: int
    context: "_Context | None" = None


@dataclass
class _Context:
    """What cross-attention looked at: the caller's own tensor while it is known, and a copy of its numbers."""

    tensor: Tensor
    version: int | None
    numbers: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        return cls(tensor, _version(tensor), tensor.detach().clone())

    def is_(self, tensor: Tensor) -> bool:
        """Whether a tensor has the same numbers; they are compared if it is another one or may have been written to."""
        if tensor is self.tensor and self.version is not None and self.version == _version(tensor):
            return True
        if tensor.shape != self.numbers.shape or not torch.equal(tensor.detach(), self.numbers):
            return False
        self.tensor, self.version = tensor, _version(tensor)
        return True


@dataclass
class _Caller:
    """A module that was called with the cache outside any forward, and the entry that it began with."""

    module: "weakref.ref[nn.Module] | None"
    first: int


class KVCache:
    """Keys and values of the tokens seen so far, one cache for all the attention of a network.

    Give the same cache to each call while a sequence grows: `net(x_new, cache=cache)`. A call of an `ai.model.Model`
    is one forward, and so is a call of a block by itself. A plain module of your own that uses one block twice is
    refused until it says so, as a function has to: `with cache.forward(): …` around what belongs to one forward. Where
    a layer attends to a context, the context's keys and values are computed in the first call and kept; another context
    is refused.

    A copy (`copy.copy`, `copy.deepcopy`, a pickle) has memory of its own. A forward that raises leaves no trace.

    An attention's memory is `2 · B · H · S · D` numbers, and up to twice that while it grows: buffers double, so that a
    token costs no copy of all before it. Where gradients are to flow, a token is joined to the others by a copy.

    Example:
        >>> import ai.model as m
        >>> net = m.sa(8, 2, causal=True)
        >>> cache, tokens = KVCache(), torch.randn(1, 3, 8)
        >>> grown = torch.cat([net(token, cache=cache) for token in tokens.split(1, 1)], 1)
        >>> torch.allclose(grown, net(tokens), atol=1e-6), cache.length()
        (True, 3)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything, as if the cache were new."""
        self._entries: list[_Entry] = []
        self._callers: list[_Caller] = []
        self._at = 0  # the entry that comes next
        self._whole = False  # whether a forward has ended, so that the number of entries is known
        self._inside: int | None = None  # the thread that goes through a forward
        self._last_output: weakref.ref[Tensor] | None = None  # of a module that was called by itself
        self._within: object | None = None  # arguments of the outermost call of a module that it was called in

    def length(self) -> int:
        """Returns how many tokens the network has been called with."""
        return self._entries[0].queries if self._entries else 0

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Counts all uses within it as one forward; within another one it does nothing.

        Raises:
            ValueError: It went through fewer attentions than the forwards before.

        Example:
            >>> import ai.model as m
            >>> block, cache = m.tx_enc_blk(8, 2, causal=True), KVCache()
            >>> def twice(x, cache):
            ...     with cache.forward():
            ...         return block(block(x, cache=cache), cache=cache)
            >>> tokens = torch.randn(1, 3, 8)
            >>> grown = torch.cat([twice(token, cache) for token in tokens.split(1, 1)], 1)
            >>> torch.allclose(grown, twice(tokens, KVCache()), atol=1e-5)
            True
        """
        if self._inside is not None:
            self._check_thread()
            yield
            return
        with self._undone_if_it_raises():
            self._begin()
            self._inside = threading.get_ident()
            yield
            self._end()

    def called(self, module: nn.Module, call: Callable[..., Any], x: Tensor, *args: Any) -> Any:
        """Returns what a module's `call` gives: within a forward as a part of it, and else as one of its own."""
        if self._inside is not None:
            self._check_thread()
            return call(x, *args)
        with self._undone_if_it_raises():
            self._turn_of(module, x)
            self._inside = threading.get_ident()
            out = call(x, *args)
            self._inside = None
            self._last_output = weakref.ref(out) if isinstance(out, Tensor) else None
            return out

    def select(self, rows: Tensor) -> Self:
        """Keeps these rows of the batch, in this order, as a beam search needs it; returns the cache.

        Args:
            rows: int64 indices; one may stand several times.
        """
        self._check_between("select")
        known: dict[int, _Context] = {}
        for entry in self._entries:
            index = rows.to(entry.k.device)
            entry.k = entry.k[:, :, : entry.used].index_select(0, index)
            entry.v = entry.v[:, :, : entry.used].index_select(0, index)
            if entry.context is not None:
                key = id(entry.context)
                if key not in known:
                    known[key] = _Context.of(entry.context.numbers.index_select(0, index))
                entry.context = known[key]
        return self

    def crop(self, n: int) -> Self:
        """Forgets all but the first `n` tokens, such as a draft that was refused; returns the cache.

        Raises:
            ValueError: `n` is negative, or more than the cache holds, or some attention has seen another number of
                tokens than the first, so that it is unknown which of them belong to the first `n`.
        """
        self._check_between("crop")
        if not 0 <= n <= self.length():
            raise ValueError(f"n ({n}) must be from 0 to the {self.length()} tokens that the cache holds")
        if n == self.length():
            return self
        if n and any(entry.queries != self.length() for entry in self._entries):
            seen = ", ".join(str(entry.queries) for entry in self._entries)
            raise ValueError(f"n ({n}) must be 0 where attentions have seen unlike numbers of tokens, here {seen}")
        for entry in self._entries:
            entry.queries = n
            if entry.context is None:
                entry.used = n
        return self

    def __copy__(self) -> Self:
        self._check_between("copy")
        copied = type(self)()
        known: dict[int, _Context] = {}
        for entry in self._entries:
            k, v = entry.k[:, :, : entry.used].clone(), entry.v[:, :, : entry.used].clone()
            context = entry.context
            if context is not None:
                context = known.setdefault(id(context), replace(context))
            copied._entries.append(_Entry(k, v, entry.used, entry.queries, context))
        copied._callers = [replace(caller) for caller in self._callers]
        copied._at, copied._whole = self._at, bool(self._entries)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        copied = self.__copy__()
        for caller in copied._callers:
            caller.module = None
        for entry in copied._entries:
            if entry.context is not None:
                entry.context.tensor, entry.context.version = entry.context.numbers, None
        return vars(copied)

    def seen(self) -> int:
        """Returns how many tokens the attention that comes next has been called with."""
        return self._entries[self._at].queries if self._at < len(self._entries) else 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends `(B, H, T, D)` keys and values to the next entry, and returns all of them.

        Raises:
            ValueError: They are of another batch, or of another number or width of heads, than those before.
        """
        entry, n = self._next(), k.shape[2]
        if entry is None:
            self._entries.append(_Entry(k, v, n, n))
            return k, v
        if entry.context is not None:
            raise ValueError("context must be given: the cache has kept one for this attention")
        if entry.k.shape[:2] != k.shape[:2] or entry.k.shape[3] != k.shape[3]:
            raise ValueError(
                f"k {tuple(k.shape)} must have the batch, heads and width of the cache, "
                f"{(*entry.k.shape[:2], entry.used, entry.k.shape[3])}"
            )
        if entry.k.dtype != k.dtype and not torch.is_autocast_enabled(k.device.type):
            raise ValueError(f"k ({k.dtype}) must have the type of the cache, {entry.k.dtype}: reset it first")
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad or entry.k.requires_grad):
            entry.k = torch.cat([entry.k[:, :, : entry.used], k], 2)
            entry.v = torch.cat([entry.v[:, :, : entry.used], v], 2)
        else:
            entry.k = _appended(entry.k, entry.used, k)
            entry.v = _appended(entry.v, entry.used, v)
        entry.used, entry.queries = entry.used + n, entry.queries + n
        return entry.k[:, :, : entry.used], entry.v[:, :, : entry.used]

    def kept(
        self, n_queries: int, context: Tensor, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of a context, which are computed in the first forward.

        Raises:
            ValueError: The context is not that of the first forward.
        """
        entry = self._next()
        if entry is None:
            k, v = project(context)
            self._entries.append(_Entry(k, v, k.shape[2], n_queries, self._known(context)))
            return k, v
        kept = entry.context
        if kept is None or not kept.is_(context):
            held = "none" if kept is None else str(tuple(kept.numbers.shape))
            raise ValueError(
                f"context {tuple(context.shape)} must be the one that the cache has kept, {held}, with the same "
                "numbers: begin another with cache.reset()"
            )
        entry.queries += n_queries
        return entry.k, entry.v

    def _known(self, context: Tensor) -> _Context:
        """Returns the record of a context, one for all that attend to it."""
        for entry in self._entries:
            if entry.context is not None and entry.context.tensor is context and entry.context.is_(context):
                return entry.context
        return _Context.of(context)

    def _next(self) -> _Entry | None:
        """Returns the entry whose turn it is, or None for a new one."""
        at, self._at = self._at, self._at + 1
        if at < len(self._entries):
            return self._entries[at]
        if self._whole:
            raise ValueError(
                f"the cache knows {len(self._entries)} attentions a forward, and this one goes through more: it "
                "belongs to another network, or its calls are parts of one forward (with cache.forward(): …)"
            )
        return None

    def _begin(self) -> None:
        if self._at == len(self._entries) and self._entries:
            self._at, self._whole = 0, True
        if self._at:
            raise ValueError(f"the last forward went through {self._at} of {len(self._entries)} attentions")

    def _end(self) -> None:
        if self._at != len(self._entries):
            raise ValueError(
                f"a forward must go through all {len(self._entries)} attentions of the cache, this one went through "
                f"{self._at}"
            )
        self._whole, self._at, self._inside = bool(self._entries), 0, None
        self._callers.clear()

    def _turn_of(self, module: nn.Module, x: Tensor) -> None:
        """Says which entries a module has that is called by itself: those after the others', or its own once more."""
        known = next((c for c in self._callers if c.module is not None and c.module() is module), None)
        within, self._within = self._within, _arguments_of_outermost_call(self)
        if known is not None and known.first == 0 and self._at == len(self._entries):
            fed_back = self._last_output is not None and self._last_output() is x
            if fed_back or (within is not None and within is self._within):
                raise ValueError(
                    "a block that is called again within one call of a module, or is given what it has just returned, "
                    "may be a second use in one forward, or the next forward: say which by `with cache.forward(): …` "
                    "around each forward"
                )
            self._at, self._whole = 0, True
        if known is not None:
            if known.first != self._at:
                raise ValueError(
                    "modules that share a cache must be called in the order of their first forward: put each forward "
                    "in `with cache.forward(): …`"
                )
            return
        if self._whole and self._at == len(self._entries):
            self._at = 0
        taken = next((c for c in self._callers if c.first == self._at), None)
        if taken is None:
            self._callers.append(_Caller(weakref.ref(module), self._at))
        else:  # a copied or loaded network goes on with what the other began
            taken.module = weakref.ref(module)

    @contextmanager
    def _undone_if_it_raises(self) -> Iterator[None]:
        entries = [replace(entry) for entry in self._entries]
        callers, at, whole = [replace(caller) for caller in self._callers], self._at, self._whole
        try:
            yield
        except BaseException:
            self._entries, self._callers, self._at, self._whole = entries, callers, at, whole
            raise
        finally:
            self._inside = None

    def _check_between(self, what: str) -> None:
        if self._inside is not None:
            raise RuntimeError(f"{what} must be called between two forwards, not within one")

    def _check_thread(self) -> None:
        if self._inside != threading.get_ident():
            raise RuntimeError("a cache must be used by one thread at a time: give each its own copy")


def _arguments_of_outermost_call(cache: KVCache) -> object | None:
    """Returns an object that is one and the same while the outermost call of a torch module lasts, and in no other.

    It is the arguments of that call, by place or by name: those that do not hold the cache, which they would keep
    alive. If all are given by name, it is a tensor among them, which the next call may be given again.
    """
    frame, outermost = sys._getframe(1), None
    while frame is not None:
        if frame.f_code is nn.Module.__call__.__code__:
            outermost = frame
        frame = frame.f_back  # type: ignore[assignment]
    if outermost is None:
        return None
    args, kwargs = (outermost.f_locals.get(name) for name in ("args", "kwargs"))
    if args and not any(value is cache for value in args):
        return args
    if kwargs and any(value is cache for value in kwargs.values()):
        return next((value for value in kwargs.values() if isinstance(value, Tensor)), None)
    return kwargs


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _appended(buffer: Tensor, used: int, new: Tensor) -> Tensor:
    """Returns a buffer whose first `used` entries along axis 2 are the given one's, followed by the new ones."""
    needed = used + new.shape[2]
    ours = not buffer.requires_grad and buffer.is_inference() == torch.is_inference_mode_enabled()
    if needed > buffer.shape[2] or not ours:  # what gradients are to flow through is never written to
        room = max(needed, 2 * used, 16)
        grown = buffer.new_empty(*buffer.shape[:2], room, buffer.shape[3])
        grown[:, :, :used] = buffer[:, :, :used]
        buffer = grown
    buffer[:, :, used:needed] = new
    return buffer
