"""One batch: gather the requests' tensors, call the model once, give every request its rows of the output."""

import json
import os
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai.infer.transport.frames import Kind
from ai.infer.transport.slots import SLOTS_PER_CLIENT, Board, fence
from ai.infer.transport.wire import Layout, Node, Tree, flatten, make_layout, unflatten
from ai.infer.worker.connected_client import Request, error_header
from ai.infer.worker.engine import Engine

_MOVED = b'{"moved":1}'
_CANCELLED = b'{"cancelled":1}'
_MAX_LAYOUTS = 4096
_NOTHING = torch.empty(0)


class NotRowWiseError(ValueError):
    """The model's output has no row for each row of its input, so that requests cannot share a call."""


class BatchCall:
    """Runs batches and writes the replies into slots and sockets.

    Args:
        engine: calls the model.
        board: of the worker; None where there is no shared memory.
        max_rows: of a call; a larger request is run in pieces.
    """

    def __init__(self, engine: Engine, board: Board | None, max_rows: int) -> None:
        self._engine = engine
        self._board = board
        self.max_rows = max_rows
        self.version = 0
        self.n_requests = self.n_rows = self.n_batches = self.n_errors = self.n_cancelled = 0
        self.on_sent: Callable[[Request], None] = lambda request: None
        self._layouts: dict[Any, Layout] = {}
        self._alone: set[str] = set()  # groups whose outputs cannot be shared out

    def group(self, layout: Layout) -> str | None:
        """Returns which requests one of this layout can share a call of the model with; None: it runs alone."""
        return None if layout.group in self._alone else layout.group

    def answer(self, batch: list[Request]) -> None:
        """Answers every request of a batch; whatever fails, fails only the requests that are at fault."""
        batch = [request for request in batch if not self._skip_cancelled(request)]
        if batch:
            self._run(batch)

    def _run(self, batch: list[Request]) -> None:
        try:
            rows = [request.rows for request in batch]
            node, tensors = self._forward(batch, sum(rows))
            if len(batch) > 1 and not all(x.shape[:1] == (sum(rows),) for x in tensors):
                raise NotRowWiseError
            # Here, since an output that no message can carry fails its requests as one that the model refuses does.
            shares = [[x] if len(batch) == 1 else list(x.split_with_sizes(rows)) for x in tensors]
            layouts = self._reply_layouts(rows, node, shares)
        except NotRowWiseError:
            if len(batch) == 1:
                self.refuse(batch[0], _no_rows_to_share(batch[0], self.max_rows))
                return
            self._alone.add(batch[0].layout.group or "")
            for request in batch:
                self._run([request])
        except Exception as error:
            if len(batch) == 1:
                self.refuse(batch[0], _describe(error))
                return
            # Someone here is at fault: halves find out who without running every request by itself.
            self._run(batch[: len(batch) // 2])
            self._run(batch[len(batch) // 2 :])
        else:
            self.n_rows += sum(rows)
            self.n_requests += len(batch)
            self._reply(batch, layouts, shares)

    def _forward(self, batch: list[Request], n_rows: int) -> tuple[Node, list[Tensor]]:
        """Returns the form of the model's output for a whole batch, and its tensors on the CPU."""
        layout = batch[0].layout
        if len(batch) == 1:
            inputs = batch[0].tensors
        else:
            inputs = [torch.cat(pieces) for pieces in zip(*(request.tensors for request in batch), strict=True)]
        if n_rows <= self.max_rows or layout.rows is None:
            return self._call(layout, inputs)
        sizes = [min(self.max_rows, n_rows - start) for start in range(0, n_rows, self.max_rows)]
        chunks = [x.split_with_sizes(sizes) for x in inputs]
        outputs = [self._call(layout, list(chunk)) for chunk in zip(*chunks, strict=True)]
        shares = [tensors for _, tensors in outputs]
        for size, tensors in zip(sizes, shares, strict=True):
            if not all(x.shape[:1] == (size,) for x in tensors):
                raise NotRowWiseError
        return outputs[0][0], [torch.cat(pieces) for pieces in zip(*shares, strict=True)]

    def _call(self, layout: Layout, inputs: list[Tensor]) -> tuple[Node, list[Tensor]]:
        inputs = [self._engine.to_device(x) for x in inputs]
        self.n_batches += 1
        if layout.is_tensor:
            output = self._engine(inputs, {})
        else:
            args, kwargs = unflatten(layout.tree, iter(inputs))
            output = self._engine(args, kwargs)
        return _to_cpu(output)

    # Replies ----------------------------------------------------------------------------------------------------

    def _reply_layouts(self, rows: list[int], node: Node, shares: list[list[Tensor]]) -> dict[int, Layout]:
        """Returns the layouts of a batch's replies by their rows: all else is equal within a batch."""
        form = json.dumps(node) if node != ["t"] else ""
        layouts: dict[int, Layout] = {}
        for i, n_rows in enumerate(rows):
            if n_rows not in layouts:
                layouts[n_rows] = self._layout(form, node, [share[i] for share in shares])
        return layouts

    def _reply(self, batch: list[Request], layouts: dict[int, Layout], pieces: list[list[Tensor]]) -> None:
        """Writes each request's rows of the output where its client looks for them, then tells the clients.

        Args:
            batch: the requests.
            layouts: of the replies, by rows.
            pieces: for each tensor of the output the share of each request.
        """
        targets: list[list[Tensor]] = [[] for _ in pieces]
        answered: list[Request] = []
        for i, request in enumerate(batch):
            layout = layouts[request.rows]
            if request.reply is not layout:
                area = request.client.area
                if request.slot < 0 or area is None or not area.fits(layout):
                    self._reply_by_socket(request, layout, [piece[i] for piece in pieces])
                    for piece in pieces:
                        piece[i] = _NOTHING
                    for target in targets:
                        target.append(_NOTHING)
                    continue
                place = 2 * (request.slot % SLOTS_PER_CLIENT) + 1
                area.write_form(place, layout)
                request.reply_views = area.views(place, layout)
                request.reply = layout
            for target, view in zip(targets, request.reply_views, strict=True):
                target.append(view)
            answered.append(request)
        if answered:
            for target, piece in zip(targets, pieces, strict=True):
                torch._foreach_copy_(target, piece)
        self._publish(answered)

    def _layout(self, form: str, node: Node, share: list[Tensor]) -> Layout:
        key = (form, *((x.dtype, x.shape) for x in share))
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            layout = make_layout(node, [x.dtype for x in share], [tuple(x.shape) for x in share])
            self._layouts[key] = layout
        return layout

    def _reply_by_socket(self, request: Request, layout: Layout, share: list[Tensor]) -> None:
        if request.slot >= 0:
            self._finish_slot(request, _MOVED)
        body = torch.empty(layout.n_bytes, dtype=torch.uint8)
        for view, x in zip(layout.views(body), share, strict=True):
            view.copy_(x)
        request.client.stream.send(
            Kind.REPLY, request.id, version=self.version, header=layout.header, body=body.numpy().data
        )
        self.on_sent(request)

    def refuse(self, request: Request, text: str) -> None:
        """Answers a request with an error."""
        self.n_requests += 1
        self.n_errors += 1
        if request.slot >= 0 and request.client.area is not None:
            self._finish_slot(request, error_header(text, min(request.client.area.slot_bytes, 1 << 16) - 64))
        else:
            request.client.stream.send(Kind.ERROR, request.id, header=error_header(text, 1 << 20))
            self.on_sent(request)

    def _skip_cancelled(self, request: Request) -> bool:
        if request.slot >= 0:
            assert self._board is not None
            if self._board.cancelled_at[request.slot] != request.id:
                return False
            self._finish_slot(request, _CANCELLED)
        else:
            if request.id not in request.client.cancelled:
                return False
            request.client.cancelled.discard(request.id)
            request.client.stream.send(Kind.ERROR, request.id, header=_CANCELLED)
            self.on_sent(request)
        self.n_requests += 1
        self.n_cancelled += 1
        return True

    def _finish_slot(self, request: Request, header: bytes) -> None:
        assert request.client.area is not None
        request.reply = None
        request.client.area.write_header(2 * (request.slot % SLOTS_PER_CLIENT) + 1, header)
        self._publish([request])

    def _publish(self, requests: list[Request]) -> None:
        """Marks slots as answered, all of them before the first client wakes."""
        if not requests:
            return
        board = self._board
        assert board is not None
        if len(requests) == 1:
            request = requests[0]
            board.version_at[request.slot] = self.version
            board.answered_at[request.slot] = request.id
            fence()
            if board.asleep_at[request.client.index]:
                os.eventfd_write(request.client.reply_event, 1)
            return
        slots = np.array([request.slot for request in requests])
        board.version[slots] = self.version
        board.answered[slots] = np.array([request.id for request in requests])
        fence()
        for client in {request.client for request in requests}:
            if board.asleep_at[client.index]:
                os.eventfd_write(client.reply_event, 1)


def _to_cpu(output: Tree) -> tuple[Node, list[Tensor]]:
    if isinstance(output, Tensor) and output.is_cpu and output.layout is torch.strided:
        return ["t"], [output]
    node, tensors = flatten(output, "the model's output")
    return node, [x.cpu() for x in tensors]


def _describe(error: Exception) -> str:
    lines = "".join(traceback.format_exception(error))
    return f"{type(error).__name__}: {error}\n\nIn the worker:\n{lines}"


def _no_rows_to_share(request: Request, max_rows: int) -> str:
    return (
        f"a request's rows ({request.rows}) must be at most batch_size ({max_rows}), because the model's output has "
        f"not one row for each row of its input"
    )
