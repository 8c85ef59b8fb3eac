"""One request on its way, as its client sees it."""

import json
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ai.infer.errors import InferError, InPartsError, RequestCancelledError, RequestError
from ai.infer.transport.trees import RawTensor, Tree, unflatten
from ai.infer.transport.wire import Layout

Parts = Tensor | list[Tensor] | RawTensor
"""A tensor to send: as it is, as the pieces that make it up row after row, or as its bytes."""


END: Any = object()
"""What comes after the last part of a reply."""


class PendingRequest:
    """One request on its way.

    Args:
        request_id: its number on this line.
        device: where the reply's tensors go; None: they stay on the CPU.
        raw: whether the tensors of request and reply are `RawTensor`s.
    """

    # Of the class as long as they are so of most requests: to set a dozen for each costs as much as to send it.
    slot: int | None = None  # None: it travels by socket, or its slot has been given back
    by_socket = False
    parts: deque[tuple[int, Tree]] | None = None
    """That have come, if the reply does so in parts."""
    n_taken = 0  # parts since the worker was last told of some
    outcome: tuple[int, Tree] | InferError | None = None
    cancelled = overdue = False
    waiter: "Callable[[PendingRequest], object] | None" = None
    """What an event loop is to call, once, when there is something to fetch."""
    is_dropped = False  # by who waited: it is not to be called any more, even if that is due
    deadline = math.inf
    """Of `waiter`, by `time.monotonic()`."""

    def __init__(self, request_id: int, device: torch.device | None = None, raw: bool = False) -> None:
        self.id = request_id
        self.device = device
        self.raw = raw

    def fetch(self) -> tuple[int, Tree]:
        """Returns the version of the weights and the reply, or its next part; raises what went wrong instead."""
        if self.parts and not self.cancelled:
            return self.parts.popleft()
        outcome = self.outcome
        if self.cancelled:
            raise RequestCancelledError("this request was cancelled")
        if isinstance(outcome, InferError):
            raise outcome
        assert outcome is not None
        return outcome

    def build(self, layout: Layout, views: list[Tensor], *, own: bool) -> Tree:
        """Returns a reply's tree, its tensors copied out of the slot, or as they are if they `own` their memory."""
        if layout.is_tensor and self.device is None:  # nearly always
            return views[0] if own else views[0].clone()
        if self.device is not None:
            tensors = [view.to(self.device) for view in views]
        else:
            tensors = views if own else [view.clone() for view in views]
        return tensors[0] if layout.is_tensor else unflatten(layout.tree, iter(tensors), trusted=True)

    def build_raw(self, layout: Layout, data: memoryview) -> Tree:
        """Returns a reply's tree of `RawTensor`s."""
        tensors = layout.raw(data)
        return tensors[0] if layout.is_tensor else unflatten(layout.tree, iter(tensors), trusted=True)


def special_reply(header: bytes) -> InferError | None:
    """Returns what a reply without tensors says; None: the reply was too large for its slot and follows by socket."""
    document = json.loads(header)
    if "error" in document:
        return (InPartsError if "in_parts" in document else RequestError)(document["error"])
    if "cancelled" in document:
        return RequestCancelledError("this request was cancelled")
    return None


def copy_into(x: Parts, view: Tensor) -> None:
    """Copies a tensor, or the pieces that make it up, to where it travels: memory that every mode may write into."""
    if isinstance(x, Tensor):
        view.copy_(x)
    elif isinstance(x, list) and len(x) == 1:
        view.copy_(x[0])
    elif isinstance(x, RawTensor):
        view.reshape(-1).view(torch.uint8).numpy().data[:] = x.data
    elif x[0].is_cpu and view.is_contiguous():
        torch.cat(x, out=view)
    else:
        view.copy_(torch.cat(x))
