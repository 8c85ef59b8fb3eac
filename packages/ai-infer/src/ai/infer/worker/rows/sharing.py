"""Whether requests may share a call of the model: never guessed, but compared with the model's own separate answers.

A form of input (its structure, its dtypes, the sizes of a row) starts unknown. Requests of an unknown form are each
answered by a call of their own; beside that the model is called once with all of them, and what it says is compared.
Only then are further requests of this form run together. Now and then, and after each update of the weights, two of a
call that was shared are compared again before anybody is answered. What fails is answered one request a call from then
on.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ai.infer.transport.trees import Node
from ai.infer.worker.rows.batch_axes import BatchAxes, Form
from ai.infer.worker.rows.comparison import Answer, Comparison, NothingLearntError, NotRowWiseError, has_rows

Share = bool | Literal["auto"]
_MAX_FORMS = 4096
_MAX_CALLS_UNSEEN = 256  # between two looks: they cost two small calls each, under one part in a hundred
_N_LOOKED_AT = 2
_log = logging.getLogger("ai.infer")


@dataclass
class _Known:
    """What was found out about a form."""

    rows: set[int] = field(default_factory=set)
    """Numbers of rows of requests that were compared: a model may look at blocks of rows."""
    n_rows: int = 0
    """The most rows that were compared in one call."""
    n_cut: int = 0
    """The most rows of a request that was compared with its pieces."""
    n_shared: int = 0
    look_at: int = 2
    """The number of shared calls at which to compare again."""
    versions: dict[bool, int] = field(default_factory=dict)
    """Of the weights with which several requests (True), and one in pieces (False), were last compared: other weights
    may open what these kept shut, and neither comparison says it of the other."""
    row: "_Row | None" = None
    """What one row of the output is. Sizes that depend on the values would be the largest of a shared call's."""
    outputs: dict[int, "_Output"] = field(default_factory=dict)
    """By the rows of a call the last output that was found to have these rows."""


