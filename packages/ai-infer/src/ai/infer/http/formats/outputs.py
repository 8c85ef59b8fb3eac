"""What a model returned, as named outputs of the protocol."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ai.infer.http.formats.messages import RefusedError
from ai.infer.http.formats.tensors import BadInputError, Texts, from_raw, to_bytes
from ai.infer.transport.trees import RawTensor, Tree

Output = RawTensor | Texts


def named_outputs(tree: Tree) -> list[tuple[str, Any]]:
    """Returns a model's outputs with names: `y` for one, else their keys, fields, or `y0`, `y1` and so on.

    Tensors are `torch.Tensor`s or `RawTensor`s and stay what they are; text, bytes and lists of them become `Texts`,
    numbers tensors of one element. None is left out.
    """
    single = tree if type(tree) is RawTensor else _leaf(tree)
    if single is not None:
        return [("y", single)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    elif isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        items = list(zip(tree._fields, tree, strict=True))
    elif isinstance(tree, (list, tuple)):
        items = [(f"y{index}", value) for index, value in enumerate(tree)]
    else:
        raise RefusedError(500, f"the model returns {type(tree).__name__}, which is no tensor")
    named: list[tuple[str, Any]] = []
    for name, value in items:
        if value is None:
            continue
        leaf = _leaf(value)
        named += [(name, leaf)] if leaf is not None else [(f"{name}.{inner}", x) for inner, x in named_outputs(value)]
    if len(dict(named)) < len(named):  # as of the keys 1 and "1": who asks by name would be told of one alone
        names = [name for name, _ in named]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedError(500, f"the model returns two outputs of the name {twice!r:.80}")
    return named


def _leaf(value: Tree) -> Any:
    """Returns what stands for one output; None: the value has several, or none."""
    if isinstance(value, (Tensor, RawTensor)):
        return value
    if isinstance(value, (str, bytes)):
        return Texts((1,), [_encode(value)])
    if isinstance(value, (bool, int, float)):
        dtype = torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float64
        return RawTensor(dtype, (1,), to_bytes(torch.tensor([value], dtype=dtype, device="cpu")))
    is_list = isinstance(value, (list, tuple)) and not hasattr(value, "_fields")
    if is_list and value and all(isinstance(item, (str, bytes)) for item in value):
        return Texts((len(value),), [_encode(item) for item in value])
    return None


def _encode(text: str | bytes) -> bytes:
    return text.encode(errors="surrogatepass") if isinstance(text, str) else text


def classify(name: str, x: Output, n_classes: int) -> Texts:
    """Returns the best classes of each row, as `VALUE:INDEX`, as the protocol's extension writes them."""
    if isinstance(x, Texts) or not x.shape or not x.shape[-1] or not x.dtype.is_floating_point:
        raise BadInputError(f"output {name!r:.80} must hold scores to be classified")
    n_classes = min(n_classes, x.shape[-1])
    values, indices = from_raw(x).float().topk(n_classes, -1)
    pairs = zip(values.flatten().tolist(), indices.flatten().tolist(), strict=True)
    return Texts((*x.shape[:-1], n_classes), [f"{value:f}:{index}".encode() for value, index in pairs])
