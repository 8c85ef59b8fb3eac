"""Muon for the kernels of convolutions, which `torch.optim.Muon` does not take."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Coefficients = tuple[float, float, float]
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # as in the source


class KernelMuon(Optimizer):
    """Momentum brought near to an orthogonal matrix: a kernel `(out, in, …)` is one of `out` rows.

    Args:
        params: kernels, of two axes or more.
        lr: of an update whose entries are 0.2 in the root of their mean square, as are those of AdamW.
        weight_decay: beside the gradient, as in AdamW.
        momentum: of the average of gradients.
        nesterov: Whether the gradient itself is averaged into it once more.
        ns_coefficients: of the odd polynomial that brings singular values near 1.
        eps: The least norm that a momentum is divided by.
        ns_steps: How often the polynomial is applied.
        transposed: Whether the kernels are `(in, out, …)`, as those of transposed convolutions are; one may differ from
            another by group.

    Raises:
        ValueError: a parameter is complex or has fewer than two axes, or a number is negative.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks; the scale: Liu et al. 2025,
    Muon is scalable for LLM training, section 2.2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = _COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        transposed: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("momentum", momentum)):
            if not value >= 0:
                raise ValueError(f"{name} ({value}) must not be negative")
        how = {"nesterov": nesterov, "ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps}
        usual = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**usual, **how, "transposed": transposed})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds kernels, which may have options of their own."""
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if param.ndim < 2 or param.is_complex():
                self.param_groups.pop()
                shape = tuple(param.shape)
                raise ValueError(f"kernels must be real and of two axes or more, not {param.dtype} of shape {shape}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    update = self._update(param, param.grad, group)
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        return loss

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        state, momentum = self.state[param], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        average: Tensor = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = _whole(grad.lerp(average, momentum) if group["nesterov"] else average)
        if group["transposed"]:
            update = update.transpose(0, 1)
        matrix = orthogonal(update.flatten(1), group["ns_coefficients"], eps=group["eps"], steps=group["ns_steps"])
        update = matrix.reshape(update.shape) * (0.2 * math.sqrt(max(matrix.shape)))
        return _shared_as(param, update.transpose(0, 1) if group["transposed"] else update)


def _whole(tensor: Any) -> Tensor:
    """Returns all of what ranks share, as under FSDP: a matrix is orthogonal as a whole."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _shared_as(param: Any, whole: Tensor) -> Tensor:
    if not hasattr(param, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh = param.device_mesh
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=param.placements)


def orthogonal(
    matrix: Tensor, coefficients: Coefficients = _COEFFICIENTS, *, eps: float = 1e-7, steps: int = 5
) -> Tensor:
    """Returns nearly the orthogonal matrix closest to one, `(rows, columns)`: singular values from 0.7 to 1.2.

    >>> [round(value, 1) for value in orthogonal(torch.tensor([[3.0, 0.0], [0.0, 0.1]])).diagonal().tolist()]
    [0.7, 1.1]
    """
    a, b, c = coefficients
    x: Tensor = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    if x.dtype is torch.float16:
        x = x.float()  # whose norm would end at 65504
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x
