"""Whether one call of the model for several requests says what a call for each would: compared, never guessed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ai.infer.transport.trees import Node
from ai.infer.worker.rows.batch_axes import BatchAxes, Form, has_constants
from ai.infer.worker.rows.rounding import are_close


class Answer(NamedTuple):
    """What the model returned: the form, and the tensors in it."""

    node: Node
    tensors: list[Tensor]


class NotRowWiseError(ValueError):
    """An output has no row for each row of its input, or they depend on others; so requests cannot share a call."""


class NothingLearntError(Exception):
    """A comparison said nothing: of requests that are all alike, or that the model does not take."""


class Comparison:
    """Compares a call for several requests with the model's own separate answers.

    Args:
        axes: of inputs and outputs.
        coarsest: the dtype that the model computes in, if it is coarser than its outputs'.
    """

    def __init__(self, axes: BatchAxes, coarsest: torch.dtype | None = None) -> None:
        self._axes = axes
        self._coarsest = coarsest
        self._random = torch.Generator().manual_seed(0)

    def reason_to_refuse(
        self,
        form: Form,
        cells: Sequence[list[Tensor]],
        parts: Sequence[int],
        truth: Sequence[Answer],
        alone: Callable[[list[Tensor]], Answer],
        together: Callable[[Sequence[list[Tensor]]], Answer],
    ) -> str | None:
        """Returns why requests like these must not share a call; None: they may.

        Args:
            form: of the requests.
            cells: the inputs of each request, into which the model has not written.
            parts: the rows of each.
            truth: the model's own answer to each.
            alone: calls the model with one request, whole.
            together: calls it with all of them as if they were rows of one.

        Raises:
            NothingLearntError: these requests, and others like them that could be made, say nothing of it.
        """
        reason = self.differ(parts, truth, lambda: together(cells))
        if reason is None and _says_little(cells, form.axes):
            # Equal requests cannot be told from each other's rows: take others of the same form.
            others = [[self._vary(x) for x in cell] for cell in cells]
            if _says_little(others, form.axes):
                raise NothingLearntError
            try:
                answers = [alone([x.clone() for x in cell]) for cell in others]
            except Exception:  # the model does not take these
                raise NothingLearntError from None
            reason = self.differ(parts, answers, lambda: together(others))
            cells, truth = others, answers
        if reason is None and len(parts) > 1:
            reason = self._hears_loud_neighbours(form, cells, parts, truth, together)
        return reason

    def differ(self, parts: Sequence[int], truth: Sequence[Answer], together: Callable[[], Answer]) -> str | None:
        """Returns how one answer for all differs from the separate ones; None: in rounding alone."""
        node = truth[0].node
        if any(answer.node != node for answer in truth):
            return "the structure of the output, or a constant in it, depends on the request"
        if has_constants(node):
            return "the output holds a number or text, which says nothing of a single row"
        axes = self._axes.outputs(node)
        for answer, rows in zip(truth, parts, strict=True):
            if not all(has_rows(x, axis, rows) for x, axis in zip(answer.tensors, axes, strict=True)):
                return "the output has not one row for each row of the input"
        try:
            whole = together()
        except Exception as error:
            return f"the model fails on several requests together: {type(error).__name__}: {error}"
        fits = whole.node == node and len(whole.tensors) == len(axes)
        if not fits or not all(has_rows(x, axis, sum(parts)) for x, axis in zip(whole.tensors, axes, strict=True)):
            return "the output does not grow with the rows of the input"
        for i, (x, axis) in enumerate(zip(whole.tensors, axes, strict=True)):
            separate = [answer.tensors[i] for answer in truth]
            shares = [x] * len(parts) if axis is None else list(x.split_with_sizes(list(parts), axis))
            if any(a.shape != b.shape or a.dtype is not b.dtype for a, b in zip(shares, separate, strict=True)):
                return "the output's sizes depend on the other requests"
            if not are_close(shares, separate, self._coarsest):
                return "the output for a request depends on the other requests"
        return None

    def _hears_loud_neighbours(
        self,
        form: Form,
        cells: Sequence[list[Tensor]],
        parts: Sequence[int],
        truth: Sequence[Answer],
        together: Callable[[Sequence[list[Tensor]]], Answer],
    ) -> str | None:
        """Returns how an answer changes beside requests of great numbers: rows may touch for rare values alone."""
        for first_loud in (0, 1):
            mixed = [
                [x if axis is None else _loud(x) for x, axis in zip(cell, form.axes, strict=True)]
                if i % 2 == first_loud
                else cell
                for i, cell in enumerate(cells)
            ]
            quiet = range(1 - first_loud, len(cells), 2)
            try:
                whole = together(mixed)
                axes = self._axes.outputs(whole.node)
                picked = [
                    x if axis is None else torch.cat([x.split_with_sizes(list(parts), axis)[i] for i in quiet], axis)
                    for x, axis in zip(whole.tensors, axes, strict=True)
                ]
            except Exception:  # the model does not take such numbers: there is nothing to learn from them
                return None
            beside = Answer(whole.node, picked)
            if self.differ([parts[i] for i in quiet], [truth[i] for i in quiet], partial(_same, beside)) is not None:
                return "the output for a request depends on the other requests, if their numbers are great"
        return None

    def _vary(self, x: Tensor) -> Tensor:
        """Returns another tensor of the same form, whose numbers a model that takes `x` should take."""
        if x.is_floating_point() or x.is_complex():
            noise = torch.randn(x.shape, generator=self._random, dtype=torch.float32, device="cpu").to(x.dtype)
            spread = x.float().std() if x.numel() > 1 and not x.is_complex() else torch.tensor(0.0, device="cpu")
            return x + noise * (spread if spread > 0 else 1.0)
        return x.reshape(-1)[torch.randperm(x.numel(), generator=self._random, device="cpu")].view(x.shape)


def _loud(x: Tensor) -> Tensor:
    """Returns numbers a hundred times as great, where that is what numbers can be."""
    return torch.where(x == 0, torch.ones_like(x), x) * 100 if x.is_floating_point() or x.is_complex() else x


def _same(answer: Answer) -> Answer:
    return answer


def has_rows(x: Tensor, axis: int | None, rows: int) -> bool:
    """Returns whether a tensor has so many rows along an axis, or need not have any."""
    return axis is None or (-x.ndim <= axis < x.ndim and x.shape[axis] == rows)


def _says_little(cells: Sequence[list[Tensor]], axes: Sequence[int | None]) -> bool:
    """Returns whether an answer for all could mix them up unseen, since they, or their rows, are all alike."""
    first = cells[0]
    if len(cells) == 1:
        batched = [(x, axis) for x, axis in zip(first, axes, strict=True) if axis is not None]
        return all(torch.equal(x, x.narrow(axis, 0, 1).expand_as(x)) for x, axis in batched)
    return all(
        all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(first, cell, strict=True)) for cell in cells[1:]
    )
