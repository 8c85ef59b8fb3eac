"""How a classifier did on examples: who was taken for whom, and what precision each recall costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Values = np.ndarray | Tensor | Sequence[int] | Sequence[float]

MOST_CLASSES = 200
MOST_POINTS = 500
"""A precision-recall curve is kept in so many points at most; its average precision is of all."""


@dataclass
class Confusion:
    """A confusion matrix.

    Args:
        truth: `(n,)` whole numbers, the class of each example.
        predicted: `(n,)`, the class each was taken for.
        names: Of the classes from 0 on; their numbers by default.

    Example:
        >>> Confusion([0, 0, 1], [0, 1, 1]).to_json()["counts"]
        [[1, 1], [0, 1]]
    """

    truth: "Values"
    predicted: "Values"
    names: Sequence[str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns counts by true class, then by predicted one.

        Raises:
            TypeError: the classes are no whole numbers.
            ValueError: lengths differ, a class is negative or has no name, or there are too many.
        """
        truth, predicted = _classes("truth", self.truth), _classes("predicted", self.predicted)
        if len(truth) != len(predicted):
            raise ValueError(f"truth and predicted must have one length, got {len(truth)} and {len(predicted)}")
        most = max(truth.max(initial=-1), predicted.max(initial=-1)) + 1
        n = len(self.names) if self.names is not None else int(most)
        if most > n or n > MOST_CLASSES:
            raise ValueError(f"classes must be below {min(n, MOST_CLASSES)}, got {most - 1}")
        counts = np.bincount(truth * n + predicted, minlength=n * n).reshape(n, n)
        names = list(map(str, self.names if self.names is not None else range(n)))
        return {"kind": "confusion", "names": names, "counts": counts.tolist()}


@dataclass
class PrecisionRecall:
    """Precision against recall over all thresholds, a curve a class.

    Args:
        truth: `(n,)`, whether each example is positive, or its class where `scores` are `(n, classes)`.
        scores: `(n,)` or `(n, classes)`: the larger, the surer.
        names: Of the curves.

    Example:
        >>> PrecisionRecall([1, 0, 1], [0.9, 0.8, 0.7]).to_json()["curves"][0]["area"]
        0.8333333333333333
    """

    truth: "Values"
    scores: "np.ndarray | Tensor | Sequence[float] | Sequence[Sequence[float]]"
    names: Sequence[str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the curves, each with its average precision as `area`.

        Raises:
            TypeError: the truth is no whole numbers, or the scores are no numbers.
            ValueError: shapes do not fit, a score is not finite, a class has no column, or names are too few.
        """
        truth = _classes("truth", self.truth)
        scores = as_numbers("scores", self.scores)
        if scores.ndim not in (1, 2) or len(scores) != len(truth) or not len(truth):
            raise ValueError(
                f"scores must be ({len(truth)},) or ({len(truth)}, classes) and not empty, got {scores.shape}"
            )
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite, got NaN or infinity")
        n = 2 if scores.ndim == 1 else scores.shape[1]
        if truth.max() >= n:
            raise ValueError(f"truth must be below {n} for scores of shape {scores.shape}, got {truth.max()}")
        columns = [(truth == 1, scores)] if scores.ndim == 1 else [(truth == k, scores[:, k]) for k in range(n)]
        names = list(map(str, self.names if self.names is not None else range(len(columns))))
        if scores.ndim == 1 and self.names is None:
            names = ["positive"]
        if len(names) != len(columns):
            raise ValueError(f"names must be {len(columns)}, got {len(names)}")
        curves = [_curve(name, *column) for name, column in zip(names, columns, strict=True)]
        return {"kind": "curves", "x": "recall", "y": "precision", "curves": curves}


def _curve(name: str, positive: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """One class's curve: each threshold is a score, examples of one score are let in together."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    ends = np.flatnonzero(np.diff(scores[order], append=-math.inf))
    if not positive.any():
        return {"name": name, "x": [], "y": [], "area": None}
    recall, precision = hits[ends] / hits[-1], hits[ends] / (ends + 1)
    area = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    kept = np.unique(np.linspace(0, len(ends) - 1, min(len(ends), MOST_POINTS)).round().astype(int))
    return {"name": name, "x": [0.0, *recall[kept].tolist()], "y": [1.0, *precision[kept].tolist()], "area": area}


def as_numbers(name: str, values: Any) -> np.ndarray:
    """Returns an array of floats of what is numbers; `name` says of which argument.

    Raises:
        TypeError: it is not, such as text, None, complex numbers or rows of several lengths.
    """
    try:
        array = np.asarray(_plain(values))
    except (TypeError, ValueError):  # of several lengths
        array = np.asarray(None)
    if array.size and array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers, got {_shown(values)}")
    return array.astype(np.float64)


def _shown(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _classes(name: str, values: Any) -> np.ndarray:
    array = np.asarray(_plain(values))
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be (n,), got shape {array.shape}")
    if array.dtype.kind not in "biu":
        raise TypeError(f"{name} must be whole numbers, got {array.dtype}")
    if array.min() < 0:
        raise ValueError(f"{name} must be at least 0, got {array.min()}")
    return array.astype(np.int64)


def _plain(values: Any) -> Any:
    if not hasattr(values, "detach"):
        return values
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()
