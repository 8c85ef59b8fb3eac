"""One update of one model: the environment over the micro-batches, backward, and the optimiser."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ai.train.ema import Ema
from ai.train.engine.batch_weight import rows
from ai.train.engine.finite import Saved, StaysFinite, copies_of_buffers, not_finite, put_back, skips_on_device
from ai.train.engine.gradients import divide, forget_gradients, gradient_norm, gradients_of, parameters_of
from ai.train.engine.log import HOOKS_GRADIENTS, OPTIMIZER, STEP, TRAINER, Record, record_into, recording
from ai.train.optimizers.factor import factor_at

Loss = Tensor | tuple[Tensor, float | Tensor]


class Update:
    """Calls the environment, backpropagates, steps the optimiser; each feature costs nothing unless it is on.

    With several micro-batches or ranks the gradient is the sum of loss × weight over all of them, divided once by the
    sum of the weights. The weight is what the environment returned beside the loss; else the batch's rows, since a
    plain loss is a mean over them. The optimiser's groups are read at each update, so that groups may come and go.

    Args:
        key: the model's name, or `''` for a lone model; logged numbers carry it.
        forward: (batch, step) -> loss or (loss, weight); precision and ranks are inside it.
        model: whose parameters are updated.
        optimizer: a torch optimiser over them; one whose `step` needs a closure (LBFGS) is given one that calls the
            environment again on the same micro-batches.
        schedule: step -> factor of the learning rate each group began with.
        scaler: for float16.
        ema: moved after each update.
        on_nan: `'raise'`, `'skip'` or `'stop'`.
        weighted: whether losses must be weighted (several micro-batches or ranks).
        environment: where the environment is a module, which must stay finite as the model must.
        peers: the run's other models, whose buffers `'skip'` puts back, too.
        begin: called before the first forward pass of each update.
        sum_weights: sum of the weights over ranks, divided by their number; None for one rank.
        reduce_flag: makes a non-finite flag common to all ranks, in place; None for one rank.
        no_sync: entered around all micro-batches but the last; None for one rank.
        average_outside: averages over the ranks the gradients of parameters that are not the model's (an
            environment's own); None where there are none.
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
        environment: nn.Module | None = None,
        peers: Sequence[nn.Module] = (),
        begin: Callable[[], None] | None = None,
        sum_weights: Callable[[float | Tensor], Tensor] | None = None,
        reduce_flag: Callable[[Tensor], None] | None = None,
        no_sync: Callable[[], AbstractContextManager[None]] | None = None,
        average_outside: Callable[[], None] | None = None,
    ) -> None:
        self._suffix = f"_{key}" if key else ""
        self.names = (f"grad_norm{self._suffix}", f"lr{self._suffix}")
        self.forward, self.model, self.optimizer = forward, model, optimizer
        watched = [model] if environment is None else [model, environment]
        self._stays_finite = StaysFinite(watched)
        self._with_buffers, self._begin = [*watched, *peers], begin
        self.on_gradients: Sequence[Callable[[int], object]] = ()
        self._schedule, self._scaler, self._ema = schedule, scaler, ema
        self._on_nan, self._weighted = on_nan, weighted
        self._sum_weights, self._reduce_flag, self._no_sync = sum_weights, reduce_flag, no_sync
        self._average_outside = average_outside
        self._takes_closure = takes_closure(optimizer)
        self._sizes: list[int] = []
        self._held = set(parameters_of(optimizer))
        forget_gradients(optimizer)  # what a step that an error or a stop has cut short would add to the first
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        device = next(model.parameters()).device
        self._loss_sum = torch.zeros((), device=device)  # one NaN or infinity makes the sum non-finite for good
        self._losses = 0
        self._skipped = torch.zeros((), device=device)

    def __call__(self, batches: Sequence[Any], step: int, record: Record | None = None) -> None:
        """Make one update from these micro-batches; with a record, also log."""
        if record is not None:
            record_into(record)
        if self._sizes != [len(group["params"]) for group in self.optimizer.param_groups]:
            self._take_in()
        if self._schedule is not None:
            self._set_learning_rate(step)
        buffers = copies_of_buffers(self._with_buffers) if self._on_nan == "skip" else []
        loss = self._accumulate(batches, step, record)
        self._losses += 1
        if record is not None:
            with record.logged(TRAINER):
                record.add(f"grad_norm{self._suffix}", gradient_norm(self.optimizer))
        if self.on_gradients:
            with recording(record), nullcontext() if record is None else record.logged(HOOKS_GRADIENTS):
                for look_at_gradients in self.on_gradients:
                    look_at_gradients(step)
        if record is not None:
            record.place = OPTIMIZER
        if self._on_nan == "skip":
            self._step_if_finite(batches, step, loss, buffers)
        else:
            self._loss_sum += loss
            self._step(batches, step, loss)
        forget_gradients(self.optimizer)
        if self._ema is not None:
            self._ema.update(step + 1)
        if record is not None:
            with record.logged(TRAINER):
                record.add(f"lr{self._suffix}", self.optimizer.param_groups[0]["lr"])
            record.place = STEP
            record_into(None)

    def _accumulate(self, batches: Sequence[Any], step: int, record: Record | None) -> Tensor:
        """The gradients of all micro-batches together, ready for the optimiser; their loss."""
        if self._begin is not None:
            self._begin()
        total_weight: float | Tensor = 0.0
        loss_of_step: Tensor | None = None
        for index, batch in enumerate(batches):
            if len(batches) == 1:
                loss, weight = self._backward(batch, step, record)
            else:
                with self._micro_batch(index, len(batches)):
                    loss, weight = self._backward(batch, step, record)
            if record is not None:
                record.weigh(weight)
            if self._weighted:
                total_weight = total_weight + weight
            loss_of_step = loss if loss_of_step is None else loss_of_step + loss
        assert loss_of_step is not None
        if self._average_outside is not None:
            self._average_outside()
        if self._weighted:
            # Divided as the gradients are, the mean of the ranks' losses is that of all rows together.
            loss_of_step = loss_of_step / self._divide(total_weight)
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        return loss_of_step

    @contextmanager
    def _micro_batch(self, index: int, count: int) -> Iterator[None]:
        """Ranks exchange gradients at the last one only; `begins_update` knows the first."""
        with (
            _going_on() if index else nullcontext(),
            nullcontext() if self._no_sync is None or index + 1 == count else self._no_sync(),
        ):
            yield

    def _backward(self, batch: Any, step: int, record: Record | None) -> tuple[Tensor, float | Tensor]:
        loss = self.forward(batch, step)
        weight: float | Tensor = 1.0
        if type(loss) is tuple and len(loss) == 2:
            loss, weight = loss
        elif self._weighted:
            weight = rows(batch)
        if not isinstance(loss, Tensor):
            raise TypeError(f"the environment must return a loss tensor or (loss, weight), not {type(loss).__name__}")
        if loss.numel() != 1:
            raise ValueError(
                f"the environment must return one number as its loss, not {tuple(loss.shape)}: take a mean"
            )
        if self._weighted:
            loss = loss * weight
        whole: Any = loss if self._scaler is None else self._scaler.scale(loss)
        if record is None:
            whole.backward()
        else:
            with record.backward():
                whole.backward()
        return loss.detach(), weight

    def _divide(self, total: float | Tensor) -> float | Tensor:
        """Divide the gradients by the weights of all micro-batches and ranks; by what they were divided."""
        if self._sum_weights is not None:
            total = self._sum_weights(total)
        # Nothing weighed anything: the gradients are zero already and stay so.
        divisor = total.clamp_min(1e-30) if isinstance(total, Tensor) else total or 1.0
        divide(gradients_of(self.optimizer), divisor)
        return divisor

    def _take_in(self) -> None:
        """Parameters that have come to the optimiser carry the gradients of all the steps before."""
        for param in parameters_of(self.optimizer):
            if param not in self._held:
                param.grad = None
        self._sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        self._held = set(parameters_of(self.optimizer))

    def _step(self, batches: Sequence[Any], step: int, loss: Tensor) -> None:
        if self._scaler is not None:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        elif self._takes_closure:
            losses = [loss]  # its first question is answered by the gradients that are there

            def closure() -> Tensor:
                if losses:
                    return losses.pop()
                forget_gradients(self.optimizer)
                with _going_on(), recording(None):
                    return self._accumulate(batches, step, None)

            self.optimizer.step(closure)  # type: ignore[arg-type]
        else:
            self.optimizer.step()

    def _step_if_finite(self, batches: Sequence[Any], step: int, loss: Tensor, buffers: Saved) -> None:
        bad = not_finite(loss, gradients_of(self.optimizer))
        if self._reduce_flag is not None:
            self._reduce_flag(bad)
        self._skipped += bad
        self._loss_sum += loss.masked_fill(bad > 0, 0.0)
        put_back(buffers, bad)
        if self._scaler is not None:
            for found in self._scaler._found_inf_per_device(self.optimizer).values():
                torch.maximum(found, bad.to(found.device), out=found)
            self._scaler.step(self.optimizer)
            self._scaler.update()
        elif skips_on_device(self.optimizer):
            self.optimizer.grad_scale, self.optimizer.found_inf = None, bad  # type: ignore[attr-defined]
            self.optimizer.step()
            del self.optimizer.grad_scale, self.optimizer.found_inf  # type: ignore[attr-defined]
        elif bad.item() == 0:  # waits for the device: the optimiser itself cannot skip
            self._step(batches, step, loss)

    def _set_learning_rate(self, step: int) -> None:
        assert self._schedule is not None
        factor = factor_at(self._schedule, step)
        for group in self.optimizer.param_groups:
            # A group that was added during the run begins with the rate that it was added with.
            first = group.setdefault("initial_lr", float(group["lr"]))
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(first * factor)
            else:
                group["lr"] = first * factor

    # -- what is read at log steps

    def read_loss(self, *, keep: bool = False) -> tuple[float, int]:
        """The sum of the losses since the last reading and their number; waits for the device.

        With `keep` it does not count as a reading.
        """
        total, count = float(self._loss_sum), self._losses
        if not keep:
            self._loss_sum.zero_()
            self._losses = 0
        return total, count

    def read_skipped(self) -> float:
        """How many updates were skipped so far because something was not finite."""
        return float(self._skipped)

    def find_non_finite(self) -> str | None:
        """What is not finite: a loss since the last reading, a parameter or a buffer; None if all is well."""
        bad = "the loss" if not bool(torch.isfinite(self._loss_sum)) else self._stays_finite.find()
        return f"{bad} of {self._suffix[1:]!r}" if bad and self._suffix else bad

    def scaler_state(self) -> dict[str, Any] | None:
        """The state of the scaler of float16, if there is one."""
        return None if self._scaler is None else self._scaler.state_dict()

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Put the scaler's state back, if there is a scaler."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """The running sums, and the scaler's state."""
        return {
            "loss_sum": self._loss_sum,
            "losses": self._losses,
            "skipped": self._skipped,
            "scaler": self.scaler_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the running sums and the scaler's state back."""
        self._loss_sum.copy_(state["loss_sum"])
        self._skipped.copy_(state["skipped"])
        self._losses = state["losses"]
        if state["scaler"] is not None:
            self.load_scaler(state["scaler"])


_goes_on: ContextVar[bool] = ContextVar("ai.train.update_goes_on", default=False)


@contextmanager
def _going_on() -> Iterator[None]:
    """Inside, the environment is called once more for an update that has begun."""
    token = _goes_on.set(True)
    try:
        yield
    finally:
        _goes_on.reset(token)


def begins_update() -> bool:
    """Whether the environment is called for the first time in an update, or outside of one.

    It is called once more with each further micro-batch, and whenever an optimiser's closure (LBFGS) asks for it.
    What an environment does once an update, such as moving a lagged network, it does then.

    >>> begins_update()
    True
    """
    return not _goes_on.get()


def takes_closure(optimizer: Optimizer) -> bool:
    """Whether its `step` cannot do without a closure, as LBFGS's.

    >>> takes_closure(torch.optim.LBFGS([torch.zeros(1)])), takes_closure(torch.optim.SGD([torch.zeros(1)]))
    (True, False)
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty
