"""Networks made ready for inference."""

import copy
import itertools
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ai.model.conv import _Conv
from ai.model.norm import _Batch

T = TypeVar("T", bound=nn.Module)
_PLAIN = (_Batch, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold(model: T) -> T:
    """Returns a copy for inference, in evaluation mode: batch norms become part of the layer before them.

    What it computes is the same up to rounding, with one pass over memory less for each norm. Folded are norms of
    `conv(norm="batch")`, and those that follow a convolution of torch's own in an `nn.Sequential`; others stay.

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
    for module in folded.modules():
        if type(module) is _Conv and _fixed(module.norm):
            _fold_block(module)
        elif type(module).forward is nn.Sequential.forward:
            _fold_sequence(module)
    return folded


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


def _fold_sequence(sequence: nn.Module) -> None:
    names = list(sequence._modules)
    for name, following in itertools.pairwise(names):
        layer, norm = sequence.get_submodule(name), sequence.get_submodule(following)
        torchs_own = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and not _hooked(layer)
        if torchs_own and isinstance(norm, _BatchNorm) and _fixed(norm):
            setattr(sequence, name, fuse_conv_bn_eval(layer, norm))  # type: ignore[type-var]
            setattr(sequence, following, nn.Identity())
