"""Muon for the kernels of convolutions, which `torch.optim.Muon` does not take."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Of the odd polynomial that brings singular values near 1, and how often it is applied: as in the source.
_A, _B, _C, _STEPS = 3.4445, -4.7750, 2.0315, 5


class KernelMuon(Optimizer):
    """Momentum brought near to an orthogonal matrix: a kernel `(out, in, …)` is one of `out` rows.

    Args:
        params: kernels, of two axes or more.
        lr: of an update whose entries are 0.2 in the root of their mean square, as are those of AdamW.
        weight_decay: beside the gradient, as in AdamW.
        momentum: Nesterov's.

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
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

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
                    update = self._update(param, param.grad, group["momentum"])
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        return loss

    def _update(self, param: Tensor, grad: Tensor, momentum: float) -> Tensor:
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        average: Tensor = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        matrix = orthogonal(grad.lerp(average, momentum).flatten(1))
        return matrix.reshape(param.shape) * (0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """Returns nearly the orthogonal matrix closest to one, `(rows, columns)`: singular values from 0.7 to 1.2.

    >>> orthogonal(torch.tensor([[3.0, 0.0], [0.0, 0.1]])).diagonal().round(decimals=1)
    tensor([0.7, 1.1])
    """
    x: Tensor = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_STEPS):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x
