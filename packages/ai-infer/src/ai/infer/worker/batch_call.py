"""One batch: gather the requests' tensors, call the model, give every request what is its own of the output."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ai.infer.transport.frames import Kind
from ai.infer.transport.slots import SLOTS_PER_CLIENT, Board, fence
from ai.infer.transport.trees import Node, Tree, flatten, unflatten
from ai.infer.transport.wire import Layout, has_channels_last, layout_of
from ai.infer.worker.batch_axes import BatchAxes, Form
from ai.infer.worker.connected_client import Request, error_header
from ai.infer.worker.engine import Engine
from ai.infer.worker.faults import answer_for
from ai.infer.worker.sharing import Answer, NotRowWiseError, Sharing, has_rows

_MOVED = b'{"moved":1}'
_CANCELLED = b'{"cancelled":1}'
_MAX_LAYOUTS = 4096
_NOTHING = torch.empty(0)


class BatchCall:
    """Runs batches and writes the replies into slots and sockets.

    Args:
        engine: calls the model.
        board: of the worker; None where there is no shared memory.
        max_rows: of a call, where rows are known to be independent; else a request is run whole.
        axes: of inputs and outputs.
        sharing: which requests may share a call.
    """

    def __init__(self, engine: Engine, board: Board | None, max_rows: int, axes: BatchAxes, sharing: Sharing) -> None:
        self._engine = engine
        self._board = board
        self.max_rows = max_rows
        self._axes = axes
        self._sharing = sharing
        self.version = 0
        self.n_requests = self.n_rows = self.n_batches = self.n_errors = self.n_cancelled = 0
        self.on_sent: Callable[[Request], None] = lambda request: None
        self._layouts: dict[Any, Layout] = {}

    def answer(self, batch: list[Request]) -> None:
        """Answers every request of a batch; whatever fails, fails only the requests that are at fault."""
        cancelled = {request for request in batch if self._is_cancelled(request)}
        if cancelled:
            for request in cancelled:
                self._skip(request)
            batch = [request for request in batch if request not in cancelled]
        if batch:
            self._run(batch)

    def _run(self, batch: list[Request]) -> None:
        form = batch[0].form
        if form is None or self._sharing.refuses(form.key):
            self._answer_apart(batch)
            return
        parts = [rows for request in batch for rows in request.parts]
        n_rows = sum(parts)
        if len(parts) == 1 and n_rows <= self.max_rows and not self._engine.pads(n_rows):
            self._answer_apart(batch)
        elif self._sharing.allows(form.key, parts, n_rows, self.max_rows):
            self._answer_together(batch, form, parts, n_rows)
        else:
            self._answer_apart(batch, learn=form)

    def _answer_together(self, batch: list[Request], form: Form, parts: list[int], n_rows: int) -> None:
        """Calls the model once for all, or for pieces of one that is large: their form was found to allow it."""
        try:
            rows = [request.rows for request in batch]
            chosen = self._sharing.look_at(form.key, len(parts), self.version)
            whole = self._together(form, batch[0].layout, [request.tensors for request in batch], n_rows)
            node, tensors = whole
            axes = self._sharing.axes(form.key, whole, n_rows)
            if chosen:
                self._sharing.check(whole, axes, parts, chosen, self._alone(batch, chosen))
            # Here, since an output that no message can carry fails its requests as one that the model refuses does.
            shares = [
                [x] * len(batch) if len(batch) == 1 or axis is None else list(x.split_with_sizes(rows, axis))
                for x, axis in zip(tensors, axes, strict=True)
            ]
            layouts = self._reply_layouts(rows, node, shares)
        except NotRowWiseError as error:
            self._sharing.refuse(form.key, str(error))
            self._answer_apart(batch)
        except BaseException as error:
            if len(batch) == 1:
                if batch[0].layout.parts:
                    self._answer_apart(batch)
                else:
                    self.refuse(batch[0], answer_for(error))
                return
            # Someone here is at fault: halves find out who without running every request by itself.
            self._run(batch[: len(batch) // 2])
            self._run(batch[len(batch) // 2 :])
        else:
            self.n_rows += n_rows
            self.n_requests += len(batch)
            self._reply(batch, layouts, shares)

    def _alone(self, batch: list[Request], chosen: list[int]) -> list[Answer]:
        """Returns the model's own answers to some of the requests, counted as they travelled."""
        cells = [(request.layout, cell) for request in batch for cell in request.cells()]
        answers = []
        for layout, cell in (cells[i] for i in chosen):
            answer = self._call(layout, [x.clone() for x in cell], exact=True)
            answers.append(Answer(answer.node, [x.clone() for x in answer.tensors]))
        return answers

    def _answer_apart(self, batch: list[Request], learn: Form | None = None) -> None:
        """Calls the model for each request, whole; then learns whether one call for all would have said the same."""
        copies = [[[x.clone() for x in cell] for cell in request.cells()] for request in batch] if learn else []
        learnt: list[tuple[list[list[Tensor]], Request, list[Answer]]] = []
        state = self._engine.state() if learn else []
        for i, request in enumerate(batch):
            try:
                answers = []
                for cell in request.cells():
                    answer = self._call(request.layout, cell, exact=True)
                    if learn or request.layout.parts:  # the model may write over its output in the next call
                        answer = Answer(answer.node, [x.clone() for x in answer.tensors])
                    answers.append(answer)
                if learn:
                    learnt.append((copies[i], request, answers))
                else:
                    self._reply_apart(request, answers)
            except BaseException as error:
                self.refuse(request, answer_for(error))
        if learn and learnt:
            if self._engine.state() != state:
                self._sharing.refuse(learn.key, "the model writes into its own buffers when it is called")
            else:
                self._learn(learn, learnt)
            for _, request, answers in learnt:
                try:
                    self._reply_apart(request, answers)
                except Exception as error:
                    self.refuse(request, answer_for(error))

    def _learn(self, form: Form, learnt: list[tuple[list[list[Tensor]], Request, list[Answer]]]) -> None:
        cells = [cell for copies, _, _ in learnt for cell in copies]
        parts = [rows for _, request, _ in learnt for rows in request.parts]
        truth = [answer for _, _, answers in learnt for answer in answers]
        if len(parts) == 1 and parts[0] <= self.max_rows and not self._engine.pads(parts[0]):
            return
        layout = learnt[0][1].layout
        try:
            self._sharing.learn(
                form,
                cells,
                parts,
                truth,
                self.max_rows,
                self.version,
                alone=lambda cell: self._call(layout, cell, exact=True),
                together=lambda cells: self._together(form, layout, cells, sum(parts)),
            )
        except BaseException as error:  # of a comparison that is nobody's request: these have their answers
            self._sharing.refuse(form.key, f"they could not be compared: {answer_for(error).splitlines()[0]}")

    def _together(self, form: Form, layout: Layout, cells: Sequence[list[Tensor]], n_rows: int) -> Answer:
        """Returns the model's output for all rows of several requests, in as many calls as their number needs.

        The model gets copies, into which it may write: who shared a call that came to nothing is answered anew.
        """
        pieces = zip(form.axes, zip(*cells, strict=True), strict=True)
        inputs = [xs[0].clone() if axis is None or len(xs) == 1 else torch.cat(xs, axis) for axis, xs in pieces]
        if n_rows <= self.max_rows:
            return self._call(layout, inputs)
        sizes = [min(self.max_rows, n_rows - start) for start in range(0, n_rows, self.max_rows)]
        chunks = [
            [x] * len(sizes) if axis is None else x.split_with_sizes(sizes, axis)
            for axis, x in zip(form.axes, inputs, strict=True)
        ]
        answers = [self._call(layout, list(chunk)) for chunk in zip(*chunks, strict=True)]
        axes = self._axes.outputs(answers[0].node)
        for size, answer in zip(sizes, answers, strict=True):
            fits = len(answer.tensors) == len(axes) and answer.node == answers[0].node
            if not fits or not all(has_rows(x, axis, size) for x, axis in zip(answer.tensors, axes, strict=True)):
                raise NotRowWiseError("the output has not one row for each row of the input")
        outputs = zip(axes, zip(*(answer.tensors for answer in answers), strict=True), strict=True)
        return Answer(answers[0].node, [xs[0] if axis is None else torch.cat(xs, axis) for axis, xs in outputs])

    def _call(self, layout: Layout, inputs: list[Tensor], *, exact: bool = False) -> Answer:
        inputs = [self._engine.to_device(x) for x in inputs]
        self.n_batches += 1
        if layout.is_tensor:
            output = self._engine(inputs, {}, exact=exact)
        else:
            args, kwargs = unflatten(layout.tree, iter(inputs))
            output = self._engine(args, kwargs, exact=exact)
        if isinstance(output, Iterator):
            raise TypeError(
                "the model returns its reply in parts: ask it by stream (over HTTP: accept: text/event-stream)"
            )
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

    def _reply_apart(self, request: Request, answers: list[Answer]) -> None:
        """Replies to a request that had the model for itself, or to several that travelled together and had not."""
        if request.layout.parts:
            node: Node = ["m", *(answer.node for answer in answers)]
            tensors = [x for answer in answers for x in answer.tensors]
        else:
            ((node, tensors),) = answers
        form = json.dumps(node) if node != ["t"] else ""
        layout = self._layout(form, node, tensors)
        self.n_rows += request.rows
        self.n_requests += 1
        self._reply([request], {request.rows: layout}, [[x] for x in tensors])

    def _layout(self, form: str, node: Node, share: list[Tensor]) -> Layout:
        key = (form, *((x.dtype, x.shape, x.ndim >= 4 and has_channels_last(x)) for x in share))
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            layout = layout_of(node, share)
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

    def _is_cancelled(self, request: Request) -> bool:
        if request.slot < 0 or self._board is None:
            return request.id in request.client.cancelled
        return self._board.cancelled_at[request.slot] == request.id

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
        if not requests:
            return
        board = self._board
        assert board is not None
        versions, answered = board.version_at, board.answered_at
        for request in requests:
            versions[request.slot] = self.version
            answered[request.slot] = request.id
        fence()
        for client in {request.client for request in requests}:
            if board.asleep_at[client.index]:
                os.eventfd_write(client.reply_event, 1)


def _to_cpu(output: Tree) -> Answer:
    if isinstance(output, Tensor) and output.is_cpu and output.layout is torch.strided:
        return Answer(["t"], [output])
    node, tensors = flatten(output, "the model's output")
    return Answer(node, [x.cpu() for x in tensors])
