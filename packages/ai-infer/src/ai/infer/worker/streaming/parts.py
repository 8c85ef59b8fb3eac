"""The parts of one reply, made with switches of torch that are this reply's alone.

A generator that yields within `with torch.autocast(…)` leaves the thread under autocast, for whatever is called next,
and two that take turns leave it so for good: each puts back what it found. So the switches change with the turns:
gradients, autocast and inference mode are the generator's own while it runs, and are covered while it pauses. For what
else it may set see `own_state`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from ai.infer.transport.trees import Tree, flatten, unflatten
from ai.infer.worker.engine import Engine
from ai.infer.worker.streaming.own_state import OwnState


class ReplyParts:
    """What a model's iterator yields, or its one output.

    The model is called as it is written, neither compiled nor replayed, when the first part is asked for.

    Args:
        engine: whose model it is.
        args: positional arguments, on the CPU.
        kwargs: likewise.
    """

    def __init__(self, engine: Engine, args: Sequence[Tree], kwargs: dict[str, Tree]) -> None:
        self._engine = engine
        self._call = (args, kwargs)
        self._parts: Iterator[Tree] | None = None
        self._devices = {"cpu", engine.device.type}
        self._state = OwnState(engine.device)
        self._under = ExitStack()  # what the model is called under
        self._cover = ExitStack()  # what hides the generator's switches from others

    def next(self, end: Tree) -> Tree:
        """Returns the next part, or `end`."""
        self._engine.on_call()
        with self._own_switches():
            if self._parts is None:
                self._under.enter_context(torch.no_grad())
                self._under.enter_context(self._engine.precision())
                args, kwargs = self._call
                self._call = ((), {})
                output = self._engine.model(*self._move(args), **self._move(kwargs))
                self._parts = output if isinstance(output, Iterator) else iter([output])
            return next(self._parts, end)

    def close(self) -> None:
        """Lets a generator run its `finally`; raises what that raises."""
        parts, self._parts = self._parts, None
        with self._own_switches(), self._under:
            if parts is not None and hasattr(parts, "close"):
                parts.close()

    def _move(self, tree: Tree) -> Tree:
        node, tensors = flatten(tree)
        return unflatten(node, iter([self._engine.to_device(x) for x in tensors]))

    @contextmanager
    def _own_switches(self) -> Iterator[None]:
        self._state.enter()
        self._cover.close()
        try:
            yield
        finally:
            if not torch.is_grad_enabled():
                self._cover.enter_context(torch.set_grad_enabled(True))
            for device in self._devices:
                if torch.is_autocast_enabled(device):
                    self._cover.enter_context(torch.autocast(device, enabled=False))
            if torch.is_inference_mode_enabled():
                self._cover.enter_context(torch.inference_mode(False))
            self._state.leave()
