"""Several inputs of `multi_infer` that travel together."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ai.infer.transport.wire import Layout, Tree, flatten, unflatten, with_rows


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
        return device == self.device and self._n_rows + (layout.rows or 0) <= max_rows

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
            self.layout = with_rows(self.layout, self._n_rows)
        return self

    def split(self, output: Tree) -> list[Tree] | None:
        """Returns each input's share of the output; None if the output's tensors are not one row for one row."""
        if isinstance(output, Tensor):
            return list(output.split_with_sizes(self._rows)) if output.shape[:1] == (self._n_rows,) else None
        node, tensors = flatten(output, "output")
        if not all(x.shape[:1] == (self._n_rows,) for x in tensors):
            return None
        shares = zip(*(x.split_with_sizes(self._rows) for x in tensors), strict=True)
        return [unflatten(node, iter(share)) for share in shares]


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
        n_together = max(1, max_rows // (layout.rows or max_rows))
        for start in range(0, len(inputs), n_together):
            pieces = [x.detach() if x.requires_grad else x for x in inputs[start : start + n_together]]
            rows = [layout.rows or 0] * len(pieces)
            whole = layout if len(pieces) == 1 else with_rows(layout, sum(rows))
            yield PackedInputs(list(range(start, start + len(pieces))), whole, [pieces], rows, device)
        return
    open_packs: dict[str, PackedInputs] = {}
    for index, arguments in enumerate(inputs):
        layout, tensors, device = prepare(arguments if isinstance(arguments, tuple) else (arguments,), {})
        if layout.group is None:
            yield PackedInputs([index], layout, [[x] for x in tensors], [0], device)
            continue
        packed = open_packs.get(layout.group)
        if packed is not None and packed.takes(layout, device, max_rows):
            packed.add(index, layout, tensors)
            continue
        if packed is not None:
            yield packed.finish()
        open_packs[layout.group] = PackedInputs([index], layout, [[x] for x in tensors], [layout.rows or 0], device)
    for packed in open_packs.values():
        yield packed.finish()


def _are_alike(inputs: Sequence[Tree]) -> bool:
    """Returns whether all inputs are tensors of one shape, dtype and device: then all can travel as they are."""
    if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].ndim or inputs[0].layout is not torch.strided:
        return False
    shape, dtype, device = inputs[0].shape, inputs[0].dtype, inputs[0].device
    return all(isinstance(x, Tensor) and x.shape == shape and x.dtype is dtype and x.device == device for x in inputs)
