"""Pictures of recorded trials, as PNG or SVG files by matplotlib."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ai.data.storage.paths import expanded
from ai.lab.record import Column, Record
from ai.lab.report.palette import DASHES, PALETTE, color_of
from ai.lab.report.trial_table import TrialRow

if TYPE_CHECKING:
    import numpy as np


def plot_trial(record: Record, keys: Sequence[str] = (), path: str | Path | None = None) -> Path:
    """Draws metrics over the steps, one panel each, and returns the picture's path.

    Args:
        record: The trial.
        keys: The metrics; all by default.
        path: The picture, its ending says the format; `metrics.png` in the trial's folder by default.

    Raises:
        ValueError: there is nothing to draw.
    """
    return plot_records({record.name: record}, keys, path or record.path / "metrics.png")


def plot_records(
    records: dict[str, Record],
    keys: Sequence[str],
    path: str | Path,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Draws the same metrics of several trials over one another, one panel a metric, and returns the path.

    Args:
        records: The trials by name.
        keys: The metrics; all by default.
        path: The picture, its ending says the format.
        groups: Names of trials that repeat each other, by the name to show: drawn as a mean in a band of one standard
            deviation.
    """
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    columns = {name: record.metrics() for name, record in records.items()}
    known = list(dict.fromkeys(key for metrics in columns.values() for key in metrics))
    chosen = list(keys) or known
    for key in chosen:
        if key not in known:
            raise ValueError(f"keys must be recorded metrics ({', '.join(known) or 'none'}), got {key!r}")
    if not chosen:
        raise ValueError(f"there is nothing to plot: no metrics in {', '.join(records)}")
    width = min(3, len(chosen))
    height = -(-len(chosen) // width)
    figure = Figure(figsize=(4.2 * width, 2.8 * height), layout="constrained")
    for index, key in enumerate(chosen):
        axes = figure.add_subplot(height, width, index + 1)
        for place, (name, members) in enumerate((groups or {name: [name] for name in records}).items()):
            runs = [columns[one][key] for one in members if key in columns[one]]
            if not runs:
                continue
            steps, mean, deviation = _mean(runs) if len(runs) > 1 else (runs[0].steps, runs[0].values, None)
            look: dict[str, Any] = {
                "color": color_of(place),
                "linestyle": DASHES[place // len(PALETTE) % len(DASHES)],
                "lw": 1,
            }
            axes.plot(steps, mean, marker="." if len(steps) < 30 else None, label=name, **look)
            if deviation is not None:
                band = mean - deviation, mean + deviation
                axes.fill_between(steps, *band, color=color_of(place), alpha=0.2, lw=0)
        axes.set_title(_plain(key), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(groups or records) > 1 and index == 0:
            axes.legend(fontsize=7, frameon=False)
    return save_figure(figure, path)


def _mean(runs: Sequence[Column]) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """Returns steps, mean and standard deviation of repeated runs, over those that have a step; of a step the last."""
    import numpy as np

    steps = np.unique(np.concatenate([run.steps for run in runs]))
    values = np.full((len(runs), len(steps)), np.nan)
    for row, run in zip(values, runs, strict=True):
        row[np.searchsorted(steps, run.steps)] = run.values
    known = np.isfinite(values)
    n = known.sum(0)
    mean = np.where(known, values, 0).sum(0) / np.where(n, n, 1)
    squares = np.where(known, (values - mean) ** 2, 0).sum(0)
    return steps, np.where(n, mean, np.nan), np.sqrt(squares / np.where(n > 1, n - 1, 1))


def plot_experiment(trials: Sequence[TrialRow], direction: str, path: str | Path) -> Path:
    """Draws the score over the trials with the best so far, and against each hyper-parameter; returns the path.

    Args:
        trials: The experiment's.
        direction: Whether `'min'` or `'max'` is the best score.
        path: The picture; its ending says the format.

    Raises:
        ValueError: no trial has a score.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows = [row for row in trials if row.score is not None]
    if not rows:
        raise ValueError(f"there is nothing to plot: none of {len(trials)} trials has finished")
    numbers = np.array([row.number for row in rows])
    scores = np.array([row.score for row in rows])
    best = (np.minimum if direction == "min" else np.maximum).accumulate(scores)
    names = list(dict.fromkeys(name for row in rows for name in row.hparams))
    width = min(3, 1 + len(names))
    height = -(-(1 + len(names)) // width)
    figure = Figure(figsize=(4.2 * width, 2.8 * height), layout="constrained")
    axes = figure.add_subplot(height, width, 1)
    axes.plot(numbers, scores, ".", label="score")
    axes.step(numbers, best, where="post", lw=1, label="best so far")
    axes.set_xlabel("trial", fontsize=8)
    axes.set_title("score", fontsize=10)
    axes.legend(fontsize=7, frameon=False)
    for index, name in enumerate(names):
        axes = figure.add_subplot(height, width, index + 2)
        values = [row.hparams[name] for row in rows if name in row.hparams]
        at = [score for row, score in zip(rows, scores, strict=True) if name in row.hparams]
        order = [number for row, number in zip(rows, numbers, strict=True) if name in row.hparams]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        axes.scatter(values if numeric else list(map(str, values)), at, c=order, cmap="viridis", s=14)
        if numeric and min(values) > 0 and max(values) / min(values) > 50:
            axes.set_xscale("log")
        axes.set_title(_plain(name), fontsize=10)
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    return save_figure(figure, path)


def plot_samples(records: dict[str, Record], path: str | Path) -> Path:
    """Draws each trial's last page of samples, side by side, and returns the path."""
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    pages = {name: list(record.samples().items())[-1] for name, record in records.items() if record.samples()}
    if not pages:
        raise ValueError(f"there is nothing to plot: no samples in {', '.join(records)}")
    figure = Figure(figsize=(3.6 * len(pages), 3.9), layout="constrained")
    for index, (name, (step, file)) in enumerate(pages.items()):
        axes = figure.add_subplot(1, len(pages), index + 1)
        with Image.open(file) as image:
            axes.imshow(np.asarray(image.convert("RGB")))
        axes.set_title(f"{_plain(name)}, step {step}", fontsize=10)
        axes.set_axis_off()
    return save_figure(figure, path)


def save_figure(figure: object, path: str | Path) -> Path:
    """Writes a matplotlib figure, atomically, in the format of the path's ending."""
    import io

    from matplotlib.figure import Figure

    from ai.lab.files.folder import write_atomic

    assert isinstance(figure, Figure)
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be text or a pathlib.Path, got {path!r}")
    path = expanded(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lstrip(".") or "png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
    return path


def _plain(text: str) -> str:
    """Returns text as matplotlib shows it literally: a dollar sign would start a formula."""
    return text.replace("$", r"\$")[:80]
