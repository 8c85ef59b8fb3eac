"""Stop when a metric no longer improves."""

from collections.abc import Mapping
from math import inf


class EarlyStopping:
    """Says stop when a metric has not improved for `patience` evaluations.

    Args:
        key: the metric, as the hook logs it.
        patience: evaluations without improvement that are borne.
        mode: `'min'` or `'max'`.
        min_delta: how much counts as an improvement.

    >>> stopper = EarlyStopping('val_loss', patience=1)
    >>> [stopper(step, {'val_loss': loss}) for step, loss in enumerate([3.0, 2.0, 2.5, 2.1])]
    [False, False, False, True]
    """

    def __init__(self, key: str = "val_loss", *, patience: int = 5, mode: str = "min", min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', not {mode!r}")
        self.key, self.patience, self.mode, self.min_delta = key, patience, mode, min_delta
        self.best = inf
        self.waited = 0

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take the metrics of one evaluation; whether to stop."""
        if self.key not in metrics:
            raise KeyError(f"early stopping watches {self.key!r}; the metrics are {sorted(metrics)}")
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