class Sharing:
    """Decides for each call whether it may be shared, and learns from comparisons.

    Args:
        share: "auto" compares; True takes the user's word that the model treats each row by itself; False never shares.
        axes: of inputs and outputs.
        coarsest: the dtype that the model computes in, if it is coarser than its outputs'.
    """

    def __init__(self, share: Share, axes: BatchAxes, coarsest: torch.dtype | None = None) -> None:
        self.share = share
        self._axes = axes
        self._comparison = Comparison(axes, coarsest)
        self._forms: dict[str, _Known] = {}
        self._refused: set[str] = set()
        self._random = torch.Generator().manual_seed(0)

    def refuses(self, key: str) -> bool:
        """Returns whether requests of a form are answered one a call."""
        return self.share is False or key in self._refused

    def allows(self, key: str, parts: Sequence[int], n_rows: int, max_rows: int) -> bool:
        """Returns whether requests of so many rows each may share a call now; if not, they are to be compared.

        Args:
            key: the form's.
            parts: the rows of each request.
            n_rows: of all.
            max_rows: of a call: what has more is to be cut.
        """
        if isinstance(self.share, bool):
            return not self.refuses(key)
        known = self._forms.get(key)
        if known is None or key in self._refused:
            return False
        if n_rows > 2 * (known.n_cut if n_rows > max_rows else known.n_rows):
            return False
        if len(parts) > 1 and not known.rows.issuperset(parts):
            return False
        return True

    def look_at(self, key: str, n_parts: int, version: int) -> list[int]:
        """Counts a shared call, and returns which of its requests are to be compared before they are answered.

        Args:
            key: the form's.
            n_parts: how many requests there are.
            version: of the weights.
        """
        if self.share is True:
            return []
        known = self._know(key)
        known.n_shared += 1
        if known.n_shared < known.look_at and known.versions.get(n_parts > 1) == version:
            return []
        known.look_at = known.n_shared + min(known.n_shared, _MAX_CALLS_UNSEEN)
        known.versions[n_parts > 1] = version
        return torch.randperm(n_parts, generator=self._random, device="cpu")[:_N_LOOKED_AT].tolist()

    def axes(self, key: str, whole: Answer, n_rows: int) -> Sequence[int | None]:
        """Returns the axis of each tensor of a shared call's output.

        Args:
            key: the form's.
            whole: the output of the call.
            n_rows: of its input.

        Raises:
            NotRowWiseError: the output has not one row for each of the input's, or not of the size that was compared.
        """
        known = self._know(key)
        shapes = [x.shape for x in whole.tensors]
        last = known.outputs.get(n_rows)
        if last is not None and last.shapes == shapes and last.node == whole.node:
            return last.axes
        axes = self._axes.outputs(whole.node)
        if not all(has_rows(x, axis, n_rows) for x, axis in zip(whole.tensors, axes, strict=True)):
            raise NotRowWiseError("the output has not one row for each row of the input")
        if self.share is not True and known.row != _row(whole, axes):
            raise NotRowWiseError("the sizes of the output depend on its input's values")
        if len(known.outputs) >= _MAX_FORMS:
            known.outputs.clear()
        known.outputs[n_rows] = _Output(whole.node, shapes, axes)
        return axes

    def check(
        self,
        whole: Answer,
        axes: Sequence[int | None],
        parts: Sequence[int],
        chosen: Sequence[int],
        truth: Sequence[Answer],
    ) -> None:
        """Compares some of a shared call's answers with the model's own.

        Args:
            whole: the output of the call.
            axes: of its tensors.
            parts: the rows of each request in it.
            chosen: those of them that are compared.
            truth: the model's own answers to these.

        Raises:
            NotRowWiseError: they differ, so that none of the call's answers must be given.
        """
        picked = [
            x if axis is None else torch.cat([x.split_with_sizes(list(parts), axis)[i] for i in chosen], axis)
            for x, axis in zip(whole.tensors, axes, strict=True)
        ]
        reason = self._comparison.differ([parts[i] for i in chosen], truth, lambda: Answer(whole.node, picked))
        if reason is not None:
            raise NotRowWiseError(reason)

    def refuse(self, key: str, reason: str) -> None:
        """Has requests of a form be answered one a call from now on."""
        known = self._know(key)
        if key not in self._refused:
            self._refused.add(key)
            n, shown = known.n_shared, key if len(key) <= 200 else f"{key[:200]}…"
            if n:
                _log.warning("requests of form %s no longer share a call, after %d that did: %s", shown, n, reason)
            else:
                _log.info("requests of form %s are answered one a call: %s", shown, reason)

    def learn(
        self,
        form: Form,
        cells: Sequence[list[Tensor]],
        parts: Sequence[int],
        truth: Sequence[Answer],
        max_rows: int,
        version: int,
        alone: Callable[[list[Tensor]], Answer],
        together: Callable[[Sequence[list[Tensor]]], Answer],
    ) -> None:
        """Compares separate answers with one for all, and takes note of what that says of the form.

        Args:
            form: of the requests.
            cells: the inputs of each request, into which the model has not written.
            parts: the rows of each.
            truth: the model's own answer to each.
            max_rows: of a call.
            version: of the weights.
            alone: calls the model with one request, whole.
            together: calls it with all of them as if they were rows of one.
        """
        try:
            reason = self._comparison.reason_to_refuse(form, cells, parts, truth, alone, together)
        except NothingLearntError:
            return
        known = self._know(form.key)
        if reason is None:
            row = _row(truth[0], self._axes.outputs(truth[0].node))
            if known.row not in (None, row):
                reason = "the sizes of the output depend on its input's values"
        if reason is not None:
            self.refuse(form.key, reason)
            return
        known.row = row
        known.versions[len(parts) > 1] = version
        if len(parts) > 1:
            known.rows.update(parts)
        n_rows = sum(parts)
        if n_rows > max_rows:
            known.n_cut = max(known.n_cut, n_rows)
        else:
            known.n_rows = max(known.n_rows, n_rows)
        if not known.n_shared:
            known.n_shared = 1
            _log.info("requests of form %s share calls: their rows were found to be independent", form.key[:200])

    def _know(self, key: str) -> _Known:
        if key not in self._forms:
            if len(self._forms) >= _MAX_FORMS:
                self._forms.clear()
                self._refused.clear()
            self._forms[key] = _Known()
        return self._forms[key]


class _Output(NamedTuple):
    node: Node
    shapes: list[torch.Size]
    axes: Sequence[int | None]


_Row = tuple[Node, list[tuple[int, ...]]]


def _row(answer: Answer, axes: Sequence[int | None]) -> _Row:
    """Returns the structure of an output and the sizes of a row of each of its tensors."""
    sizes = [
        tuple(x.shape if axis is None else x.shape[:axis] + x.shape[axis % x.ndim + 1 :])
        for x, axis in zip(answer.tensors, axes, strict=True)
    ]
    return answer.node, sizes
