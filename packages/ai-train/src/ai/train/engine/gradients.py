"""The gradients that an optimiser is about to use: read, divided and measured."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ai.train.state.shards import local

_ZERO_GRAD = Optimizer.zero_grad  # torch's own, whatever others put in its place later


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters of all its groups, as they are now."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """The gradients that are there, of a shard its own part."""
    return [local(p.grad) for p in parameters_of(optimizer) if p.grad is not None]


def forget_gradients(optimizer: Optimizer) -> None:
    """As `optimizer.zero_grad()`, of torch's own without its mark for a profiler, which takes longer than the rest.

    >>> weight = torch.zeros(2, requires_grad=True)
    >>> weight.grad = torch.ones(2)
    >>> forget_gradients(torch.optim.SGD([weight]))
    >>> weight.grad is None
    True
    """
    if getattr(optimizer.zero_grad, "__func__", None) is not _ZERO_GRAD:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = None


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """The 2-norm of all gradients together, over all shards.

    >>> weight = torch.zeros(2, requires_grad=True)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> gradient_norm(torch.optim.SGD([weight]))
    tensor(5.)
    """
    grads = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
    if not grads:
        return torch.zeros((), device="cpu")
    norm = torch.nn.utils.get_total_norm(grads)
    full: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return full


def divide(grads: list[Tensor], divisor: float | Tensor) -> None:
    """Divide them in place; by a tensor without a wait for its device."""
    if isinstance(divisor, Tensor):
        for alike in by_kind(grads):
            torch._foreach_mul_(alike, _beside(alike[0], 1 / divisor))
    elif grads:
        torch._foreach_div_(grads, divisor)


def by_kind(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Those of one device and type together, as one kernel takes them."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())


def _beside(tensor: Tensor, number: Tensor) -> Tensor:
    """The number, of the tensor's type and where it lies; from the CPU it is passed by value, without a wait."""
    if number.device.type == "cpu":
        number = tensor.new_zeros((), dtype=number.dtype) + number
    return number.to(tensor)
