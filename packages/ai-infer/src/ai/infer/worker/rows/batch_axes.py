"""Which axis of each tensor counts rows: the first one, or what the user declared in the manner of `torch.vmap`."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ai.infer.transport.trees import Node
from ai.infer.transport.wire import Layout

Axes = int | None | Sequence[int | None]
_MAX_FORMS = 4096


class Form(NamedTuple):
    """What the requests have in common that can share a call of the model."""

    key: str
    rows: int
    """Of the request that the form was read from."""
    axes: tuple[int | None, ...]
    """Of each tensor; None: it is not batched, and equal in all requests of the form."""


class BatchAxes:
    """Finds the rows of requests and of outputs.

    Args:
        in_axes: of all positional arguments, or of each; None: the argument has no rows. Keywords have theirs first.
        out_axes: of all outputs, or of each item of a tuple, list or dict; None: the output has no rows.
    """

    def __init__(self, in_axes: Axes = 0, out_axes: Axes = 0) -> None:
        self.in_axes = in_axes
        self.out_axes = out_axes
        self.are_first = in_axes == 0 and out_axes == 0
        """Whether rows are what the first axis counts, everywhere."""
        self._forms: dict[Layout, Form | None] = {}

    def form(self, layout: Layout, tensors: Sequence[Tensor]) -> Form | None:
        """Returns the form of a request; None: it has no rows, so that it cannot share a call."""
        if layout in self._forms:
            form = self._forms[layout]
        else:
            if len(self._forms) >= _MAX_FORMS:
                self._forms.clear()
            form = self._forms[layout] = self._find(layout)
        if form is None or None not in form.axes:
            return form
        digest = hashlib.blake2b(digest_size=16)
        for x, axis in zip(tensors, form.axes, strict=True):
            if axis is None:
                digest.update(x.contiguous().view(-1).view(torch.uint8).numpy().data)
        return form._replace(key=f"{form.key} {digest.hexdigest()}")

    def _find(self, layout: Layout) -> Form | None:
        if self.in_axes == 0:
            return None if layout.group is None else Form(layout.group, layout.rows or 1, (0,) * len(layout.shapes))
        if layout.parts or not all(torch.Size(shape).numel() for shape in layout.shapes):
            return None
        (_, *positional), (_, *named) = layout.tree[1], layout.tree[2]
        if not isinstance(self.in_axes, int) and (self.in_axes is None or len(self.in_axes) != len(positional)):
            return None
        given = [self.in_axes] * len(positional) if isinstance(self.in_axes, int) else list(self.in_axes or ())
        axes: list[int | None] = []
        for axis, node in zip(given, positional, strict=True):
            axes += [axis] * count_tensors(node)
        for _, node in named:
            axes += [0] * count_tensors(node)
        sizes = set()
        rest: list[list[int]] = []
        for i, (axis, shape) in enumerate(zip(axes, layout.shapes, strict=True)):
            if axis is None:
                rest.append(list(shape))
                continue
            if not -len(shape) <= axis < len(shape):
                return None
            axes[i] = axis = axis % len(shape)
            sizes.add(shape[axis])
            rest.append([*shape[:axis], -1, *shape[axis + 1 :]])
        if len(sizes) != 1:
            return None
        names = [str(dtype) for dtype in layout.dtypes]
        return Form(json.dumps([layout.tree, names, layout.channels_last, rest]), sizes.pop(), tuple(axes))

    def outputs(self, node: Node) -> list[int | None]:
        """Returns the axis of each tensor of an output of this form, which may be one that it has not."""
        if self.out_axes is None or isinstance(self.out_axes, int):
            return [self.out_axes] * count_tensors(node)
        children = node[2:] if node[0] in ("o", "n") else node[1:]
        if node[0] in ("d", "o"):
            children = [pair[1] for pair in children]
        if len(children) != len(self.out_axes):
            raise ValueError(
                f"out_axes must have one entry for each of the model's {len(children)} outputs, not "
                f"{len(self.out_axes)}"
            )
        axes: list[int | None] = []
        for axis, child in zip(self.out_axes, children, strict=True):
            axes += [axis] * count_tensors(child)
        return axes


def count_tensors(node: Node) -> int:
    """Returns how many tensors a form has."""
    kind, *rest = node
    if kind in ("t", "b", "s"):
        return 1
    if kind == "c":
        return 0
    if kind in ("d", "o"):
        return sum(count_tensors(pair[1]) for pair in rest[kind == "o" :])
    return sum(count_tensors(child) for child in rest[kind == "n" :])


def has_constants(node: Node) -> bool:
    """Returns whether a form holds a number, a bool or text: what one call says of all its rows together."""
    kind, *rest = node
    if kind == "c":
        return rest[0] is not None
    if kind == "t":
        return False
    if kind in ("d", "o"):
        return any(has_constants(pair[1]) for pair in rest[kind == "o" :])
    return kind in ("b", "s") or any(has_constants(child) for child in rest[kind == "n" :])
