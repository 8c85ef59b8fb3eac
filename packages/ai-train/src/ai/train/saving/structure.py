"""A model's structure by value: how a snapshot builds a model again whose making no file can spell out.

`m.Model(m.seq(m.flatten(), m.fc(784, 10)))` is made of modules, and a class of a script or a notebook has no import
path. Such a model travels as a pickle of its modules without the weights, which lie in the snapshot's tensors.
"""

import copy
import warnings
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ai.data.workers.pickle_by_value import ship
from ai.train.engine.run import Run
from ai.train.saving.files import how_to_build

_made: WeakKeyDictionary[Run, tuple[list[Any], dict[str, bytes]]] = WeakKeyDictionary()


def structures_of(run: Run) -> dict[str, bytes]:
    """`pack_structures` of a run's models, once for as long as their modules stay the same."""
    modules = [(key, name, id(module)) for key, model in run.models.items() for name, module in model.named_modules()]
    if run not in _made or _made[run][0] != modules:
        _made[run] = modules, pack_structures(run.models)
    return _made[run][1]


def pack_structures(models: Mapping[str, nn.Module]) -> dict[str, bytes]:
    """The pickled structure of each model that import path and JSON arguments do not build.

    Warns of one that cannot be pickled; it is left out. Of the models themselves nothing is kept or changed.
    """
    packed: dict[str, bytes] = {}
    for key, model in models.items():
        build = how_to_build(model)
        if build["class"] is not None and build["arguments"] is not None:
            continue
        try:
            packed[key] = ship(_without_weights(model))
        except Exception as error:
            reason = str(error).rpartition("this function or source: ")[2].splitlines() or [type(error).__name__]
            warnings.warn(
                f"snapshots will not tell how to build the model {key!r} ({type(model).__name__}), since it cannot be "
                f"pickled ({reason[0]}): Trial.load_model and ai-infer serve will not load it from the folder alone",
                RuntimeWarning,
                stacklevel=2,
            )
    return packed


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy on the CPU in which one number stands for each tensor of the state dict, tied ones for the same."""
    stored = {id(tensor) for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            continue
        plain = tensor.detach()
        held = plain.new_zeros((), device="cpu").expand(plain.shape) if id(tensor) in stored else plain.cpu().clone()
        memo[id(tensor)] = nn.Parameter(held, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else held
    bare = copy.deepcopy(model, memo)
    for module in bare.modules():
        for handle, hook in list(module._forward_hooks.items()):
            if (getattr(hook, "__module__", None) or "").startswith("ai.train."):  # of the run under way
                del module._forward_hooks[handle]
    return bare
