"""A moving average of a model's parameters: a few fused operations per step, swapped in for evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """An exponential moving average of a model's parameters; buffers are copied, not averaged.

    It starts as a copy of the model, so it is never garbage. After update t (from 1) its decay is
    min(decay, t / (t + 9)) with `warmup`, so that early averages are not dominated by the initial parameters.

    Args:
        model: its parameters are read in place; they must not be replaced (shard first).
        decay: share of the old average that is kept at each update, 0 <= decay < 1.
        warmup: whether the decay starts low.

    Source: Polyak and Juditsky 1992; the warm-up as in TensorFlow's `ExponentialMovingAverage`, (1 + n) / (10 + n).

    >>> model = nn.Linear(1, 1, bias=False)
    >>> ema = Ema(model, 0.5, warmup=False)
    >>> before = model.weight.item()
    >>> _ = nn.init.constant_(model.weight, before + 2)
    >>> ema.update(1)
    >>> with ema.swapped_in():
    ...     round(model.weight.item() - before, 4)
    1.0
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of ema ({decay}) must lie in [0, 1)")
        self.model, self.decay, self.warmup = model, decay, warmup
        self._names = [name for name, p in model.named_parameters() if p.is_floating_point()]
        self._params = [p.detach() for p in model.parameters() if p.is_floating_point()]
        self._averages = [p.clone() for p in self._params]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters; `step` counts the updates made, from 1."""
        decay = min(self.decay, step / (step + 9)) if self.warmup else self.decay
        torch._foreach_lerp_(self._averages, self._params, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model carries the averages inside the block, and exactly its own parameters after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # Values are exchanged, not tensors: optimisers, compiled graphs and shards hold on to the tensors.
        with torch.no_grad():
            for param, average in zip(self._params, self._averages, strict=True):
                held = param.clone()
                param.copy_(average)
                average.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """The averages under the model's parameter names."""
        return dict(zip(self._names, self._averages, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy averages in; names that the model lacks are refused."""
        missing = [name for name in self._names if name not in state]
        if missing:
            raise ValueError(f"the saved moving average lacks {missing[0]!r}, which the model has")
        with torch.no_grad():
            for name, average in zip(self._names, self._averages, strict=True):
                average.copy_(state[name])
