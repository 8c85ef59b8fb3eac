"""Pictures of points and of convergence; pages of images and animations come from `ai.examples.figures`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def draw_points(points: Tensor, *, limit: float, title: str = "", colour: Tensor | None = None) -> NDArray[np.uint8]:
    """Returns a scatter plot of `(n, 2)` points as `(height, width, 3)` pixels.

    Args:
        points: The points.
        limit: Both axes show `[-limit, limit]`.
        title: Stands above.
        colour: `(n,)` classes; one colour when None.
    """
    figure = Figure(figsize=(4, 4.2), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    x, y = points.detach().float().cpu().T.numpy()
    classes = "tab:blue" if colour is None else colour.cpu().numpy()
    axes.scatter(x, y, s=4, c=classes, cmap=None if colour is None else "tab10", alpha=0.5, linewidths=0)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


def save_convergence(path: Path, errors: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """Draws error against network calls on logarithmic axes, beside lines of order 1 and 2.

    Args:
        path: The file to write.
        errors: For each sampler, pairs of network calls and error.
        title: Stands above.
    """
    figure = Figure(figsize=(6, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, pairs in errors.items():
        calls, error = zip(*pairs, strict=True)
        axes.loglog(calls, error, "o-", label=name, markersize=4)
    every_call = [calls for pairs in errors.values() for calls, _ in pairs]
    ends = np.array([min(every_call), max(every_call)], float)
    top = max(error for pairs in errors.values() for _, error in pairs)
    for order, style in ((1, ":"), (2, "--")):
        axes.loglog(ends, top * (ends / ends[0]) ** -order, f"k{style}", linewidth=0.8, label=f"order {order}")
    axes.set(xlabel="network calls", ylabel="median error of a sample", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)
