"""Training environments for one model: from a batch to a loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.train.engine.log import is_logging, log

Batch = Mapping[str, Tensor] | Sequence[Tensor]


def unpack(batch: Any) -> tuple[Tensor, Tensor]:
    """The input and the target of a batch: `{'x', 'y'}` or a pair.

    Raises:
        TypeError: the batch is neither.
    """
    if isinstance(batch, Mapping) and "x" in batch and "y" in batch:
        return batch["x"], batch["y"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    found = f"a dict with keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise TypeError(f"a batch must be a dict with 'x' and 'y' or a pair (x, y), not {found}")


class Classify:
    """Cross-entropy of `model(x)` against the classes `y`; logs the accuracy.

    Args:
        label_smoothing: share of the target spread evenly over all classes.
        top_k: also log how often the class is among the first k, for each of these k.

    The batch is `{'x', 'y'}` or `(x, y)`; `y` are class indices `(batch,)` of any integer type (uint8 too), or
    probabilities `(batch, classes)` as mixup makes them. Logits are `(batch, classes)`.

    >>> import torch
    >>> model = nn.Linear(2, 3)
    >>> Classify()(model, (torch.zeros(4, 2), torch.zeros(4, dtype=torch.uint8)), 0).shape
    torch.Size([])
    """

    def __init__(self, *, label_smoothing: float = 0.0, top_k: Sequence[int] = ()) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing ({label_smoothing}) must lie in [0, 1)")
        self.label_smoothing = label_smoothing
        self.top_k = tuple(top_k)

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The mean loss over the batch."""
        x, y = unpack(batch)
        logits = model(x)
        target = y if y.is_floating_point() else y.long()
        if is_logging():
            self._log(logits.detach(), target)
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def _log(self, logits: Tensor, target: Tensor) -> None:
        classes = target.argmax(1) if target.is_floating_point() else target
        log("accuracy", (logits.argmax(1) == classes).float().mean())
        for k in self.top_k:
            log(f"accuracy_top{k}", (logits.topk(k, 1).indices == classes[:, None]).any(1).float().mean())


class Regress:
    """Mean squared error of `model(x)` against `y`, or another loss.

    Args:
        loss: (prediction, target) -> mean loss.

    >>> import torch
    >>> env = Regress()
    >>> float(env(nn.Identity(), (torch.ones(2, 3), torch.zeros(2, 3)), 0))
    1.0
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss) -> None:
        self.loss = loss

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The mean loss over the batch."""
        x, y = unpack(batch)
        prediction = model(x)
        if prediction.shape != y.shape:  # broadcasting would turn (batch, 1) against (batch,) into a wrong loss
            raise ValueError(f"the model's output {tuple(prediction.shape)} and y {tuple(y.shape)} must agree in shape")
        dtype = torch.promote_types(prediction.dtype, torch.float32)  # half precision would round the targets
        return self.loss(prediction.to(dtype), y.to(dtype))


class Reconstruct:
    """A loss between `model(x)` and `x` itself, for autoencoders.

    Args:
        loss: (reconstruction, original) -> mean loss; any of `ai.train.loss`, or an `ai.train.loss.ComboLoss`.

    The batch is a tensor, a dict with `'x'`, or a tuple that starts with it.

    >>> import torch
    >>> float(Reconstruct()(nn.Identity(), torch.ones(2, 3), 0))
    0.0
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss) -> None:
        self.loss = loss

    def __call__(self, model: nn.Module, batch: Batch | Tensor, step: int) -> Tensor:
        """The mean loss over the batch."""
        x = images(batch)
        output = model(x)
        if output.shape != x.shape:
            raise ValueError(f"the model's output {tuple(output.shape)} and x {tuple(x.shape)} must agree in shape")
        return self.loss(output, x)


def images(batch: Any) -> Tensor:
    """The `x` of a batch: a tensor, a dict with `'x'`, or a tuple that starts with it."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping) and "x" in batch:
        x: Tensor = batch["x"]
        return x
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return batch[0]
    raise TypeError(f"a batch must be a tensor, a dict with 'x' or a tuple of tensors, not a {type(batch).__name__}")
