"""A moving average of a model's parameters: a few fused operations per step, swapped in for evaluation."""

import sys
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
        self._inside = False  # whether a block of `swapped_in` is open
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Begin anew, at the parameters as they are now."""
        self._refuse_inside("begin it anew")
        _reshard(self.model)
        self._names, self._params = _floating(self.model)
        self._averages = [_copy(p) for p in self._params]
        self._places = _places(self.model)

    @torch.no_grad()
    def take_in(self) -> None:
        """Follow a model whose parameters were added, replaced or removed: what is new begins as it is now."""
        if self._is_up_to_date():
            return
        _reshard(self.model)  # which puts the shards back: they are then the ones that are held
        if self._is_up_to_date():
            return
        held = {id(param): average for param, average in zip(self._params, self._averages, strict=True)}
        self._names, self._params = _floating(self.model)
        self._averages = [held[id(p)] if id(p) in held else _copy(p) for p in self._params]
        self._places = _places(self.model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters; `step` counts the updates made, from 1."""
        self._refuse_inside("update it")
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
        _reshard(self.model)
        params = self._params
        # Narrow parameters get a rounded copy: their average would come back rounded.
        shown = [a if a.dtype == p.dtype else a.to(p.dtype) for p, a in zip(params, self._averages, strict=True)]
        self._inside = True
        _exchange(params, shown)
        try:
            yield
        finally:
            _reshard(self.model)  # what a forward pass has gathered are the averages
            _exchange(params, shown)
            self._inside = False

    def state_dict(self) -> dict[str, Any]:
        """The averages under the model's parameter names.

        Raises:
            RuntimeError: they are swapped in; so do `begin`, `update` and `load_state_dict`.
        """
        self._refuse_inside("save the run")
        self.take_in()
        return dict(zip(self._names, self._averages, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy averages in; a state that lacks a name, or has it in another shape, is refused."""
        self._refuse_inside("load it")
        self.take_in()
        for name, average in zip(self._names, self._averages, strict=True):
            if name not in state:
                raise ValueError(f"the saved moving average lacks {name!r}, which the model has")
            if state[name].shape != average.shape:
                shapes = tuple(state[name].shape), tuple(average.shape)
                raise ValueError(
                    f"the saved moving average has {name!r} in shape {shapes[0]}, the model in {shapes[1]}"
                )
        with torch.no_grad():
            for name, average in zip(self._names, self._averages, strict=True):
                average.copy_(state[name])

    def _is_up_to_date(self) -> bool:
        return all(len(there) == count and there.get(key) is held for there, count, key, held in self._places)

    def _refuse_inside(self, what: str) -> None:
        if self._inside:
            raise RuntimeError(f"the moving average is swapped in: {what} after the evaluation, not inside it")


@torch.no_grad()
def _exchange(params: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    # Values, not tensors: optimisers, compiled graphs and shards hold on to the tensors.
    for param, other in zip(params, others, strict=True):
        held = param.clone()
        param.copy_(other)
        other.copy_(held)


def _reshard(model: nn.Module) -> None:
    """Have a model of FSDP2 hold its shards again, and gather them anew at the next forward pass.

    A forward pass without a backward pass may leave the gathered parameters in their place: under `reshard=False` all,
    with torch before 2.8 those of the outermost module in any case.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def _copy(param: Tensor) -> Tensor:
    """At least float32."""
    is_float8 = param.is_floating_point() and param.element_size() == 1  # which torch does not promote
    dtype = torch.float32 if is_float8 else torch.promote_types(param.dtype, torch.float32)
    return param.detach().to(dtype, copy=True)


def _places(model: nn.Module) -> list[tuple[Mapping[str, Any], int, str, object]]:
    """Where each part and parameter of a model lies, how many lie there, and what: cheaper to compare than to find."""
    there = [part for module in model.modules() for part in (module._modules, module._parameters)]
    return [(part, len(part), key, held) for part in there for key, held in (part.items() or [("", None)])]


def _floating(model: nn.Module) -> tuple[list[str], list[Tensor]]:
    named: dict[str, Tensor] = {
        name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()
    }
    return list(named), list(named.values())
