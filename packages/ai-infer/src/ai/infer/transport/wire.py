"""How a request or a reply lies in memory: a JSON header with its tree and its tensors, then the tensors' bytes."""

import dataclasses
import json
import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ai.infer.transport.errors import WireError
from ai.infer.transport.shared_memory import align
from ai.infer.transport.trees import Node, RawTensor, check_tree, has_text

MAX_HEADER_BYTES = 1 << 16
_MAX_PARTS = 4096
_CHANNELS_LAST = ":channels_last"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith(("torch.q", "torch.uint1b", "torch.bits"))
}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where each tensor of one message lies, and which other messages it can share a batch with."""

    header: bytes
    """The JSON header, as it travels."""
    tree: Node
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    """Of each tensor from the start of the data, in bytes."""
    lengths: tuple[int, ...]
    """Of each tensor, in bytes."""
    n_bytes: int
    """Of the data, without the header."""
    start: int
    """Of the data from the start of a place that holds length, header and data, in bytes."""
    size: int
    """Of length, header and data together, in bytes."""
    rows: int | None
    """The leading size that all tensors share; None: there is none, so that the message cannot share a batch."""
    group: str | None
    """Messages with equal groups differ in their rows and their numbers alone; None: not to be batched."""
    is_tensor: bool
    """Whether the message is one bare tensor (a reply) or one positional tensor (a request)."""
    parts: tuple[int, ...]
    """The rows of each request, if several travel together; else empty."""
    channels_last: tuple[bool, ...]
    """Whether each tensor's channels lie last in memory."""

    def views(self, data: Tensor) -> list[Tensor]:
        """Returns the message's tensors as views of `data`, uint8 `(at least n_bytes,)`."""
        views = []
        places = zip(self.dtypes, self.shapes, self.offsets, self.lengths, self.channels_last, strict=True)
        for dtype, shape, offset, length, last in places:
            flat = data[offset : offset + length].view(dtype)
            if last:
                views.append(flat.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1))
            else:
                views.append(flat.view(shape))
        return views

    def body(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the tensors' bytes as they travel by socket, uint8 `(n_bytes,)`."""
        body = torch.empty(self.n_bytes, dtype=torch.uint8, device="cpu")
        for view, x in zip(self.views(body), tensors, strict=True):
            view.copy_(x)
        return body

    def cut(self, data: memoryview) -> list[memoryview]:
        """Returns the bytes of each of the message's tensors in `data`, at least `n_bytes` long."""
        return [data[start : start + length] for start, length in zip(self.offsets, self.lengths, strict=True)]

    def raw(self, data: memoryview) -> list[RawTensor]:
        """Returns the message's tensors as copies of their bytes in `data`, at least `n_bytes` long."""
        if len(self.shapes) == 1 and not self.channels_last[0]:  # nearly always
            return [RawTensor(self.dtypes[0], self.shapes[0], bytes(data[: self.lengths[0]]))]
        if any(self.channels_last):
            views = self.views(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            flat = [x.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for x in views]
            return [RawTensor(*each) for each in zip(self.dtypes, self.shapes, flat, strict=True)]
        places = zip(self.dtypes, self.shapes, self.cut(data), strict=True)
        return [RawTensor(dtype, shape, bytes(part)) for dtype, shape, part in places]


def layout_of(tree: Node, tensors: Sequence[Tensor]) -> Layout:
    """Returns the layout of a message from its form and its tensors."""
    shapes = [tuple(x.shape) for x in tensors]
    return make_layout(tree, [x.dtype for x in tensors], shapes, [has_channels_last(x) for x in tensors])


def has_channels_last(x: Tensor) -> bool:
    """Returns whether a tensor's channels lie last in memory, and in no other order as well."""
    if x.ndim == 4:
        return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return x.ndim == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)


def make_layout(
    tree: Node,
    dtypes: Sequence[torch.dtype],
    shapes: Sequence[tuple[int, ...]],
    channels_last: Sequence[bool] = (),
    parts: tuple[int, ...] = (),
) -> Layout:
    """Returns the layout of a message whose `tree` has tensors of these dtypes and shapes.

    Args:
        tree: the form; of one of them if several requests travel together.
        dtypes: of the tensors.
        shapes: of the tensors.
        channels_last: which of them have their channels last in memory; empty: none.
        parts: the rows of each request, if several travel together.

    Raises:
        WireError: the structure is too long, a size is none, or the parts are not those of the rows.
    """
    shapes = [_check_shape(shape) for shape in shapes]
    channels_last = tuple(channels_last) or (False,) * len(dtypes)
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    names = [name + _CHANNELS_LAST if last else name for name, last in zip(names, channels_last, strict=True)]
    form = ["p", parts, tree] if parts else tree
    document = [form, *([name, *shape] for name, shape in zip(names, shapes, strict=True))]
    header = json.dumps(document, separators=(",", ":")).encode()
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"a message's structure must take at most {MAX_HEADER_BYTES} bytes, not {len(header)}")
    lengths = tuple(math.prod(shape) * dtype.itemsize for dtype, shape in zip(dtypes, shapes, strict=True))
    offsets, end = [], 0
    for length in lengths:
        offsets.append(end)
        end += align(length)
    leading = {shape[0] if shape else None for shape in shapes}
    rows = leading.pop() if len(leading) == 1 and not has_text(tree) else None
    if not all(math.prod(shape) for shape in shapes):
        rows = None  # nothing to share, and rows without elements can be so many that a loop over them never ends
    if parts and (rows is None or sum(parts) != rows):
        raise WireError(f"requests that travel together must have {sum(parts)} rows in all, not {rows}")
    group = None
    if rows is not None:
        group = json.dumps([tree, names, [shape[1:] for shape in shapes]])
    return Layout(
        header=header,
        tree=tree,
        dtypes=tuple(dtypes),
        shapes=tuple(shapes),
        offsets=tuple(offsets),
        lengths=lengths,
        n_bytes=end,
        start=align(4 + len(header)),
        size=align(4 + len(header)) + end,
        rows=rows,
        group=group,
        is_tensor=tree == ["t"] or tree == POSITIONAL_TENSOR,
        parts=parts,
        channels_last=channels_last,
    )


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns a shape as whole numbers: True and 1.0 are 1 where a form is looked up, and not where it is read."""
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError:
        raise WireError(f"a shape must hold whole numbers, not {list(shape)!r:.80}") from None
    if len(sizes) > 64 or not all(0 <= size < 1 << 48 for size in sizes):
        raise WireError(f"a shape must hold up to 64 sizes from 0, not {list(sizes)!r:.80}")
    if math.prod(size or 1 for size in sizes) >= 1 << 48:
        raise WireError(f"a shape must fit in memory, not {list(sizes)!r:.80}")
    return sizes


POSITIONAL_TENSOR: Node = ["u", ["u", ["t"]], ["d"]]
"""The form of a request's `(args, kwargs)` with one positional tensor."""


