"""Stop when a metric no longer improves."""

import re
from collections.abc import Mapping
from math import inf

from ai.model.arguments import check_real, check_whole


class EarlyStopping:
    """Says stop when a metric has not improved for `patience` measurements of it.

    Args:
        key: the metric, as the hook logs it.
        patience: measurements without improvement that are borne.
        mode: whether it is better low (`'min'`) or high (`'max'`); None: what its name says, as `val_loss`'s and
            `val_accuracy`'s do.
        min_delta: how much counts as an improvement.

    Raises:
        ValueError: `mode` is neither, or None where the name does not say; or a number is negative.
        TypeError: `patience` is not a whole number, or `min_delta` none.

    >>> stopper = EarlyStopping('val_loss', patience=1)
    >>> [stopper(step, {'val_loss': loss}) for step, loss in enumerate([3.0, 2.0, 2.5, 2.1])]
    [False, False, False, True]
    """

    def __init__(
        self, key: str = "val_loss", *, patience: int = 5, mode: str | None = None, min_delta: float = 0.0
    ) -> None:
        if not isinstance(key, str):
            raise TypeError(f"key must be a metric's name, not {key!r}")
        check_whole(patience=patience)
        check_real(min_delta=min_delta)
        if patience < 0:
            raise ValueError(f"patience ({patience}) must not be negative")
        if not min_delta >= 0:
            raise ValueError(f"min_delta ({min_delta}) must not be negative")
        self.key, self.patience, self.mode, self.min_delta = key, patience, direction(key, mode), min_delta
        self.best = inf
        self.waited = 0

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take the metrics that were measured at a step; whether to stop. Where its own is not among them, no."""
        if self.key not in metrics:
            return False
        value = metrics[self.key] if self.mode == "min" else -metrics[self.key]
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited > self.patience

    def state_dict(self) -> dict[str, float]:
        """The best value and how long it has stood."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Put a state back."""
        self.best, self.waited = state["best"], int(state["waited"])


_LOW = {"loss", "error", "nll", "bpd", "mse", "mae", "rmse", "perplexity", "fid", "kid", "distance", "wer", "cer"}
_HIGH = {
    *("accuracy", "acc", "precision", "recall", "f1", "auroc", "auc", "ap", "map", "iou", "dice", "psnr", "ssim"),
    *("bleu", "rouge", "reward", "return", "score", "elo"),
}


def direction(key: str, mode: str | None) -> str:
    """`'min'` or `'max'`: `mode` itself, or what the metric's name says.

    Raises:
        ValueError: `mode` is neither, or None where the name says nothing.

    >>> direction('val_loss_d', None), direction('val_accuracy_top5', None), direction('win_rate', 'max')
    ('min', 'max', 'max')
    """
    if mode in ("min", "max"):
        return str(mode)
    if mode is not None:
        raise ValueError(f"mode must be 'min' or 'max', not {mode!r}")
    words = set(re.findall(r"[a-z]+\d*", key.lower()))
    words |= {word.rstrip("0123456789") for word in words}
    low, high = bool(words & _LOW), bool(words & _HIGH)
    if low == high:
        raise ValueError(f"mode must be 'min' or 'max' for {key!r}, whose name does not say which is better")
    return "min" if low else "max"
