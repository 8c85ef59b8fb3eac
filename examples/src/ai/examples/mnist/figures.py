"""The two pictures of a trained classifier: which classes it takes for which, and what it says to single images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def confusion_matrix(labels: NDArray[np.integer], answers: NDArray[np.integer], n_classes: int) -> NDArray[np.int64]:
    """Counts answers by class.

    Args:
        labels: `(n,)`, the true classes.
        answers: `(n,)`, the predicted ones.
        n_classes: Number of classes.

    Returns:
        `(n_classes, n_classes)`: row = true class, column = answer.

    Example:
        >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
        [[1, 0], [1, 1]]
    """
    counts = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(counts, (labels, answers), 1)
    return counts


def save_confusion(path: Path, counts: NDArray[np.int64], title: str) -> None:
    """Draws a confusion matrix as a PNG; colours are per row, so that rare classes show as well as frequent ones.

    Beyond thirty classes, whose counts nobody could read, colours alone.
    """
    n = len(counts)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    if n <= 30:
        for row, column in np.argwhere(counts):
            colour = "white" if counts[row, column] > counts[row].sum() / 2 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
        axes.set(xticks=range(n), yticks=range(n))
    axes.set(xlabel="answer", ylabel="truth", title=title)
    figure.savefig(path, dpi=120)


def save_predictions(
    path: Path,
    images: NDArray[np.floating],
    labels: Sequence[int | str],
    answers: Sequence[int | str],
    confidences: Sequence[float],
    title: str,
) -> None:
    """Draws a page of images with what the model says to each, as a PNG; wrong answers in red, with the truth.

    Args:
        path: The file to write.
        images: `(n, height, width)` in [-1, 1].
        labels: `n` true classes, as numbers or names.
        answers: `n` predicted classes.
        confidences: `n` probabilities of the predicted classes.
        title: Stands above the page.
    """
    columns = 10
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 0.9, rows * 1.12 + 0.4), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, label, answer, confidence in zip(grid, images, labels, answers, confidences, strict=False):
        axes.imshow(image, cmap="gray", vmin=-1, vmax=1)
        right = label == answer
        text = f"{answer}  {confidence:.0%}" if right else f"{answer} not {label}  {confidence:.0%}"
        axes.set_title(text, fontsize=7.5, color="black" if right else "crimson")
    figure.savefig(path, dpi=120)
