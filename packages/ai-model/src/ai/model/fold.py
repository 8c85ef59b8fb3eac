"""Networks made ready for inference."""

import copy
import inspect
import itertools
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn
from torch.fx import Node, Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ai.model.conv import _Conv
from ai.model.norm import _Batch

T = TypeVar("T", bound=nn.Module)
_PLAIN = (_Batch, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold(model: T) -> T:
    """Returns a copy for inference, in evaluation mode: batch norms become part of the layer before them.

    What it computes is the same up to rounding, with one pass over memory less for each norm. Folded are norms of
    `conv(norm="batch")`, those that follow a convolution of torch's own in an `nn.Sequential`, and those that the
    `forward` of any module, traced, gives the result of such a convolution and nothing else; others stay.

    Args:
        model: Is left as it is.

    Raises:
        RuntimeError: it cannot be copied, such as one under the old `torch.nn.utils.weight_norm`.

    Example:
        >>> from ai.model import conv, seq
        >>> net = seq(conv(2, 8, norm="batch", actv="relu"), conv(8, 8, norm="batch")).eval()
        >>> x = torch.randn(4, 2, 6, 7)
        >>> torch.allclose(fold(net)(x), net(x), atol=1e-6)
        True
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    places = Counter(id(module) for _, module in folded.named_modules(remove_duplicate=False))
    for module in list(folded.modules()):
        if type(module) is _Conv and _fixed(module.norm):
            _fold_block(module)
        elif type(module).forward is nn.Sequential.forward:
            _fold_pairs(module, itertools.pairwise(module._modules))
        elif any(isinstance(child, _BatchNorm) for child in module.children()):
            _fold_pairs(module, _traced_pairs(module, places))
    return folded


def _traced_pairs(module: nn.Module, places: Counter[int]) -> list[tuple[str, str]]:
    """Returns which convolution and norm among a module's children follow each other whatever it is called with.

    Arguments with a default are traced both as given and as left out, and a pair counts that is there either way.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is not parameter.empty
    }
    found = []
    for given in ({}, defaults):
        try:
            graph = _Children().trace(module, given)
        except Exception:  # what cannot be traced cannot be proved: the norm stays
            return []
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        pairs = set()
        for node in graph.nodes:
            before = node.args[0] if node.op == "call_module" and node.args else None
            if not isinstance(before, Node) or before.op != "call_module" or len(before.users) != 1:
                continue
            ends = (str(before.target), str(node.target))
            if all(calls[name] == 1 and places[id(module.get_submodule(name))] == 1 for name in ends):
                pairs.add(ends)
        found.append(pairs)
    return sorted(found[0] & found[1])


class _Children(Tracer):
    """Follows one module's own code, and takes each of its children for one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _fixed(norm: nn.Module | None) -> bool:
    """Returns whether this is a plain batch norm that divides by what it learnt, not by what the batch holds."""
    if not isinstance(norm, _BatchNorm) or type(norm) not in _PLAIN:
        return False
    return norm.running_mean is not None and not _hooked(norm)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold_block(block: _Conv) -> None:
    norm = block.norm
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean if block.bias is None else block.bias * block.lr_mult - norm.running_mean
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias
    weight = block.weight * (scale * block.weight_scale)[:, None, None, None]
    block.weight = nn.Parameter(weight.to(block.weight.dtype), requires_grad=False)
    block.bias = nn.Parameter(bias.to(block.weight.dtype), requires_grad=False)
    block.weight_scale = block.lr_mult = 1.0
    block.norm = None


def _fold_pairs(module: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    for name, following in pairs:
        layer, norm = module.get_submodule(name), module.get_submodule(following)
        torchs_own = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and not _hooked(layer)
        if torchs_own and isinstance(norm, _BatchNorm) and _fixed(norm):
            setattr(module, name, fuse_conv_bn_eval(layer, norm))  # type: ignore[type-var]
            setattr(module, following, nn.Identity())
