"""A moving average of a model's parameters: a few fused operations per step, swapped in for evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ai.model.arguments import check_module, check_real


class Ema:
    """An exponential moving average of a model's parameters; buffers are copied, not averaged.

    It starts as a copy of the model, so it is never garbage. After update t (from 1) its decay is
    min(decay, t / (t + 9)) with `warmup`, so that early averages are not dominated by the initial parameters.

    Of parameters in half precision the average is kept in float32, where small steps add up: four bytes a parameter,
    and two more for their own values while the averages, rounded to the parameters' type, are swapped in.

    Args:
        model: its parameters are read in place. Those that are added or replaced later are taken in at the next update;
            they begin as they are then.
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
        check_module(model=model)
        check_real(decay=decay)
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of ema ({decay}) must lie in [0, 1)")
        self.model, self.decay, self.warmup = model, decay, warmup
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Begin anew, at the parameters as they are now."""
        self._names, self._params = _floating(self.model)
        self._averages = [_copy(p) for p in self._params]
        self._places = _places(self.model)
        self._inside = 0  # blocks of `swapped_in` that are open

    @torch.no_grad()
    def take_in(self) -> None:
        """Follow a model whose parameters were added, replaced or removed: what is new begins as it is now."""
        if all(len(there) == count and there.get(key) is held for there, count, key, held in self._places):
            return
        held = {id(param): average for param, average in zip(self._params, self._averages, strict=True)}
        self._names, self._params = _floating(self.model)
        self._averages = [held[id(p)] if id(p) in held else _copy(p) for p in self._params]
        self._places = _places(self.model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters; `step` counts the updates made, from 1."""
        self.take_in()
        decay = min(self.decay, step / (step + 9)) if self.warmup else self.decay
        averages, params = self._averages, self._params
        narrow = [(a, p) for a, p in zip(averages, params, strict=True) if a.dtype != p.dtype]
        if narrow:
            for average, param in narrow:  # one by one: no second wide copy of the model
                average.lerp_(param.to(average.dtype), 1 - decay)
            wide = [(a, p) for a, p in zip(averages, params, strict=True) if a.dtype == p.dtype]
            averages, params = [a for a, _ in wide], [p for _, p in wide]
        if params:
            torch._foreach_lerp_(averages, params, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model carries the averages inside the block, and exactly its own parameters after it.

        A block inside another changes nothing.
        """
        if self._inside:
            yield
            return
        self.take_in()
        params = self._params
        # Narrow parameters get a rounded copy: their average would come back rounded.
        shown = [a if a.dtype == p.dtype else a.to(p.dtype) for p, a in zip(params, self._averages, strict=True)]
        self._inside += 1
        _exchange(params, shown)
        try:
            yield
        finally:
            _exchange(params, shown)
            self._inside -= 1

    def state_dict(self) -> dict[str, Any]:
        """The averages under the model's parameter names.

        Raises:
            RuntimeError: they are swapped in.
        """
        if self._inside:
            raise RuntimeError("the moving average is swapped in: save the run after the evaluation, not inside it")
        self.take_in()
        return dict(zip(self._names, self._averages, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy averages in; names that the state lacks are refused."""
        self.take_in()
        missing = [name for name in self._names if name not in state]
        if missing:
            raise ValueError(f"the saved moving average lacks {missing[0]!r}, which the model has")
        with torch.no_grad():
            for name, average in zip(self._names, self._averages, strict=True):
                average.copy_(state[name])


@torch.no_grad()
def _exchange(params: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    # Values, not tensors: optimisers, compiled graphs and shards hold on to the tensors.
    for param, other in zip(params, others, strict=True):
        held = param.clone()
        param.copy_(other)
        other.copy_(held)


def _copy(param: Tensor) -> Tensor:
    """At least float32."""
    return param.detach().to(torch.promote_types(param.dtype, torch.float32), copy=True)


def _places(model: nn.Module) -> list[tuple[Mapping[str, Any], int, str, object]]:
    """Where each part and parameter of a model lies, how many lie there, and what: cheaper to compare than to find."""
    there = [part for module in model.modules() for part in (module._modules, module._parameters)]
    return [(part, len(part), key, held) for part in there for key, held in (part.items() or [("", None)])]


def _floating(model: nn.Module) -> tuple[list[str], list[Tensor]]:
    named: dict[str, Tensor] = {
        name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()
    }
    return list(named), list(named.values())
