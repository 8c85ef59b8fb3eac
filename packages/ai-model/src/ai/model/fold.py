"""Networks made ready for inference."""

import copy
import inspect
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ai.model.conv import _Conv
from ai.model.norm import _Batch
from ai.model.weights.names import skeleton

T = TypeVar("T", bound=nn.Module)
_PLAIN = (_Batch, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold(model: T) -> T:
    """Returns a copy for inference, in evaluation mode: batch norms become part of the layer before them.

    What it computes is the same up to rounding, with one pass over memory less for each norm. Folded are norms of
    `conv(norm="batch")`, those that follow a convolution of torch's own in an `nn.Sequential`, and those that the
    `forward` of any module, traced, gives the result of such a convolution and nothing else; others stay, and so do
    those of layers that are called or read in other places too.

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
    if any(isinstance(module, _BatchNorm) for module in folded.modules()):
        uses = _Uses(folded)
        for module in list(folded.modules()):
            if type(module) is _Conv and _fixed(module.norm) and id(module) not in uses.read:
                _fold_block(module)
        for parent, layer, norm in uses.pairs():
            _fold_pair(parent, layer, norm)
    return folded


class _Uses:
    """Who calls which module, and whose weights are read from outside, as far as `forward`s can be traced.

    A `forward` is followed by itself, with its own children and theirs as single steps, on a copy without memory, so
    that what it notes on its way is noted nowhere.
    """

    def __init__(self, root: nn.Module):
        self.read: set[int] = set()
        self._calls: Counter[int] = Counter()
        self._followed: dict[nn.Module, set[tuple[str, str]]] = {}
        self._places = Counter(id(child) for module in root.modules() for child in module._modules.values())
        passed_by: set[nn.Module] = set()
        chains = []
        bare = skeleton(root)
        for name, module in root.named_modules():
            if type(module).forward is nn.Sequential.forward:
                chains.append(module)
            elif bare is not None and not type(module).__module__.startswith("torch.nn.") and type(module) is not _Conv:
                self._trace(module, bare.get_submodule(name), passed_by)
        for chain in chains:
            if chain not in passed_by or self._calls[id(chain)]:  # else another calls its parts, one by one
                self._followed[chain] = set(itertools.pairwise(chain._modules))
                self._calls.update(id(child) for child in chain)

    def pairs(self) -> list[tuple[nn.Module, str, str]]:
        """Returns which norm, of what module, is the only one to be given what a layer gives, whoever calls."""
        return [
            (module, layer, norm)
            for module, followed in self._followed.items()
            for layer, norm in sorted(followed)
            if all(self._is_private(module.get_submodule(end)) for end in (layer, norm))
        ]

    def _is_private(self, module: nn.Module) -> bool:
        key = id(module)
        return self._calls[key] == self._places[key] == 1 and key not in self.read

    def _trace(self, module: nn.Module, bare: nn.Module, passed_by: set[nn.Module]) -> None:
        """Follows a `forward` with arguments that have a default both given and left out; a pair must be in both."""
        try:
            defaults = {
                name: parameter.default
                for name, parameter in inspect.signature(module.forward).parameters.items()
                if parameter.default is not parameter.empty
            }
            graphs = [_Children().trace(bare, given) for given in ({}, defaults)]
        except Exception:  # what cannot be traced cannot be proved: its norms stay
            return
        calls: Counter[int] = Counter()
        followed = []
        for graph in graphs:
            called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
            calls |= Counter(id(module.get_submodule(name)) for name in called)
            for node in graph.nodes:
                owner = str(node.target).rpartition(".")[0]
                if node.op == "get_attr" and owner:
                    self.read.add(id(module.get_submodule(owner)))
                while node.op == "call_module" and owner:
                    passed_by.add(module.get_submodule(owner))
                    owner = owner.rpartition(".")[0]
            followed.append(set(_following(graph)))
        self._calls.update(calls)
        self._followed[module] = followed[0] & followed[1]


def _following(graph: Graph) -> Iterator[tuple[str, str]]:
    """Yields the names of two modules of which the second is given what the first gives, and nobody else is."""
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if isinstance(before, Node) and before.op == "call_module" and len(before.users) == 1:
            yield str(before.target), str(node.target)


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


def _fold_pair(parent: nn.Module, name: str, following: str) -> None:
    layer, norm = parent.get_submodule(name), parent.get_submodule(following)
    torchs_own = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and not _hooked(layer)
    if torchs_own and isinstance(norm, _BatchNorm) and _fixed(norm):
        parent.set_submodule(name, fuse_conv_bn_eval(layer, norm))  # type: ignore[type-var]
        parent.set_submodule(following, nn.Identity())
