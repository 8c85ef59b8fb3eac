"""`measure(key, metric, …)`: metrics that no mean over batches gives, such as AUROC and F1, over a whole validation."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from ai.model.arguments import check_instance
from ai.train.engine.ranks import Ranks


class Metric(Protocol):
    """What is asked of a metric; those of torchmetrics have it."""

    def reset(self) -> object:
        """Begin anew."""

    def update(self, *args: Any) -> object:
        """Take a batch's outputs and targets."""

    def compute(self) -> Any:
        """The value over all that was taken: a number, a tensor, or a dict of them."""


class Measures:
    """The metrics of one validation: each a copy of the user's, begun anew, so that his own stays as it is."""

    def __init__(self) -> None:
        self.counts = True  # not where a rank repeats a batch so that all ranks make the same number of passes
        self._metrics: dict[str, Any] = {}
        self._kinds: dict[str, type] = {}

    def update(self, key: str, metric: Metric, args: tuple[Any, ...]) -> None:
        """Take what one batch gave."""
        if key not in self._metrics:
            check_metric(f"the metric {key!r}", metric)
            self._kinds[key] = type(metric)
            own: Any = copy.deepcopy(metric)
            own.reset()
            _keep_to_itself(own)
            device = next((arg.device for arg in args if isinstance(arg, torch.Tensor)), None)
            self._metrics[key] = own.to(device) if device is not None and hasattr(own, "to") else own
        if type(metric) is not self._kinds[key]:
            raise ValueError(
                f"two metrics are measured as {key!r}, {self._kinds[key].__name__} and {type(metric).__name__}: give "
                "each a key of its own"
            )
        if self.counts:
            self._metrics[key].update(*args)

    def compute(self, ranks: Ranks) -> dict[str, float]:
        """Each value over the batches of all ranks; a vector's or matrix's numbers by their places, `key_0_1`."""
        mine = {
            key: own.cpu() if ranks.world > 1 and hasattr(own, "cpu") else own for key, own in self._metrics.items()
        }
        found: dict[str, float] = {}
        whole: dict[str, Any] = {}
        for part in ranks.gather(mine):
            for key, own in part.items():
                whole[key] = _merged(key, whole[key], own) if key in whole else own
        for key, own in whole.items():
            found |= dict(_numbers(key, own.compute()))
        return found


def measure(key: str, metric: Metric, *args: Any) -> None:
    """Have `metric` take a batch's outputs and targets, to be logged as `key` over a whole validation.

    While training nothing happens, nor outside a run. Over several ranks the value is that of all their batches. Of
    several models each needs a key of its own: what is measured under one key goes into one value.

    Args:
        key: the name under which the hook receives it, after `val_`; of a vector or matrix each number by its place.
        metric: one of torchmetrics, or a collection of them, or whatever has `reset`, `update` and `compute` (and
            `merge_state` for ranks). It stays as it is: each validation updates a copy.
        args: what its `update` takes.

    >>> class Count:
    ...     def reset(self): self.n = 0
    ...     def update(self, batch): self.n += len(batch)
    ...     def compute(self): return self.n
    >>> from ai.train import Trainer
    >>> def env(model, batch, step):
    ...     measure('rows', Count(), batch)
    ...     return model(batch).mean()
    >>> trainer = Trainer(env, [])
    >>> trainer.validate(torch.nn.Identity(), [torch.ones(2), torch.ones(3)])
    1.0
    """
    measures = _current.get()
    if measures is not None:
        measures.update(key, metric, args)


@contextmanager
def measuring(measures: Measures) -> Iterator[None]:
    """Have what is measured inside go there."""
    token = _current.set(measures)
    try:
        yield
    finally:
        _current.reset(token)


# By context, as what is logged: two validations in two threads must not mix.
_current: ContextVar[Measures | None] = ContextVar("ai.train.measure", default=None)


def check_metric(what: str, metric: Any) -> None:
    """Raise for what cannot be one, such as its class.

    >>> check_metric('metrics["f1"]', 3)
    Traceback (most recent call last):
    TypeError: metrics["f1"] must have reset, update and compute, and a int lacks reset
    """
    check_instance(**{what: metric})
    for name in ("reset", "update", "compute"):
        if not callable(getattr(metric, name, None)):
            raise TypeError(f"{what} must have reset, update and compute, and a {type(metric).__name__} lacks {name}")


def _merged(key: str, one: Any, other: Any) -> Any:
    """The one, which has taken what the other has: of a collection or a wrapper its parts."""
    parts = _parts(one)
    for mine, theirs in zip(parts, _parts(other), strict=True):
        _merged(key, mine, theirs)
    if parts:
        return one
    if not hasattr(one, "merge_state"):
        raise TypeError(
            f"the metric {key!r} ({type(one).__name__}) needs merge_state(other) to be measured over several ranks"
        )
    try:
        one.merge_state(other)
    except RuntimeError as error:  # torchmetrics: of some the states do not add up
        raise TypeError(
            f"the metric {key!r} ({type(one).__name__}) cannot be measured over several ranks: its merge_state(other) "
            "refuses"
        ) from error
    return one


def _parts(metric: Any) -> list[Any]:
    """The metrics that one of torchmetrics is made of, where it has no state of its own."""
    if isinstance(metric, torch.nn.ModuleDict):
        return list(metric.values())  # a collection brings the states of its members up to date here
    if not isinstance(metric, torch.nn.Module) or not hasattr(metric, "metric_state"):
        return []
    states: Any = metric.metric_state
    has_own = any(name in vars(metric) for name in states)  # some wrappers show those of their metric
    return [] if has_own else list(metric.children())


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _numbers(f"{key}_{name}", part)
    elif isinstance(value, (list, tuple)) or (isinstance(value, torch.Tensor) and value.ndim):
        for index, part in enumerate(value):
            yield from _numbers(f"{key}_{index}", part)
    else:
        yield key, float(value)


def _keep_to_itself(metric: Any) -> None:
    """Have a metric of torchmetrics not gather by itself: it would count all twice, and wait for ranks without batches.

    Its `sync_on_compute` is looked at when it is made, and never again.
    """
    for part in metric.modules() if isinstance(metric, torch.nn.Module) else ():
        if hasattr(part, "distributed_available_fn"):
            part.distributed_available_fn = _no  # type: ignore[assignment]


def _no() -> bool:
    return False
