"""Training environments for one model: from a batch to a loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model.arguments import check_instance, check_module, check_real, check_whole
from ai.train.engine.log import is_logging, log
from ai.train.engine.whole_set import Metric, check_metric, measure

Batch = Mapping[str, Tensor] | Sequence[Tensor]


def unpack(batch: Any, x: str = "x", y: str = "y") -> tuple[Tensor, Tensor]:
    """The input and the target of a batch: a dict with these keys, or a pair.

    Raises:
        TypeError: the batch is neither.
    """
    if isinstance(batch, Mapping) and x in batch and y in batch:
        return batch[x], batch[y]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    found = f"a dict with keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise TypeError(f"a batch must be a dict with {x!r} and {y!r} or a pair, not {found}")


class Classify:
    """Cross-entropy of `model(x)` against the classes `y`; logs the accuracy.

    Args:
        x: the input's key in a batch that is a dict.
        y: the classes' key.
        label_smoothing: share of the target spread evenly over all classes.
        class_weights: how much each class counts, `(classes,)`; the mean is one by weight, also over micro-batches and
            ranks.
        ignore_index: a class that stands where there is none, such as 255 or -100 for pixels without a label; the mean
            and what is logged are over the others. None: every class counts, and one out of range is refused.
        metrics: by name, metrics over a whole validation set, such as those of torchmetrics (extra `metrics`): AUROC,
            F1, confusion. Each takes the probabilities `(batch, classes)` and the classes; see `ai.train.measure`.
        top_k: also log how often the class is among the first k, for each of these k.

    The batch is a dict or a pair `(x, y)`; `y` are class indices `(batch,)` of any integer type (uint8 too), or
    probabilities `(batch, classes)` as mixup makes them. Logits are `(batch, classes)`; with further axes, as of
    pixels, `(batch, classes, ...)` against `(batch, ...)`.

    >>> import torch
    >>> model = nn.Linear(2, 3)
    >>> Classify()(model, (torch.zeros(4, 2), torch.zeros(4, dtype=torch.uint8)), 0).shape
    torch.Size([])
    """

    def __init__(
        self,
        *,
        x: str = "x",
        y: str = "y",
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Tensor | None = None,
        ignore_index: int | None = None,
        top_k: Sequence[int] = (),
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        check_real(label_smoothing=label_smoothing)
        check_whole(or_none=True, ignore_index=ignore_index)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing ({label_smoothing}) must lie in [0, 1)")
        if isinstance(top_k, str) or not isinstance(top_k, Sequence):
            raise TypeError(f"top_k must be a sequence of whole numbers, such as (5,), not {top_k!r}")
        for index, k in enumerate(top_k):
            check_whole(**{f"top_k[{index}]": k})
            if k < 1:
                raise ValueError(f"top_k[{index}] ({k}) must be at least 1")
        self.x, self.y = x, y
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if self.class_weights is not None and not (self.class_weights >= 0).all():
            raise ValueError(f"class_weights ({self.class_weights.tolist()}) must not be negative")
        self.ignore_index = ignore_index
        self.top_k = tuple(top_k)
        if not isinstance(metrics, Mapping | None):
            raise TypeError(f"metrics must be a dict by name, not {type(metrics).__name__}")
        self.metrics = dict(metrics or {})
        for name, metric in self.metrics.items():
            check_metric(f"metrics[{name!r}]", metric)

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor | tuple[Tensor, Tensor]:
        """The mean loss over the batch; with class weights or `ignore_index`, and what its rows weigh together."""
        x, y = unpack(batch, self.x, self.y)
        logits = forward(model, x, self.x)
        target = self._target(logits, y)
        if is_logging():
            self._log(logits.detach(), target)
        if self.class_weights is None and self.ignore_index is None:
            return self._cross_entropy(logits, target)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision cannot hold the sums
        weights = self._weights(logits)
        if weights.shape != (logits.shape[1],):
            raise ValueError(f"class_weights {tuple(weights.shape)} must be one for each of {logits.shape[1]} classes")
        total = self._cross_entropy(logits, target, weight=weights, reduction="sum")
        if target.is_floating_point():
            whole = (target.movedim(1, -1) * weights).sum()
        else:
            counts = self._counts(target)
            whole = (weights[target.where(counts, 0)] * counts).sum()
        return total / whole.clamp_min(1e-30), whole  # a batch in which nothing counts has a loss of 0

    def _weights(self, logits: Tensor) -> Tensor:
        if self.class_weights is None:
            return logits.new_ones(logits.shape[1])
        if self.class_weights.device != logits.device:
            self.class_weights = self.class_weights.to(logits.device)  # once, since it waits for the device
        return self.class_weights.to(logits.dtype)

    def _cross_entropy(self, logits: Tensor, target: Tensor, **how: Any) -> Tensor:
        ignored = _NO_CLASS if self.ignore_index is None or target.is_floating_point() else self.ignore_index
        try:
            return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing, ignore_index=ignored, **how)
        except IndexError as error:
            there = target if self.ignore_index is None else target[self._counts(target)]
            raise ValueError(
                f"{self.y!r} holds the classes {int(there.min())} to {int(there.max())}, and the model gives "
                f"{logits.shape[1]} logits: classes count from 0 to {logits.shape[1] - 1}; one that is to be left out "
                "is ignore_index"
            ) from error

    def _counts(self, target: Tensor) -> Tensor:
        return target != (_NO_CLASS if self.ignore_index is None else self.ignore_index)

    def _target(self, logits: Tensor, y: Tensor) -> Tensor:
        if not isinstance(y, Tensor):
            raise _no_tensor(self.y, y)
        if y.is_floating_point():
            if y.shape != logits.shape:
                raise ValueError(
                    f"{self.y!r} ({_short(y)}) must be class indices of an integer type (y.long()), or probabilities "
                    f"in the logits' shape {tuple(logits.shape)}"
                )
            return y
        if y.shape != (logits.shape[0], *logits.shape[2:]):
            fix = f": drop the last axis, {self.y}.squeeze(1)" if y.ndim == logits.ndim and y.shape[1] == 1 else ""
            raise ValueError(
                f"{self.y!r} ({_short(y)}) must have one class where the logits {tuple(logits.shape)} have one number "
                f"for each, so {(logits.shape[0], *logits.shape[2:])}{fix}"
            )
        return y.long()

    def _log(self, logits: Tensor, target: Tensor) -> None:
        classes = target.argmax(1) if target.is_floating_point() else target
        if self.ignore_index is not None and not target.is_floating_point():
            counts = self._counts(classes)
            logits, classes = logits.movedim(1, -1)[counts], classes[counts]
        log("accuracy", _share(logits.argmax(1) == classes))
        for name, metric in self.metrics.items():
            measure(name, metric, logits.float().softmax(1), classes)
        for k in self.top_k:
            if k > logits.shape[1]:
                raise ValueError(f"top_k ({k}) must not exceed the model's {logits.shape[1]} logits")
            log(f"accuracy_top{k}", _share((logits.topk(k, 1).indices == classes[:, None]).any(1)))


_NO_CLASS = -(2**63)  # torch leaves out -100 where nothing is said


def _share(hits: Tensor) -> Tensor:
    return hits.float().mean() if hits.numel() else torch.zeros((), device=hits.device)


def forward(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """`model(x)`; where that fails for the type of the numbers, the error says so.

    Raises:
        TypeError: the model cannot take numbers of this type; the fix is named.
    """
    try:
        output: Tensor = model(x)
    except (RuntimeError, TypeError, AttributeError) as error:
        if isinstance(x, (np.ndarray, list)):
            raise _no_tensor(name, x) from error
        wanted = (
            next((p.dtype for p in model.parameters() if p.is_floating_point()), None) if _is_module(model) else None
        )
        if not isinstance(x, Tensor) or wanted is None or x.dtype == wanted or torch.is_autocast_enabled(x.device.type):
            raise
        fix = "x.float() / 255, or a loader that scales images" if x.dtype == torch.uint8 else f"x.to({wanted})"
        raise TypeError(
            f"{name!r} ({_short(x)}) is not of the model's type {wanted}: convert it, once for the whole data set, as "
            f"by {fix}"
        ) from error
    return output


def _no_tensor(name: str, value: Any) -> TypeError:
    return TypeError(
        f"{name!r} ({type(value).__name__}) must be a tensor: torch.as_tensor({name}), once for the whole data set, or "
        "batches from a loader of ai.data"
    )


def _is_module(model: Any) -> bool:
    return isinstance(model, nn.Module)


def _short(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


class Regress:
    """Mean squared error of `model(x)` against `y`, or another loss.

    Args:
        loss: (prediction, target) -> mean loss.
        x: the input's key in a batch that is a dict.
        y: the target's key.

    >>> import torch
    >>> env = Regress()
    >>> float(env(nn.Identity(), (torch.ones(2, 3), torch.zeros(2, 3)), 0))
    1.0
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss, *, x: str = "x", y: str = "y") -> None:
        self.loss, self.x, self.y = loss, x, y

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The mean loss over the batch."""
        x, y = unpack(batch, self.x, self.y)
        prediction = forward(model, x, self.x)
        if prediction.shape != y.shape:  # broadcasting would turn (batch, 1) against (batch,) into a wrong loss
            raise ValueError(f"the model's output {tuple(prediction.shape)} and y {tuple(y.shape)} must agree in shape")
        dtype = torch.promote_types(prediction.dtype, torch.float32)  # half precision would round the targets
        return self.loss(prediction.to(dtype), y.to(dtype))


class Reconstruct:
    """A loss between `model(x)` and `x` itself, for autoencoders.

    Args:
        loss: (reconstruction, original) -> mean loss; any of `ai.train.loss`, or an `ai.train.loss.ComboLoss`.
        x: the input's key in a batch that is a dict.

    The batch is a tensor, a dict with that key, or a tuple that starts with it.

    >>> import torch
    >>> float(Reconstruct()(nn.Identity(), torch.ones(2, 3), 0))
    0.0
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss, *, x: str = "x") -> None:
        self.loss, self.x = loss, x

    def __call__(self, model: nn.Module, batch: Batch | Tensor, step: int) -> Tensor:
        """The mean loss over the batch."""
        x = images(batch, self.x)
        output = forward(model, x, self.x)
        if output.shape != x.shape:
            raise ValueError(f"the model's output {tuple(output.shape)} and x {tuple(x.shape)} must agree in shape")
        return self.loss(output, x)


