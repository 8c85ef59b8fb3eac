"""The structure of a request or a reply: trees of tensors, text and constants, taken apart and put together.

No pickle: whoever can write to a socket or a slot can send numbers, not code. A node of a tree is a JSON
array whose first item is its kind:

    ["t"]                              the next tensor
    ["c", value]                       None, bool, int, float or a short str
    ["b"]  ["s"]                       bytes, a long str: the next tensor holds them (UTF-8)
    ["l", node, …]  ["u", node, …]     list, tuple
    ["d", [key, node], …]              dict with str or int keys
    ["o", "module:Class", [name, node], …]   dataclass
    ["n", "module:Class", node, …]     named tuple

and at the top alone

    ["p", [rows, …], node]             several requests of one form, their tensors one after the other along axis 0
    ["m", node, …]                     the replies to them, each by itself
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ai.infer.transport.classes import fill_dataclass, fill_named_tuple, find_class, make_dataclass
from ai.infer.transport.errors import WireError

Node = list[Any]
Tree = Any
"""A tensor, a constant, text, bytes, or a list, tuple, dict, dataclass or named tuple of trees."""

_MAX_DEPTH = 64
_MAX_TEXT = 256  # characters that a header holds itself; longer text travels like a tensor


class Replies(list[Tree]):
    """The replies to requests that travelled together, where each was answered by itself."""


class RawTensor(NamedTuple):
    """A tensor as its bytes: little-endian, in C order. So numbers pass from a network to a worker untouched."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    data: bytes | memoryview


RawInput = RawTensor | list[Any]
"""An argument as bytes: of a tensor, or of each item of a list of texts, nested as it likes."""


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
        if not is_dense(tree):
            kind = "nested" if tree.is_nested else f"of layout {tree.layout} and dtype {tree.dtype}"
            raise TypeError(f"{path} must be a dense tensor, not one {kind}")
        tensors.append(tree.detach())
        return ["t"]
    if tree is None or isinstance(tree, (bool, int, float)) or (isinstance(tree, str) and len(tree) <= _MAX_TEXT):
        return ["c", tree]
    if isinstance(tree, (str, bytes, bytearray, memoryview)):
        kind = "s" if isinstance(tree, str) else "b"
        data = bytearray(tree.encode(errors="surrogatepass") if isinstance(tree, str) else tree)
        tensors.append(
            torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8, device="cpu")
        )
        return [kind]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree) if field.init or hasattr(tree, field.name)]
        fields = ([name, _flatten(getattr(tree, name), f"{path}.{name}", tensors)] for name in names)
        return ["o", _class_name(type(tree)), *fields]
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
        f"{path} must be a tensor, a number, a string, bytes, None, or a list, tuple, dict, dataclass or named tuple "
        f"of these, not {type(tree).__name__}"
    )


def is_dense(x: Tensor) -> bool:
    """Returns whether a tensor is nothing but numbers in rows and columns, so that it can travel."""
    return x.layout is torch.strided and not x.is_quantized and not x.is_nested


def _class_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def unflatten(node: Node, tensors: Iterator[Any], *, trusted: bool = False) -> Tree:
    """Returns the tree of the form `node`.

    Args:
        node: a form; `parse` has looked at it if it came from outside.
        tensors: `Tensor`s or `RawTensor`s, taken in order.
        trusted: whether the form was made by somebody whose classes may be imported and whose constructors may run,
            as a client's own worker. Of a stranger's form only dataclasses and named tuples that are there already
            are filled in, and no code of theirs runs.
    """
    kind = node[0]
    if kind == "t":
        return next(tensors)
    if kind == "c":
        return node[1]
    if kind in ("b", "s"):
        x = next(tensors)
        data = bytes(x.data) if isinstance(x, RawTensor) else x.cpu().numpy().tobytes()
        return data if kind == "b" else data.decode(errors="surrogatepass")
    if kind == "o":
        fields = {name: unflatten(child, tensors, trusted=trusted) for name, child in node[2:]}
        return make_dataclass(node[1], fields) if trusted else fill_dataclass(node[1], fields)
    if kind == "d":
        return {key: unflatten(child, tensors, trusted=trusted) for key, child in node[1:]}
    children = node[2:] if kind == "n" else node[1:]
    items = [unflatten(child, tensors, trusted=trusted) for child in children]
    if kind == "l":
        return items
    if kind == "m":
        return Replies(items)
    if kind == "u":
        return tuple(items)
    return find_class(node[1])(*items) if trusted else fill_named_tuple(node[1], items)


def has_text(node: Node) -> bool:
    """Returns whether a form holds text or bytes that travel like a tensor, but have no rows."""
    kind, *rest = node
    if kind in ("t", "c"):
        return False
    if kind in ("d", "o"):
        return any(has_text(pair[1]) for pair in rest[kind == "o" :])
    return kind in ("b", "s") or any(has_text(child) for child in rest[kind == "n" :])


def check_tree(node: Any, depth: int = 0) -> int:
    """Returns how many tensors a tree has that came from outside, and raises if it is not a tree."""
    if depth > _MAX_DEPTH:
        raise WireError(f"a header's tree must be at most {_MAX_DEPTH} deep")
    if not isinstance(node, list) or not node:
        raise WireError(f"a header's node must be a list that begins with its kind, not {node!r:.80}")
    kind, *rest = node
    if kind in ("t", "b", "s") and not rest:
        return 1
    if kind == "c" and len(rest) == 1 and (rest[0] is None or isinstance(rest[0], (bool, int, float, str))):
        return 0
    if kind in ("o", "n"):
        if not rest or not isinstance(rest[0], str):
            raise WireError(f"a header's node of kind {kind!r} must name its class")
        rest = rest[1:]
    if kind in ("l", "u", "n"):
        return sum(check_tree(child, depth + 1) for child in rest)
    if kind in ("d", "o"):
        total = 0
        for pair in rest:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], (str, int)):
                raise WireError(f"a header's dict must hold pairs of key and node, not {pair!r:.80}")
            if kind == "o" and not isinstance(pair[0], str):
                raise WireError(f"a header's field must be a name, not {pair[0]!r:.80}")
            total += check_tree(pair[1], depth + 1)
        return total
    raise WireError(f"a header's node must have a known kind, not {kind!r:.80}")
