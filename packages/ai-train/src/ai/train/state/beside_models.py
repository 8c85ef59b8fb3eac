"""The state of data that is made by a model, put back beside the models that are trained."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn

from ai.train.state.stateful import Stateful


def load_beside(models: Iterable[nn.Module], stateful: Stateful, state: Any) -> None:
    """Puts a state back and leaves the models as they are.

    A generator gives its source the parameters that it acted with last, which are older than those that are trained;
    and its source may act with the very model.
    """
    kept = []
    if callable(getattr(stateful, "update_params", None)):
        tensors = chain.from_iterable(chain(model.parameters(), model.buffers()) for model in models)
        kept = [(tensor, tensor._version, tensor.detach().clone()) for tensor in tensors]
    stateful.load_state_dict(state)
    with torch.no_grad():
        for tensor, version, was in kept:
            if tensor._version != version:
                tensor.copy_(was)
