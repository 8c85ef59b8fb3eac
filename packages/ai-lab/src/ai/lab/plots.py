"""Pictures of recorded trials, as PNG or SVG files by matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from ai.lab.record import Record


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


def plot_records(records: dict[str, Record], keys: Sequence[str], path: str | Path) -> Path:
    """Draws the same metrics of several trials over one another, one panel a metric, and returns the path."""
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
        for name, metrics in columns.items():
            if key in metrics:
                column = metrics[key]
                axes.plot(column.steps, column.values, marker="." if len(column.steps) < 30 else None, lw=1, label=name)
        axes.set_title(_plain(key), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(records) > 1 and index == 0:
            axes.legend(fontsize=7, frameon=False)
    return save_figure(figure, path)


def save_figure(figure: object, path: str | Path) -> Path:
    """Writes a matplotlib figure, atomically, in the format of the path's ending."""
    import io

    from matplotlib.figure import Figure

    from ai.lab.folder import write_atomic

    assert isinstance(figure, Figure)
    path = Path(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lstrip(".") or "png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
    return path


def _plain(text: str) -> str:
    """Returns text as matplotlib shows it literally: a dollar sign would start a formula."""
    return text.replace("$", r"\$")[:80]
