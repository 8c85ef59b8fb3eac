"""Replies on their way out: written into slots and sockets, then their clients are told."""

import json
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ai.infer.transport.frames import Kind
from ai.infer.transport.slots import SLOTS_PER_CLIENT, Board, fence
from ai.infer.transport.trees import Node
from ai.infer.transport.wire import Layout, has_channels_last, layout_of
from ai.infer.worker.connected_client import Request, error_header
from ai.infer.worker.rows.shares import Shares

_MOVED = b'{"moved":1}'
_CANCELLED = b'{"cancelled":1}'
_MAX_LAYOUTS = 4096


class ReplyWriter:
    """Gives every request its reply, once, and counts them.

    Args:
        board: of the worker; None where there is no shared memory.
    """

    def __init__(self, board: Board | None) -> None:
        self._board = board
        self.version = 0
        """Of the weights that the replies are made with."""
        self.n_requests = self.n_errors = self.n_cancelled = 0
        self.on_sent: Callable[[Request], None] = lambda request: None
        """Is called with a request whose reply went by socket."""
        self._layouts: dict[Any, Layout] = {}

    def without_cancelled(self, batch: list[Request]) -> list[Request]:
        """Answers those of a batch that nobody wants any more; returns the others."""
        cancelled_at = () if self._board is None else self._board.cancelled_at
        cancelled = [
            request
            for request in batch
            if (
                request.id in request.client.cancelled if request.slot < 0 else cancelled_at[request.slot] == request.id
            )
        ]
        if not cancelled:
            return batch
        for request in cancelled:
            self._skip(request)
        return [request for request in batch if request not in cancelled]

    def layouts(self, node: Node, shares: Shares) -> dict[int, Layout]:
        """Returns the layouts of a batch's replies by their rows: all else is equal within a batch.

        Args:
            node: the output's form.
            shares: of the requests.

        Raises:
            WireError: no message can carry them.
        """
        form = json.dumps(node) if node != ["t"] else ""
        layouts: dict[int, Layout] = {}
        for i, n_rows in enumerate(shares.rows):
            if n_rows not in layouts:
                layouts[n_rows] = self._layout(form, node, shares[i])
        return layouts

    def write(self, batch: list[Request], layouts: dict[int, Layout], shares: Shares) -> None:
        """Writes each request's rows of the output where its client looks for them, then tells the clients.

        Nobody is told before all is written: an output that cannot be copied (some are of classes that forbid it)
        leaves every request to be answered otherwise.

        Args:
            batch: the requests.
            layouts: what `layouts` returned.
            shares: of the requests.
        """
        placed: list[int] = []
        by_socket: list[tuple[Request, Layout, Tensor]] = []
        for i, request in enumerate(batch):
            layout = layouts[request.rows]
            if request.reply is layout or self._has_place(request, layout):
                placed.append(i)
            else:
                by_socket.append((request, layout, layout.body(shares[i])))
        answered = batch if len(placed) == len(batch) else [batch[i] for i in placed]
        if shares.data is None:
            views = [x for request in answered for x in _views(request)]
            if views:  # an output may be None
                torch._foreach_copy_(views, [x for i in placed for x in shares[i]])
        else:
            for k, pieces in enumerate(shares.data):
                for i in placed:
                    batch[i].reply_bytes[k][:] = pieces[i]
        self.n_requests += len(batch)
        for request, layout, body in by_socket:
            self._send(request, layout, body)
        if answered:
            self._publish(answered)

    def _has_place(self, request: Request, layout: Layout) -> bool:
        """Returns whether a reply of this layout goes into its request's slot, having described it there."""
        area = request.client.area
        if request.slot < 0 or area is None or not area.fits(layout):
            return False
        place = 2 * (request.slot % SLOTS_PER_CLIENT) + 1
        area.write_form(place, layout)
        request.reply_bytes = layout.cut(area.data(place, layout))
        request.reply = layout
        return True

    def _layout(self, form: str, node: Node, share: list[Tensor]) -> Layout:
        key = (form, *((x.dtype, x.shape, x.ndim >= 4 and has_channels_last(x)) for x in share))
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            layout = layout_of(node, share)
            self._layouts[key] = layout
        return layout

    def _send(self, request: Request, layout: Layout, body: Tensor) -> None:
        if request.slot >= 0:  # after it was copied: an output may be a view of the input, which lies there
            self._finish_slot(request, _MOVED)
        request.client.stream.send(
            Kind.REPLY, request.id, version=self.version, header=layout.header, body=body.numpy().data
        )
        self.on_sent(request)

    def refuse(self, request: Request, text: str, *, in_parts: bool = False) -> None:
        """Answers a request with an error; `in_parts`: the reply comes in parts, and was asked for whole."""
        self.n_requests += 1
        self.n_errors += 1
        if request.slot >= 0 and request.client.area is not None:
            room = min(request.client.area.slot_bytes, 1 << 16)
            self._finish_slot(request, error_header(text, room - 64, in_parts=in_parts))
        else:
            request.client.stream.send(Kind.ERROR, request.id, header=error_header(text, 1 << 20, in_parts=in_parts))
            self.on_sent(request)

    def _skip(self, request: Request) -> None:
        """Answers a request that nobody wants any more."""
        if request.slot >= 0:
            self._finish_slot(request, _CANCELLED)
        else:
            request.client.cancelled.pop(request.id, None)
            request.client.stream.send(Kind.ERROR, request.id, header=_CANCELLED)
            self.on_sent(request)
        self.n_requests += 1
        self.n_cancelled += 1

    def _finish_slot(self, request: Request, header: bytes) -> None:
        assert request.client.area is not None
        request.reply = None
        request.client.area.write_header(2 * (request.slot % SLOTS_PER_CLIENT) + 1, header)
        self._publish([request])

    def _publish(self, requests: list[Request]) -> None:
        """Marks slots as answered, all of them before the first client wakes."""
        board, version = self._board, self.version
        assert board is not None
        versions, answered = board.version_at, board.answered_at
        for request in requests:
            versions[request.slot] = version
            answered[request.slot] = request.id
        fence()
        for client in {request.client for request in requests}:
            if board.asleep_at[client.index]:
                os.eventfd_write(client.reply_event, 1)


def _views(request: Request) -> list[Tensor]:
    """Returns the tensors of a reply that has its place in a slot."""
    assert request.client.area is not None
    assert request.reply is not None
    return request.client.area.views(2 * (request.slot % SLOTS_PER_CLIENT) + 1, request.reply)