@lru_cache(maxsize=1024)
def positional_layout(dtypes: tuple[torch.dtype, ...], shapes: tuple[tuple[int, ...], ...]) -> Layout:
    """Returns the layout of a request that has these tensors as its positional arguments."""
    return make_layout(["u", ["u", *[["t"]] * len(dtypes)], ["d"]], dtypes, shapes)


def raw_call(inputs: Sequence[RawTensor | list[Any]]) -> tuple[Layout, list[RawTensor]]:
    """Returns the layout and the tensors of a request with these positional arguments: tensors, or lists of bytes.

    Raises:
        WireError: a tensor has another number of bytes than its dtype and shape say.
    """
    tensors: list[RawTensor] = []
    if len(inputs) == 1 and isinstance(x := inputs[0], RawTensor):  # nearly always
        tensors.append(x)
        layout = positional_layout((x.dtype,), (x.shape,))
    else:
        nodes = [_flatten_raw(x, tensors) for x in inputs]
        dtypes, shapes = tuple([x.dtype for x in tensors]), tuple([x.shape for x in tensors])
        if all(node == ["t"] for node in nodes):
            layout = positional_layout(dtypes, shapes)
        else:
            layout = make_layout(["u", ["u", *nodes], ["d"]], dtypes, shapes)
    for x, length in zip(tensors, layout.lengths, strict=True):
        if len(x.data) != length:  # what is left of another message would be taken for the rest
            raise WireError(f"a tensor of shape {list(x.shape)} must have {length} bytes, not {len(x.data)}")
    return layout, tensors


# No function within another: one that calls itself keeps what it sees, a whole body, until the next collection.
def _flatten_raw(x: RawTensor | list[Any] | bytes, tensors: list[RawTensor]) -> Node:
    if isinstance(x, list):
        return ["l", *(_flatten_raw(item, tensors) for item in x)]
    if isinstance(x, RawTensor):
        tensors.append(x)
        return ["t"]
    tensors.append(RawTensor(torch.uint8, (len(x),), x))
    return ["b"]


@lru_cache(maxsize=1024)
def packed(layout: Layout, parts: tuple[int, ...]) -> Layout:
    """Returns the layout of several requests like this one that travel together, of so many rows each."""
    shapes = [(sum(parts), *shape[1:]) for shape in layout.shapes]
    return make_layout(layout.tree, layout.dtypes, shapes, layout.channels_last, parts)


@lru_cache(maxsize=4096)
def parse(header: bytes) -> Layout:
    """Returns the layout that a header describes.

    Raises:
        WireError: the header is not one that `make_layout` writes.
    """
    try:
        document = json.loads(header)
        tree, *tensors = document
        parts: tuple[int, ...] = ()
        if isinstance(tree, list) and tree[:1] == ["p"]:
            tree, parts = _check_parts(tree)
        if isinstance(tree, list) and tree[:1] == ["m"]:
            n_tensors = sum(check_tree(child) for child in tree[1:])
        else:
            n_tensors = check_tree(tree)
        if n_tensors != len(tensors):
            raise WireError(f"a header's tree has {n_tensors} tensors, and {len(tensors)} are described")
        dtypes, shapes, channels_last = [], [], []
        for name, *shape in tensors:
            if not all(type(size) is int for size in shape):
                raise WireError(f"a header's shape must hold whole numbers, not {shape!r:.80}")
            last = name.endswith(_CHANNELS_LAST)
            if last and len(shape) not in (4, 5):
                raise WireError(f"a header's tensor with its channels last must have 4 or 5 axes, not {len(shape)}")
            dtypes.append(_DTYPES[name.removesuffix(_CHANNELS_LAST)])
            shapes.append(tuple(shape))
            channels_last.append(last)
        return make_layout(tree, dtypes, shapes, channels_last, parts)
    except WireError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise WireError(f"a header must be a tree and its tensors in JSON: {error!r:.200}") from None


def _check_parts(node: Node) -> tuple[Node, tuple[int, ...]]:
    """Returns the form of requests that travel together, and the rows of each."""
    if len(node) != 3 or not isinstance(node[1], list) or not 0 < len(node[1]) <= _MAX_PARTS:
        raise WireError(f"a header's node of kind 'p' must hold up to {_MAX_PARTS} numbers of rows and a node")
    if not all(type(rows) is int and 0 < rows < 1 << 48 for rows in node[1]):
        raise WireError(f"requests that travel together must have rows from 1, not {node[1]!r:.80}")
    return node[2], tuple(node[1])