class NextToken:
    """Cross-entropy of each token against what `model(tokens before it)` says; its mean is one over tokens.

    Args:
        x: the tokens' key in a batch that is a dict; a batch may also be the tokens `(batch, time)` themselves.
        ignore_index: a token that is not to be predicted, such as padding; None: all are.

    The model gives logits `(batch, time, vocabulary)`. Over micro-batches and ranks tokens count alike.

    Raises:
        IndexError: at a step on the CPU, a token beyond the vocabulary, or more of them than the model has places for.

    >>> import torch
    >>> env, tokens = NextToken(ignore_index=0), torch.tensor([[1, 2, 3], [1, 2, 0]])
    >>> loss, count = env(lambda x: torch.zeros(*x.shape, 4), tokens, 0)
    >>> round(float(loss), 4), int(count)
    (1.3863, 3)
    """

    def __init__(self, *, x: str = "x", ignore_index: int | None = None) -> None:
        check_whole(or_none=True, ignore_index=ignore_index)
        self.x, self.ignore_index = x, ignore_index

    def __call__(self, model: nn.Module, batch: Batch | Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The mean loss over the tokens that are predicted, and how many these are."""
        tokens = images(batch, self.x).long()
        target = tokens[:, 1:]
        counted = torch.ones_like(target) if self.ignore_index is None else target != self.ignore_index
        try:
            logits = model(tokens[:, :-1])
            losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        except IndexError as error:  # on a GPU it is known only after the kernel, which ends the process's use of it
            held = f"from {int(tokens.min())} to {int(tokens.max())}" if tokens.numel() else "none"
            raise IndexError(
                f"{error}; if it is the tokens: they must lie in the model's vocabulary and be no more than its "
                f"context, and those of {self.x!r} are {held}, {tokens.shape[1]} in a row"
            ) from error
        count = counted.sum()
        loss = (losses * counted).sum() / count.clamp_min(1)
        if is_logging():
            log("perplexity", loss.detach().exp())
            log("accuracy", ((logits.argmax(-1) == target) * counted).sum() / count.clamp_min(1))
        return loss, count.to(loss.dtype)


class Distill:
    """Trains a model to say what a teacher says, softened, and beside it what its own task asks.

    Args:
        teacher: a module, asked in evaluation mode and without gradients; it goes to the batch's device, unless it is
            spread over several.
        task: the environment of the model's own task, such as `Classify()`; None leaves it out. Where it gives a
            weight beside its loss, as with class weights, the teacher's part of the batch weighs as much.
        temperature: both logits are divided by it; gradients are scaled back by its square.
        share: of the teacher in the loss, 0 to 1.
        x: the input's key in a batch that is a dict.

    Source: Hinton, Vinyals and Dean 2015, Distilling the knowledge in a neural network, section 2.

    >>> import torch
    >>> model = nn.Linear(2, 3)
    >>> Distill(model)(model, torch.ones(4, 2), 0).item()
    0.0
    """

    def __init__(
        self,
        teacher: nn.Module,
        task: Callable[..., Tensor | tuple[Tensor, float | Tensor]] | None = None,
        *,
        temperature: float = 2.0,
        share: float = 0.5,
        x: str = "x",
    ) -> None:
        check_module(teacher=teacher)
        check_instance(task=task)
        check_real(temperature=temperature, share=share)
        if not temperature > 0:
            raise ValueError(f"temperature ({temperature}) must be positive")
        if not 0 <= share <= 1:
            raise ValueError(f"share ({share}) must lie in [0, 1]")
        self.teacher, self.task, self.temperature, self.share, self.x = teacher, task, temperature, share, x

    def __call__(self, model: nn.Module, batch: Batch | Tensor, step: int) -> Tensor | tuple[Tensor, float | Tensor]:
        """The mean loss over the batch; with what it weighs, where the task says so."""
        x = images(batch, self.x)
        places = {held.device for held in (*self.teacher.parameters(), *self.teacher.buffers())}
        if len(places) == 1 and places != {x.device}:
            self.teacher.to(x.device)
        modes = [(module, module.training) for module in self.teacher.modules()]
        self.teacher.eval()
        try:
            with torch.no_grad():
                wanted = self.teacher(x) / self.temperature
        finally:
            for module, training in modes:  # the teacher may be the model itself, or hold parts of it
                module.training = training
        found = F.log_softmax(model(x) / self.temperature, 1)
        soft = F.kl_div(found, F.log_softmax(wanted, 1), reduction="batchmean", log_target=True) * self.temperature**2
        log("distillation", soft.detach())
        if self.task is None:
            return soft
        own = self.task(model, batch, step)
        if isinstance(own, tuple):
            return self.share * soft + (1 - self.share) * own[0], own[1]
        return self.share * soft + (1 - self.share) * own


def images(batch: Any, key: str = "x") -> Tensor:
    """The `x` of a batch: a tensor, a dict with that key, or a tuple that starts with it."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping) and key in batch:
        x: Tensor = batch[key]
        return x
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return batch[0]
    found = f"a dict with keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise TypeError(f"a batch must be a tensor, a dict with {key!r} or a tuple of tensors, not {found}")
