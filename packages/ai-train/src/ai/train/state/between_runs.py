"""What belongs to a model between two runs: its moving average, its scale of float16, and the rest of a snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ai.train.state.shards import local


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a run, or `snapshot.restore`, leaves for the next run of a model.

    Attributes:
        step: where it goes on.
        averages: the moving average by parameter name; empty where there is none.
        scaler: the state of float16's scaler, or None.
        epoch: passes over the data that were completed.
        rest: of a restored snapshot, what the next run has to put back: random states, data position, hook.
        weights: the fingerprint of the weights that the average belongs to; None where there is none.
        trained: whether the model had an optimiser.
    """

    step: int
    averages: Mapping[str, Tensor] = field(default_factory=dict)
    scaler: Mapping[str, Any] | None = None
    epoch: int = 0
    rest: Mapping[str, Any] | None = None
    weights: list[int] | None = None
    trained: bool = True


# The one thing of this package that is kept by model. It holds copies, nothing of the models, so that these can be
# freed; a copy of a model has none.
_left: WeakKeyDictionary[nn.Module, Continuation] = WeakKeyDictionary()


def leave(model: nn.Module, continuation: Continuation) -> None:
    """Keep this for the model's next run: by `snapshot.restore`, and at the end of every run."""
    _left[model] = continuation


def peek(model: nn.Module) -> Continuation | None:
    """What was left, if it belongs to the weights that the model has now."""
    found = _left.get(model)
    return found if found is not None and _belongs(found, model) else None


def take(model: nn.Module, step: int) -> Continuation | None:
    """What a run of this model that begins at `step` goes on with; None where it begins anew.

    Raises:
        ValueError: training would begin at another step than the one that was restored.
    """
    found = _left.get(model)
    if found is None:
        return None
    if found.rest is None:
        return found if step > 0 and _belongs(found, model) else None
    if found.step != step:
        raise ValueError(
            f"step ({step}) must be the restored step {found.step}: pass step={found.step}; "
            "to start afresh from restored weights, load them with model.load_state_dict"
        )
    del _left[model]
    return found


def trained_in(models: Mapping[str, nn.Module]) -> list[str]:
    """The names of those that were trained; all of them where none was."""
    trained = [key for key, model in models.items() if (left := _left.get(model)) is not None and left.trained]
    return trained or list(models)


def _belongs(continuation: Continuation, model: nn.Module) -> bool:
    return continuation.weights is None or continuation.weights == fingerprint(model)


@torch.no_grad()
def fingerprint(model: nn.Module) -> list[int]:
    """A number for each parameter that changes with any of its bits, whichever way these are written.

    >>> model = nn.Linear(2, 2)
    >>> before = fingerprint(model)
    >>> model.weight.data.neg_()[0, 0].item() == 0
    False
    >>> before == fingerprint(model)
    False
    """
    sums = [_bits(local(param.detach())) for param in model.parameters()]
    return [int(value) for value in torch.stack([value.cpu() for value in sums])] if sums else []


_CHUNK = 1 << 20


def _bits(tensor: Tensor) -> Tensor:
    """The sum, modulo 2^64, of the tensor's bytes or words, each times an odd number of its own."""
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    words = tensor.contiguous().reshape(-1).view(_WORDS.get(tensor.element_size(), torch.uint8))
    for index, part in enumerate(torch.split(words, _CHUNK)):
        place = torch.arange(len(part), device=part.device) + index * _CHUNK
        total += (part.long() * (place * 0x9E3779B97F4A7C1 | 1)).sum()
    return total


_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
