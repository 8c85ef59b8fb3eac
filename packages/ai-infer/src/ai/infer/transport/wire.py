"""How a request or a reply lies in memory: a JSON header that names its tree, then the bytes of its tensors.

No pickle: whoever can write to a socket or a slot can send numbers, not code. A node of the header's tree is a JSON
array whose first item is its kind:

    ["t"]                              the next tensor
    ["c", value]                       None, bool, int, float or str
    ["l", node, …]  ["u", node, …]     list, tuple
    ["d", [key, node], …]              dict with str or int keys
    ["o", "module:Class", [name, node], …]   dataclass
    ["n", "module:Class", node, …]     named tuple
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ai.infer.transport.shared_memory import align

Node = list[Any]
Tree = Any
"""A tensor, a constant, or a list, tuple, dict, dataclass or named tuple of trees."""

MAX_HEADER_BYTES = 1 << 16
_MAX_DEPTH = 64
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith(("torch.q", "torch.uint1b", "torch.bits"))
}


class WireError(ValueError):
    """Bytes that are no request and no reply."""


class RawTensor(NamedTuple):
    """A tensor as its bytes: little-endian, in C order. So numbers pass from a network to a worker untouched."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    data: bytes | memoryview


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

    def views(self, data: Tensor) -> list[Tensor]:
        """Returns the message's tensors as views of `data`, uint8 `(at least n_bytes,)`."""
        views = []
        for dtype, shape, offset in zip(self.dtypes, self.shapes, self.offsets, strict=True):
            n_bytes = math.prod(shape) * dtype.itemsize
            views.append(data[offset : offset + n_bytes].view(dtype).view(shape))
        return views

    def raw(self, data: memoryview) -> list[RawTensor]:
        """Returns the message's tensors as copies of their bytes in `data`, at least `n_bytes` long."""
        places = zip(self.dtypes, self.shapes, self.offsets, strict=True)
        return [
            RawTensor(dtype, shape, bytes(data[offset : offset + math.prod(shape) * dtype.itemsize]))
            for dtype, shape, offset in places
        ]


def flatten(tree: Tree, path: str = "x") -> tuple[Node, list[Tensor]]:
    """Returns a tree's form and its tensors, detached, in order.

    Args:
        tree: what to take apart.
        path: what to call it in an error.

    Raises:
        TypeError: something in the tree cannot travel; the message names where it is.

    >>> import torch
    >>> node, tensors = flatten({"a": torch.zeros(2), "b": (1, None)})
    >>> node, len(tensors)
    (['d', ['a', ['t']], ['b', ['u', ['c', 1], ['c', None]]]], 1)
    """
    tensors: list[Tensor] = []
    return _flatten(tree, path, tensors), tensors


def _flatten(tree: Tree, path: str, tensors: list[Tensor]) -> Node:
    if isinstance(tree, Tensor):
        if tree.layout is not torch.strided or tree.is_quantized:
            raise TypeError(f"{path} must be a dense tensor, not one of layout {tree.layout} and dtype {tree.dtype}")
        tensors.append(tree.detach())
        return ["t"]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return ["c", tree]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = [field.name for field in dataclasses.fields(tree) if field.init]
        return [
            "o",
            _class_name(type(tree)),
            *([name, _flatten(getattr(tree, name), f"{path}.{name}", tensors)] for name in fields),
        ]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        named = zip(tree._fields, tree, strict=True)
        return ["n", _class_name(type(tree)), *(_flatten(x, f"{path}.{name}", tensors) for name, x in named)]
    if isinstance(tree, (list, tuple)):
        kind = "l" if isinstance(tree, list) else "u"
        return [kind, *(_flatten(x, f"{path}[{i}]", tensors) for i, x in enumerate(tree))]
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, (str, int)):
                raise TypeError(f"{path} must have str or int keys, not {key!r}")
        return ["d", *([key, _flatten(x, f"{path}[{key!r}]", tensors)] for key, x in tree.items())]
    raise TypeError(
        f"{path} must be a tensor, a number, a string, None, or a list, tuple, dict, dataclass or named tuple of "
        f"these, not {type(tree).__name__}"
    )


def _class_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def unflatten(node: Node, tensors: Iterator[Any]) -> Tree:
    """Returns the tree of the form `node`, its tensors taken in order from `tensors`."""
    kind = node[0]
    if kind == "t":
        return next(tensors)
    if kind == "c":
        return node[1]
    if kind == "l":
        return [unflatten(child, tensors) for child in node[1:]]
    if kind == "u":
        return tuple([unflatten(child, tensors) for child in node[1:]])
    if kind == "d":
        return {key: unflatten(child, tensors) for key, child in node[1:]}
    if kind == "o":
        return _find_class(node[1])(**{name: unflatten(child, tensors) for name, child in node[2:]})
    return _find_class(node[1])(*(unflatten(child, tensors) for child in node[2:]))


@lru_cache(maxsize=1024)
def _find_class(name: str) -> type[Any]:
    """Returns the dataclass or named tuple called `module:Class`; nothing else can be named on the wire."""
    module_name, _, path = name.partition(":")
    try:
        found: Any = sys.modules.get(module_name) or import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise WireError(f"the class {name!r} of a message must be importable here: {error}") from None
    if not isinstance(found, type) or not (
        dataclasses.is_dataclass(found) or (issubclass(found, tuple) and hasattr(found, "_fields"))
    ):
        raise WireError(f"the class {name!r} of a message must be a dataclass or a named tuple")
    return found


