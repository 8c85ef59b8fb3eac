"""States that `torch.load(weights_only=True)` takes: numpy arrays and scalars travel as tensors.

Example:
    >>> import numpy as np
    >>> from_portable(to_portable({"a": np.arange(3), "b": (np.float32(2), "text")}))
    {'a': array([0, 1, 2]), 'b': (np.float32(2.0), 'text')}
"""

from typing import Any

import numpy as np
import torch

_MARK = "ai.data.array"


def to_portable(state: Any) -> Any:
    """Returns a copy of nested dicts, lists and tuples with arrays as marked tensors; other leaves are kept."""
    if isinstance(state, dict):
        return {key: to_portable(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(to_portable(value) for value in state)
    if isinstance(state, np.ndarray | np.generic) and state.dtype.kind in "biufc":
        kind = "array" if isinstance(state, np.ndarray) else "scalar"
        return {_MARK: kind, "value": torch.from_numpy(np.array(state, state.dtype.newbyteorder("=")))}
    return state.clone() if isinstance(state, torch.Tensor) else state


def from_portable(state: Any) -> Any:
    """Returns a copy of what `to_portable` was given."""
    if isinstance(state, dict):
        if _MARK in state:
            array = state["value"].cpu().numpy().copy()
            return array if state[_MARK] == "array" else array[()]
        return {key: from_portable(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(from_portable(value) for value in state)
    return state.clone() if isinstance(state, torch.Tensor) else state
