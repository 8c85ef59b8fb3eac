"""Several inputs of `multi_infer` that travel together."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ai.infer.transport.trees import Replies, Tree, flatten, unflatten
from ai.infer.transport.wire import Layout, has_channels_last, packed


class PackedInputs:
    """Inputs of `multi_infer` that travel as one request, row after row.

    Args:
        indices: of the inputs.
        layout: of the request that they make up.
        parts: of each of the request's tensors the inputs that make it up.
        rows: of each input.
        device: of all.
    """

    def __init__(
        self,
        indices: list[int],
        layout: Layout,
        parts: list[list[Tensor]],
        rows: list[int],
        device: torch.device | None,
    ) -> None:
        self.indices = indices
        self.layout = layout
        self.parts = parts
        self.device = device
        self._rows = rows
        self._n_rows = sum(rows)

    def takes(self, layout: Layout, device: torch.device | None, max_rows: int) -> bool:
        """Returns whether an input of this layout fits in."""
        fits = self._n_rows + (layout.rows or 0) <= max_rows and len(self.indices) < _MAX_TOGETHER
        return device == self.device and fits

    def add(self, index: int, layout: Layout, tensors: Sequence[Tensor]) -> None:
        """Adds an input."""
        self.indices.append(index)
        self._rows.append(layout.rows or 0)
        self._n_rows += layout.rows or 0
        for part, x in zip(self.parts, tensors, strict=True):
            part.append(x)

    def finish(self) -> "PackedInputs":
        """Gives the pack its layout, and returns it."""
        if len(self.indices) > 1:
            self.layout = packed(self.layout, tuple(self._rows))
        return self

    def split(self, output: Tree) -> list[Tree]:
        """Returns each input's output, of what the worker answered to all."""
        if isinstance(output, Replies):
            return list(output)
        if isinstance(output, Tensor):
            return list(output.split_with_sizes(self._rows))
        node, tensors = flatten(output, "output")
        if not tensors:
            return [output] * len(self._rows)
        shares = zip(*(x.split_with_sizes(self._rows) for x in tensors), strict=True)
        return [unflatten(node, iter(share), trusted=True) for share in shares]


_MAX_TOGETHER = 1024
Prepare = Callable[[tuple[Tree, ...], dict[str, Tree]], tuple[Layout, Sequence[Tensor], torch.device | None]]


def pack(inputs: Sequence[Tree], max_rows: int, prepare: Prepare) -> Iterator[PackedInputs]:
    """Yields inputs in packs of one shape and at most `max_rows` rows.

    Args:
        inputs: each a tensor, or a tuple of positional arguments.
        max_rows: of a pack.
        prepare: see `Session.prepare`.
    """
    if _are_alike(inputs):
        layout, _, device = prepare((inputs[0],), {})
        n_together = min(max(1, max_rows // (layout.rows or max_rows)), _MAX_TOGETHER)
        for start in range(0, len(inputs), n_together):
            pieces = [x.detach() if x.requires_grad else x for x in inputs[start : start + n_together]]
            rows = [layout.rows or 0] * len(pieces)
            whole = layout if len(pieces) == 1 else packed(layout, tuple(rows))
            yield PackedInputs(list(range(start, start + len(pieces))), whole, [pieces], rows, device)
        return
    open_packs: dict[str, PackedInputs] = {}
    for index, arguments in enumerate(inputs):
        layout, tensors, device = prepare(arguments if isinstance(arguments, tuple) else (arguments,), {})
        if layout.group is None:
            yield PackedInputs([index], layout, [[x] for x in tensors], [0], device)
            continue
        open_pack = open_packs.get(layout.group)
        if open_pack is not None and open_pack.takes(layout, device, max_rows):
            open_pack.add(index, layout, tensors)
            continue
        if open_pack is not None:
            yield open_pack.finish()
        open_packs[layout.group] = PackedInputs([index], layout, [[x] for x in tensors], [layout.rows or 0], device)
    for open_pack in open_packs.values():
        yield open_pack.finish()


def _are_alike(inputs: Sequence[Tree]) -> bool:
    """Returns whether all inputs are tensors of one form and device: then all can travel as they are."""
    first = inputs[0] if inputs else None
    if not isinstance(first, Tensor) or not first.ndim or first.layout is not torch.strided:
        return False
    shape, dtype, device = first.shape, first.dtype, first.device
    channels_last = has_channels_last(first)
    for x in inputs:
        if not isinstance(x, Tensor) or x.shape != shape or x.dtype is not dtype or x.layout is not torch.strided:
            return False
        if x.device != device or (channels_last != has_channels_last(x) if not x.is_contiguous() else channels_last):
            return False
    return True
