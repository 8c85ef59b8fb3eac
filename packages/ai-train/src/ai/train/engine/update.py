"""One update of one model: the environment over the micro-batches, backward, and the optimiser."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ai.train.ema import Ema
from ai.train.engine import log as record_module
from ai.train.engine.log import Record

Loss = Tensor | tuple[Tensor, float | Tensor]


class Update:
    """Calls the environment, backpropagates, steps the optimiser; each feature costs nothing unless it is on.

    With several micro-batches or ranks the gradient is the sum of loss × weight over all of them, divided once by the
    sum of the weights. The weight is what the environment returned beside the loss; else the batch's rows, since a
    plain loss is a mean over them.

    Args:
        key: the model's name, or `''` for a lone model; logged numbers carry it.
        forward: (batch, step) -> loss or (loss, weight); precision and ranks are inside it.
        model: whose parameters are updated.
        optimizer: a torch optimiser over them.
        schedule: step -> factor of the learning rate each group began with.
        scaler: for float16.
        ema: moved after each update.
        on_nan: `'raise'`, `'skip'` or `'stop'`.
        weighted: whether losses must be weighted (several micro-batches or ranks).
        sum_weights: sum of the weights over ranks, divided by their number; None for one rank.
        reduce_flag: makes a non-finite flag common to all ranks, in place; None where all see the same gradients.
        no_sync: entered around all micro-batches but the last; None for one rank.
    """

    def __init__(
        self,
        key: str,
        forward: Callable[[Any, int], Loss],
        model: nn.Module,
        optimizer: Optimizer,
        *,
        schedule: Callable[[int], float] | None = None,
        scaler: "torch.amp.GradScaler | None" = None,
        ema: Ema | None = None,
        on_nan: str = "raise",
        weighted: bool = False,
        sum_weights: Callable[[float | Tensor], Tensor] | None = None,
        reduce_flag: Callable[[Tensor], None] | None = None,
        no_sync: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._suffix = f"_{key}" if key else ""
        self.forward, self.model, self.optimizer = forward, model, optimizer
        self._schedule, self._scaler, self._ema = schedule, scaler, ema
        self._on_nan, self._weighted = on_nan, weighted
        self._sum_weights, self._reduce_flag, self._no_sync = sum_weights, reduce_flag, no_sync
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        device = self._params[0].device
        self._loss_sum = torch.zeros((), device=device)  # one NaN or infinity makes the sum non-finite for good
        self._losses = 0
        self._skipped = torch.zeros((), device=device)

    def __call__(self, batches: Sequence[Any], step: int, record: Record | None = None) -> None:
        """Make one update from these micro-batches; with a record, also log."""
        if self._schedule is not None:
            self._set_learning_rate(step)
        if record is not None:
            record_module._current = record
        total_weight: float | Tensor = 0.0
        loss_of_step: Tensor | None = None
        for index, batch in enumerate(batches):
            if self._no_sync is not None and index + 1 < len(batches):
                with self._no_sync():
                    loss, weight = self._backward(batch, step)
            else:
                loss, weight = self._backward(batch, step)
            if record is not None:
                record.weigh(weight)
            if self._weighted:
                total_weight = total_weight + weight
            loss_of_step = loss if loss_of_step is None else loss_of_step + loss
        assert loss_of_step is not None
        record_module._current = None
        if self._weighted:
            # Divided as the gradients are, the mean of the ranks' losses is that of all rows together.
            loss_of_step = loss_of_step / self._divide(total_weight)
        self._losses += 1
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        if record is not None:
            record.add(f"grad_norm{self._suffix}", self.gradient_norm())
        if self._on_nan == "skip":
            self._step_if_finite(loss_of_step)
        else:
            self._loss_sum += loss_of_step
            if self._scaler is not None:
                self._scaler.step(self.optimizer)
                self._scaler.update()
            else:
                self.optimizer.step()
        self.optimizer.zero_grad()
        if self._ema is not None:
            self._ema.update(step + 1)
        if record is not None:
            record.add(f"lr{self._suffix}", self.optimizer.param_groups[0]["lr"])
            record.weigh()

    def _backward(self, batch: Any, step: int) -> tuple[Tensor, float | Tensor]:
        loss = self.forward(batch, step)
        weight: float | Tensor = 1.0
        if type(loss) is tuple:
            loss, weight = loss
        elif self._weighted:
            weight = rows(batch)
        if not isinstance(loss, Tensor):
            raise TypeError(f"the environment must return a loss tensor or (loss, weight), not {type(loss).__name__}")
        if self._weighted:
            loss = loss * weight
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), weight

    def _divide(self, total: float | Tensor) -> float | Tensor:
        """Divide the gradients by the weights of all micro-batches and ranks; by what they were divided."""
        if self._sum_weights is not None:
            total = self._sum_weights(total)
        # Nothing weighed anything: the gradients are zero already and stay so.
        divisor = total.clamp_min(1e-30) if isinstance(total, Tensor) else total or 1.0
        grads = self.gradients()
        if isinstance(divisor, Tensor):
            torch._foreach_mul_(grads, (1 / divisor).to(grads[0].dtype))
        else:
            torch._foreach_div_(grads, divisor)
        return divisor

    def gradients(self) -> list[Tensor]:
        """The gradients that are there, of a shard its own part."""
        return [local(p.grad) for p in self._params if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """The 2-norm of all gradients together, over all shards."""
        grads = [p.grad for p in self._params if p.grad is not None]
        if not grads:
            return torch.zeros(())
        norm = torch.nn.utils.get_total_norm(grads)
        full: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return full

    def _step_if_finite(self, loss: Tensor) -> None:
        bad = torch.zeros((), device=self._loss_sum.device)
        torch._amp_foreach_non_finite_check_and_unscale_(self.gradients(), bad, torch.ones_like(bad))
        bad = torch.maximum(bad, (~torch.isfinite(loss)).float())
        if self._reduce_flag is not None:
            self._reduce_flag(bad)
        self._skipped += bad
        self._loss_sum += torch.where(bad > 0, 0.0, loss)
        if self._scaler is not None:
            if bad.item() == 0:
                self._scaler.step(self.optimizer)
            self._scaler.update()
        elif _skips_on_device(self.optimizer):
            self.optimizer.grad_scale, self.optimizer.found_inf = None, bad  # type: ignore[attr-defined]
            self.optimizer.step()
            del self.optimizer.grad_scale, self.optimizer.found_inf  # type: ignore[attr-defined]
        elif bad.item() == 0:  # waits for the device: the optimiser itself cannot skip
            self.optimizer.step()

    def _set_learning_rate(self, step: int) -> None:
        assert self._schedule is not None
        factor = self._schedule(step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["initial_lr"] * factor)
            else:
                group["lr"] = group["initial_lr"] * factor

    # -- what is read at log steps

    def read_loss(self) -> tuple[float, int]:
        """The sum of the losses since the last reading and their number; waits for the device."""
        total, count = float(self._loss_sum), self._losses
        self._loss_sum.zero_()
        self._losses = 0
        return total, count

    def read_skipped(self) -> float:
        """How many updates were skipped so far because something was not finite."""
        return float(self._skipped)

    def find_non_finite(self) -> str | None:
        """What is not finite: a loss since the last reading, or a parameter; None if all is well."""
        of = f" of {self._suffix[1:]!r}" if self._suffix else ""
        if not bool(torch.isfinite(self._loss_sum)):
            return f"the loss{of}"
        for name, param in self.model.named_parameters():
            if not bool(torch.isfinite(local(param.detach())).all()):
                return f"parameter {name!r}{of}"
        return None

    def state_dict(self) -> dict[str, Any]:
        """The running sums, and the scaler's state."""
        return {
            "loss_sum": self._loss_sum,
            "losses": self._losses,
            "skipped": self._skipped,
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the running sums and the scaler's state back."""
        self._loss_sum.copy_(state["loss_sum"])
        self._skipped.copy_(state["skipped"])
        self._losses = state["losses"]
        if self._scaler is not None and state["scaler"] is not None:
            self._scaler.load_state_dict(state["scaler"])


def rows(batch: Any) -> float:
    """How many rows a batch has: the leading axis of the first tensor or array in it; 1 if there is none.

    >>> rows({'x': torch.zeros(5, 2), 'y': torch.zeros(5)})
    5.0
    """
    if hasattr(batch, "shape"):
        return float(batch.shape[0]) if len(batch.shape) else 1.0
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        for item in batch:
            if hasattr(item, "shape") and len(item.shape):
                return float(item.shape[0])
    return 1.0


def local(tensor: Tensor) -> Tensor:
    """A sharded tensor's own part; any other tensor itself."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _skips_on_device(optimizer: Optimizer) -> bool:
    # Only Adam's fused kernel leaves everything as it was; fused SGD would keep an uninitialised momentum.
    return (
        isinstance(optimizer, torch.optim.Adam)
        and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        and optimizer.param_groups[0]["params"][0].is_cuda
    )
