"""Parameter groups by rule: which of a model's parameters decay, and how fast each learns."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ai.model.arguments import check_real
from ai.train.optimizers.depth import by_block

Groups = Callable[[nn.Module], list[dict[str, Any]]]


def no_decay(skip: Callable[[str, nn.Parameter], bool] | None = None) -> Groups:
    """Groups that exempt norms and biases from weight decay: every parameter of at most one axis.

    Args:
        skip: (name, parameter) -> whether to exempt it as well, for embeddings and the like.

    >>> [len(group['params']) for group in no_decay()(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))]
    [1, 3]
    """

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        decayed: list[nn.Parameter] = []
        exempt: list[nn.Parameter] = []
        for name, param in model.named_parameters():
            (exempt if param.ndim <= 1 or (skip is not None and skip(name, param)) else decayed).append(param)
        return [group for group in ({"params": decayed}, {"params": exempt, "weight_decay": 0.0}) if group["params"]]

    return groups


def layerwise_decay(factor: float, depth: Callable[[str], int] | None = None) -> Groups:
    """Groups whose learning rate falls by `factor` per layer from the last layer back; norms and biases undecayed.

    Args:
        factor: 0 < factor <= 1.
        depth: parameter name -> its layer, from 0; by default each block of a stack is one layer (of several modules of
            one class in a `Sequential` or `ModuleList`), what comes before the first block is layer 0, and what comes
            after the last is one layer, too. Without such blocks each module that owns parameters is a layer.

    Source: Clark et al. 2020, ELECTRA, section 3 ("layer-wise learning-rate decay").

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> [group['lr_factor'] for group in layerwise_decay(0.5)(model)]
    [0.5, 1.0]
    """
    check_real(factor=factor)
    if not 0 < factor <= 1:
        raise ValueError(f"the factor of layerwise_decay ({factor}) must lie in (0, 1]")

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        named = list(model.named_parameters())
        layers = by_block(model) if depth is None else {name: depth(name) for name, _ in named}
        last = max(layers.values(), default=0)
        made: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, param in named:
            layer, exempt = layers[name], param.ndim <= 1
            group = made.setdefault((layer, exempt), {"params": [], "lr_factor": factor ** (last - layer)})
            if exempt:
                group["weight_decay"] = 0.0
            group["params"].append(param)
        return list(made.values())

    return groups
