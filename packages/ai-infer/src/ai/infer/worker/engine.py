"""The model as a worker runs it: on its device, at its precision, compiled or replayed as asked."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from ai.infer.transport.trees import Tree
from ai.infer.worker.switches import may_round_to_tf32

Precision = Literal["model", "bf16", "bfloat16", "fp16", "float16", "tf32"]
_AUTOCAST = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16, "float16": torch.float16}


class Engine:
    """Calls a model without gradients and brings its output to the CPU.

    Args:
        model: in any mode; it is put in evaluation mode and moved.
        device: where it runs.
        precision: "model" computes as the model is; "bf16" and "fp16" (or "bfloat16" and "float16") under autocast;
            "tf32" lets fp32 matrix products use the GPU's TF32 units.
        compile: True for `torch.compile`, or the name of one of its backends.
        graph_rows: batch sizes for which a CUDA graph is captured; batches are padded up to the next one. CUDA only.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        precision: Precision = "model",
        compile: bool | str = False,
        graph_rows: Sequence[int] = (),
    ) -> None:
        self.device = device
        self.model = model.to(device)
        if not getattr(model, "mode_is_fixed", False):  # an exported program knows no train()
            self.model.eval()
        self.model.requires_grad_(False)
        self.on_cpu = device.type == "cpu"
        self._autocast = _AUTOCAST.get(precision)
        if precision == "tf32":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self._forward: Callable[..., Tree] = self.model
        if compile:
            backend = compile if isinstance(compile, str) else "inductor"
            self._forward = torch.compile(self.model, backend=backend, dynamic=True)
        self._graphs = _Graphs(self._forward, graph_rows) if graph_rows else None
        self.on_call: Callable[[], None] = lambda: None
        """Is called before each call of the model."""

    def __call__(self, args: Sequence[Tree], kwargs: dict[str, Tree], *, exact: bool = False) -> Tree:
        """Returns the model's output, its tensors wherever the model left them.

        Args:
            args: positional arguments, tensors already on the engine's device.
            kwargs: likewise.
            exact: whether the model must not see rows beside these, as padding is.
        """
        self.on_call()
        with torch.no_grad():
            if self._autocast is None:
                return self._run(args, kwargs, exact)
            with self.precision():
                return self._run(args, kwargs, exact)

    def _run(self, args: Sequence[Tree], kwargs: dict[str, Tree], exact: bool) -> Tree:
        if self._graphs is not None and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            x = args[0]
            if x.ndim and not (exact and self.pads(x.shape[0])):
                return self._graphs(x)
        return self._forward(*args, **kwargs)

    def pads(self, rows: int) -> bool:
        """Returns whether a batch of so many rows is padded, so that it shares its call with other rows."""
        return self._graphs is not None and self._graphs.pads(rows)

    def state(self) -> list[tuple[int, int]]:
        """Returns marks of the parameters and buffers, which are others once one of them was written into."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        return [(id(x), 0 if x.is_inference() else x._version) for x in tensors]

    @property
    def coarsest(self) -> torch.dtype | None:
        """The dtype in which numbers are rounded most on their way, if it may be coarser than the output's."""
        if self._autocast is not None:
            return self._autocast
        if self.device.type == "cuda" and may_round_to_tf32():
            return torch.float16  # of which TF32 has the precision
        halves = {x.dtype for x in self.model.parameters() if x.is_floating_point() and x.dtype.itemsize < 4}
        return torch.bfloat16 if torch.bfloat16 in halves else next(iter(halves), None)

    def precision(self) -> AbstractContextManager[object]:
        """Returns what a call of the model is made under, beside `torch.no_grad()`."""
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)

    def to_device(self, x: Tensor) -> Tensor:
        """Returns a CPU tensor on the engine's device."""
        return x if self.on_cpu else x.to(self.device)


class _Graphs:
    """CUDA graphs of a model for a few batch sizes and one shape of rows each."""

    def __init__(self, forward: Callable[..., Tree], sizes: Sequence[int]) -> None:
        self._forward = forward
        self._sizes = sorted(sizes)
        self._captured: dict[tuple[torch.Size, torch.dtype], tuple[torch.cuda.CUDAGraph, Tensor, Tree]] = {}

    def __call__(self, x: Tensor) -> Tree:
        rows = x.shape[0]
        size = next((size for size in self._sizes if size >= rows), None)
        if size is None:
            return self._forward(x)
        key = (torch.Size((size, *x.shape[1:])), x.dtype)
        if key not in self._captured:
            with torch.cuda.device(x.device):  # streams and graphs are made on the current one
                self._captured[key] = self._capture(key[0], x)
        graph, static_input, static_output = self._captured[key]
        static_input[:rows].copy_(x)
        graph.replay()
        return _first_rows(static_output, size, rows)

    def pads(self, rows: int) -> bool:
        """Returns whether so many rows are padded up to a size for which there is a graph."""
        return rows not in self._sizes and rows < self._sizes[-1]

    def _capture(self, shape: torch.Size, like: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tree]:
        static_input = torch.zeros(shape, dtype=like.dtype, device=like.device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # warm-up allocations and library handles must not be captured
            for _ in range(3):
                self._forward(static_input)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            static_output = self._forward(static_input)
        return graph, static_input, static_output


def _first_rows(output: Tree, size: int, rows: int) -> Tree:
    """Returns a graph's output without the padding; the copy keeps the next replay from overwriting it."""
    if isinstance(output, Tensor):
        return output[:rows].clone() if output.shape[:1] == (size,) else output.clone()
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        names = [field.name for field in dataclasses.fields(output) if field.init]
        return dataclasses.replace(output, **{name: _first_rows(getattr(output, name), size, rows) for name in names})
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_first_rows(x, size, rows) for x in output))
    if isinstance(output, (list, tuple)):
        return type(output)(_first_rows(x, size, rows) for x in output)
    if isinstance(output, dict):
        return {key: _first_rows(x, size, rows) for key, x in output.items()}
    return output
