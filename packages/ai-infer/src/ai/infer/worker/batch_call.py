"""One batch: gather the requests' tensors, call the model, give every request what is its own of the output."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ai.infer.errors import InPartsError
from ai.infer.transport.trees import Node, Tree, flatten, is_dense, unflatten
from ai.infer.transport.wire import Layout
from ai.infer.worker.connected_client import Request
from ai.infer.worker.engine import Engine
from ai.infer.worker.faults import answer_for
from ai.infer.worker.reply_writer import ReplyWriter
from ai.infer.worker.rows.batch_axes import BatchAxes, Form
from ai.infer.worker.rows.comparison import Answer, NotRowWiseError, has_rows
from ai.infer.worker.rows.shares import Shares
from ai.infer.worker.rows.sharing import Sharing


class BatchCall:
    """Runs batches.

    Args:
        engine: calls the model.
        replies: takes the replies.
        max_rows: of a call, where rows are known to be independent; else a request is run whole.
        axes: of inputs and outputs.
        sharing: which requests may share a call.
    """

    def __init__(self, engine: Engine, replies: ReplyWriter, max_rows: int, axes: BatchAxes, sharing: Sharing) -> None:
        self._engine = engine
        self._replies = replies
        self.max_rows = max_rows
        self._axes = axes
        self._sharing = sharing
        self.n_rows = self.n_batches = 0

    def answer(self, batch: list[Request]) -> None:
        """Answers every request of a batch; whatever fails, fails only the requests that are at fault."""
        batch = self._replies.without_cancelled(batch)
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
            self._answer_and_learn(batch, form)

    # Together ---------------------------------------------------------------------------------------------------

    def _answer_together(self, batch: list[Request], form: Form, parts: list[int], n_rows: int) -> None:
        """Calls the model once for all, or for pieces of one that is large: their form was found to allow it."""
        chosen = self._sharing.look_at(form.key, len(parts), self._replies.version)
        try:
            rows = [request.rows for request in batch]
            inputs = self._gather(form, [request.tensors for request in batch])
            whole = self._call_in_pieces(form, batch[0].layout, inputs, n_rows)
            axes = self._sharing.axes(form.key, whole, n_rows)
            if chosen:
                self._sharing.check(whole, axes, parts, chosen, self._alone(batch, chosen))
            # Here, since an output that no message can carry fails its requests as one that the model refuses does.
            shares = Shares(whole.tensors, rows, axes)
            self._replies.write(batch, self._replies.layouts(whole.node, shares), shares)
        except BaseException as error:
            if isinstance(error, NotRowWiseError):
                self._sharing.refuse(form.key, str(error))
                self._answer_apart(batch)
            elif len(batch) > 1:
                # Someone here is at fault: halves find out who without running every request by itself.
                self._run(batch[: len(batch) // 2])
                self._run(batch[len(batch) // 2 :])
            elif batch[0].layout.parts:
                self._answer_apart(batch)
            else:
                self._refuse(batch[0], error)
        else:
            self.n_rows += n_rows

    def _alone(self, batch: list[Request], chosen: list[int]) -> list[Answer]:
        """Returns the model's own answers to some of the requests, counted as they travelled."""
        cells = [(request.layout, cell) for request in batch for cell in request.cells()]
        answers = []
        for layout, cell in (cells[i] for i in chosen):
            answer = self._call(layout, self._own(cell), exact=True)
            answers.append(Answer(answer.node, [x.clone() for x in answer.tensors]))
        return answers

    def _gather(self, form: Form, cells: Sequence[list[Tensor]]) -> list[Tensor]:
        """Returns the inputs of several requests as those of one.

        They are the model's own (see `_own`): who shared a call that came to nothing is answered anew.
        """
        pieces = zip(form.axes, zip(*cells, strict=True), strict=True)
        return [xs[0].clone() if axis is None or len(xs) == 1 else torch.cat(xs, axis) for axis, xs in pieces]

    def _call_in_pieces(self, form: Form, layout: Layout, inputs: list[Tensor], n_rows: int) -> Answer:
        """Returns the model's output for all rows, in as many calls as their number needs."""
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

    # Apart ------------------------------------------------------------------------------------------------------

    def _answer_apart(self, batch: list[Request]) -> None:
        """Calls the model for each request, whole."""
        for request in batch:
            try:
                if request.layout.parts:
                    # The model may write over its output in the next call.
                    self._reply_apart(request, self._answers(request))
                else:
                    self._reply_apart(request, [self._call(request.layout, self._own(request.tensors), exact=True)])
            except BaseException as error:
                self._refuse(request, error)

    def _answers(self, request: Request) -> list[Answer]:
        """Returns the model's answer to each of the requests that travel together, as copies."""
        answers = []
        for cell in request.cells():
            answer = self._call(request.layout, self._own(cell), exact=True)
            answers.append(Answer(answer.node, [x.clone() for x in answer.tensors]))
        return answers

    def _answer_and_learn(self, batch: list[Request], form: Form) -> None:
        """Calls the model for each request, then learns whether one call for all would have said the same."""
        learnt: list[tuple[Request, list[Answer]]] = []
        state = self._engine.state()
        for request in batch:
            try:
                learnt.append((request, self._answers(request)))
            except BaseException as error:
                self._refuse(request, error)
        if learnt:
            if self._engine.state() != state:
                self._sharing.refuse(form.key, "the model writes into its own buffers when it is called")
            else:
                self._learn(form, learnt)
        for request, answers in learnt:
            try:
                self._reply_apart(request, answers)
            except Exception as error:
                self._refuse(request, error)

    def _learn(self, form: Form, learnt: list[tuple[Request, list[Answer]]]) -> None:
        cells = [cell for request, _ in learnt for cell in request.cells()]
        parts = [rows for request, _ in learnt for rows in request.parts]
        truth = [answer for _, answers in learnt for answer in answers]
        if len(parts) == 1 and parts[0] <= self.max_rows and not self._engine.pads(parts[0]):
            return
        layout = learnt[0][0].layout
        try:
            self._sharing.learn(
                form,
                cells,
                parts,
                truth,
                self.max_rows,
                self._replies.version,
                alone=lambda cell: self._call(layout, cell, exact=True),
                together=lambda cells: self._call_in_pieces(form, layout, self._gather(form, cells), sum(parts)),
            )
        except BaseException as error:  # of a comparison that is nobody's request: these have their answers
            self._sharing.refuse(form.key, f"they could not be compared: {answer_for(error).splitlines()[0]}")

    def _reply_apart(self, request: Request, answers: list[Answer]) -> None:
        """Replies to a request that had the model for itself, or to several that travelled together and had not."""
        if request.layout.parts:
            node: Node = ["m", *(answer.node for answer in answers)]
            tensors = [x for answer in answers for x in answer.tensors]
        else:
            ((node, tensors),) = answers
        shares = Shares(tensors, [request.rows])
        self._replies.write([request], self._replies.layouts(node, shares), shares)
        self.n_rows += request.rows

    # The model --------------------------------------------------------------------------------------------------

    def _own(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns a request's tensors as the model's own, which it may keep or write into.

        In a slot the next request would take the place of what it kept.
        """
        return [x.clone() for x in tensors] if self._engine.on_cpu else list(tensors)

    def _refuse(self, request: Request, error: BaseException) -> None:
        self._replies.refuse(request, answer_for(error), in_parts=isinstance(error, InPartsError))

    def _call(self, layout: Layout, inputs: list[Tensor], *, exact: bool = False) -> Answer:
        if not self._engine.on_cpu:
            inputs = [self._engine.to_device(x) for x in inputs]
        self.n_batches += 1
        if layout.is_tensor:
            output = self._engine(inputs, {}, exact=exact)
        else:
            args, kwargs = unflatten(layout.tree, iter(inputs))
            output = self._engine(args, kwargs, exact=exact)
        if type(output) is Tensor and output.is_cpu and is_dense(output):
            return Answer(["t"], [output])
        if isinstance(output, Iterator):
            raise InPartsError("the model returns its reply in parts: ask it by stream")
        return _to_cpu(output)


def _to_cpu(output: Tree) -> Answer:
    node, tensors = flatten(output, "the model's output")
    return Answer(node, [x.cpu() for x in tensors])
