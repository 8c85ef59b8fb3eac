"""What a trainer keeps of a run for the next one: moving averages, and the scales of float16."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ai.train.ema import Ema
from ai.train.engine.update import Update, local


@dataclass(frozen=True)
class _Kept:
    averages: dict[str, Tensor]
    scaler: dict[str, Any] | None
    versions: list[int]


class Kept:
    """By model, the moving average and the scaler's state at the end of its last run.

    They belong to the weights that the run left: once somebody else has written to these (loaded a state, trained on
    elsewhere), they are no longer given out.

    Args:
        decay: of the averages; None where the trainer has none.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> kept = Kept(0.9)
    >>> kept.emas({'model': model})
    {}
    """

    def __init__(self, decay: float | None) -> None:
        self._decay = decay
        # The values hold copies, nothing of the models, so that these can be freed.
        self._of: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()

    def keep(self, models: Mapping[str, nn.Module], emas: Mapping[str, Ema], updates: Mapping[str, Update]) -> None:
        """Take what a run leaves."""
        for key, update in updates.items():
            scaler = update.state_dict()["scaler"]
            if key in emas or scaler is not None:
                averages = emas[key].state_dict() if key in emas else {}
                self._of[models[key]] = _Kept(averages, scaler, _versions(models[key]))

    def emas(self, models: Mapping[str, nn.Module]) -> dict[str, Ema]:
        """The kept averages of these models, by name; a model without one is left out."""
        found = {}
        for key, model in models.items():
            kept = self._get(model)
            if self._decay is not None and kept is not None and kept.averages:
                found[key] = Ema(model, self._decay)
                found[key].load_state_dict(kept.averages)
        return found

    def scaler(self, model: nn.Module) -> dict[str, Any] | None:
        """The state of this model's scaler, if there is one."""
        kept = self._get(model)
        return None if kept is None else kept.scaler

    @contextmanager
    def own_writing(self, models: Mapping[str, nn.Module]) -> Iterator[None]:
        """What is written to the models inside, and put back, does not count as written by somebody else."""
        held = {model: kept for model in models.values() if (kept := self._get(model)) is not None}
        try:
            yield
        finally:
            for model, kept in held.items():
                self._of[model] = replace(kept, versions=_versions(model))

    @contextmanager
    def averaged(self, models: Mapping[str, nn.Module]) -> Iterator[None]:
        """The models carry their averages inside the block.

        Raises:
            ValueError: there is no average of any of them.
        """
        emas = self.emas(models)
        if not emas:
            raise ValueError(
                "there is no moving average of these weights: give the trainer ema=0.999, say, and train with it; once "
                "something else has changed the weights there is none either"
            )
        with self.own_writing(models), ExitStack() as stack:
            for ema in emas.values():
                stack.enter_context(ema.swapped_in())
            yield

    def _get(self, model: nn.Module) -> _Kept | None:
        kept = self._of.get(model)
        return kept if kept is not None and kept.versions == _versions(model) else None


def _versions(model: nn.Module) -> list[int]:
    # torch counts the writes to each tensor.
    with torch.no_grad():
        return [local(param.detach())._version for param in model.parameters()]
