"""The shapes of a model's inputs and outputs, noted at its first call for the manifest of its snapshots."""

from typing import Any

import torch
from torch import nn


class SpecNote:
    """Notes a model's input and output shapes once.

    It holds nothing but the notes, so that a model can be copied and pickled meanwhile.

    >>> specs = {}
    >>> note = SpecNote('model', model := nn.Linear(2, 1), specs)
    >>> _ = model(torch.ones(5, 2))
    >>> specs['model']['inputs']
    [{'shape': [None, 2], 'dtype': 'float32'}]
    """

    def __init__(self, key: str, model: nn.Module, specs: dict[str, Any]) -> None:
        self._key, self._specs = key, specs
        self._handle = model.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note, and be gone."""
        self._specs[self._key] = {"inputs": [_spec(x) for x in inputs], "outputs": [_spec(output)]}
        self.remove()

    def remove(self) -> None:
        """A model whose `forward` was never called must not carry the note for good."""
        self._handle.remove()


def _spec(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # The leading axis is the batch, whose size is free.
        return {"shape": [None, *value.shape[1:]] if value.ndim else [], "dtype": str(value.dtype).split(".")[-1]}
    if isinstance(value, (list, tuple)):
        return [_spec(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _spec(item) for name, item in value.items()}
    return type(value).__name__