def layout_of(tree: Node, tensors: Sequence[Tensor]) -> Layout:
    """Returns the layout of a message from its form and its tensors."""
    return make_layout(tree, [x.dtype for x in tensors], [tuple(x.shape) for x in tensors])


def make_layout(tree: Node, dtypes: Sequence[torch.dtype], shapes: Sequence[tuple[int, ...]]) -> Layout:
    """Returns the layout of a message whose `tree` has tensors of these dtypes and shapes."""
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    document = [tree, *([name, *shape] for name, shape in zip(names, shapes, strict=True))]
    header = json.dumps(document, separators=(",", ":")).encode()
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"a message's structure must take at most {MAX_HEADER_BYTES} bytes, not {len(header)}")
    offsets, end = [], 0
    for dtype, shape in zip(dtypes, shapes, strict=True):
        offsets.append(end)
        end += align(math.prod(shape) * dtype.itemsize)
    leading = {shape[0] if shape else None for shape in shapes}
    rows = leading.pop() if len(leading) == 1 else None
    if not all(math.prod(shape) for shape in shapes):
        rows = None  # nothing to share, and rows without elements can be so many that a loop over them never ends
    group = None
    if rows is not None:
        group = json.dumps([tree, names, [shape[1:] for shape in shapes]])
    return Layout(
        header=header,
        tree=tree,
        dtypes=tuple(dtypes),
        shapes=tuple(shapes),
        offsets=tuple(offsets),
        n_bytes=end,
        start=align(4 + len(header)),
        size=align(4 + len(header)) + end,
        rows=rows,
        group=group,
        is_tensor=tree == ["t"] or tree == POSITIONAL_TENSOR,
    )


POSITIONAL_TENSOR: Node = ["u", ["u", ["t"]], ["d"]]
"""The form of a request's `(args, kwargs)` with one positional tensor."""


@lru_cache(maxsize=1024)
def positional_layout(dtypes: tuple[torch.dtype, ...], shapes: tuple[tuple[int, ...], ...]) -> Layout:
    """Returns the layout of a request that has these tensors as its positional arguments."""
    return make_layout(["u", ["u", *[["t"]] * len(dtypes)], ["d"]], dtypes, shapes)


@lru_cache(maxsize=1024)
def with_rows(layout: Layout, rows: int) -> Layout:
    """Returns the layout of the same message with another number of rows; `layout.rows` must not be None."""
    return make_layout(layout.tree, layout.dtypes, [(rows, *shape[1:]) for shape in layout.shapes])


@lru_cache(maxsize=4096)
def parse(header: bytes) -> Layout:
    """Returns the layout that a header describes.

    Raises:
        WireError: the header is not one that `make_layout` writes.
    """
    try:
        document = json.loads(header)
        tree, *tensors = document
        n_tensors = _check(tree, 0)
        if n_tensors != len(tensors):
            raise WireError(f"a header's tree has {n_tensors} tensors, and {len(tensors)} are described")
        dtypes, shapes = [], []
        for name, *shape in tensors:
            if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape) or len(shape) > 64:
                raise WireError(f"a header's shape must hold sizes from 0, not {shape!r:.80}")
            if math.prod(size or 1 for size in shape) >= 1 << 48:
                raise WireError(f"a header's shape must fit in memory, not {shape!r:.80}")
            dtypes.append(_DTYPES[name])
            shapes.append(tuple(shape))
        return make_layout(tree, dtypes, shapes)
    except WireError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise WireError(f"a header must be a tree and its tensors in JSON: {error!r:.200}") from None


def _check(node: Any, depth: int) -> int:
    """Returns how many tensors a tree has that came from outside, and raises if it is not a tree."""
    if depth > _MAX_DEPTH:
        raise WireError(f"a header's tree must be at most {_MAX_DEPTH} deep")
    if not isinstance(node, list) or not node:
        raise WireError(f"a header's node must be a list that begins with its kind, not {node!r:.80}")
    kind, *rest = node
    if kind == "t" and not rest:
        return 1
    if kind == "c" and len(rest) == 1 and (rest[0] is None or isinstance(rest[0], (bool, int, float, str))):
        return 0
    if kind in ("o", "n"):
        if not rest or not isinstance(rest[0], str):
            raise WireError(f"a header's node of kind {kind!r} must name its class")
        rest = rest[1:]
    if kind in ("l", "u", "n"):
        return sum(_check(child, depth + 1) for child in rest)
    if kind in ("d", "o"):
        total = 0
        for pair in rest:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], (str, int)):
                raise WireError(f"a header's dict must hold pairs of key and node, not {pair!r:.80}")
            if kind == "o" and not isinstance(pair[0], str):
                raise WireError(f"a header's field must be a name, not {pair[0]!r:.80}")
            total += _check(pair[1], depth + 1)
        return total
    raise WireError(f"a header's node must have a known kind, not {kind!r:.80}")
