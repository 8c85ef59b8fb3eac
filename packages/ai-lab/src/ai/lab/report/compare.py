"""Trials beside each other: a table of what they were told and what came out, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ai.lab.record import Record
from ai.lab.report.text_table import format_table

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


class Comparison:
    """A table with a row a trial; prints as text. Made by `compare`.

    Attributes:
        columns: The head, from `trial` on.
        rows: One list a trial; None where a trial has no such value.
    """

    def __init__(
        self, records: Mapping[str, Record], columns: list[str], rows: list[list[Any]], metrics: list[str], path: Path
    ) -> None:
        self.columns, self.rows = columns, rows
        self._records, self._metrics, self._path = dict(records), metrics, path

    def plot(self, path: str | Path | None = None) -> Path:
        """Draws the metrics of all trials over one another and returns the picture's path."""
        from ai.lab.report.plots import plot_records

        return plot_records(self._records, self._metrics, path or self._path)

    def plot_samples(self, path: str | Path | None = None) -> Path:
        """Draws each trial's last page of samples, side by side, and returns the picture's path.

        Raises:
            ValueError: no trial has samples.
        """
        from ai.lab.report.plots import plot_samples

        return plot_samples(self._records, path or self._path.with_name("samples.png"))

    def frame(self) -> "pd.DataFrame":
        """Returns a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=self.columns).set_index("trial")

    def __repr__(self) -> str:
        return format_table(self.columns, self.rows)


def compare(
    records: Mapping[str, Record], metrics: Sequence[str] = (), config: Sequence[str] = (), path: Path | None = None
) -> Comparison:
    """Returns trials beside each other.

    Args:
        records: The trials by the name they are shown under.
        metrics: Columns of last values; all by default.
        config: Columns of configuration; by default those in which the trials differ.
        path: Where `.plot()` puts its picture by default.

    Raises:
        ValueError: a metric was recorded by none of them.
    """
    last = {name: record.last() for name, record in records.items()}
    configs = {name: record.flat_config for name, record in records.items()}
    known = list(dict.fromkeys(key for values in last.values() for key in values if key not in ("step", "time")))
    for key in metrics:
        if key not in known:
            raise ValueError(f"metrics must be recorded ones ({', '.join(known) or 'none'}), got {key!r}")
    differing = [
        key
        for key in dict.fromkeys(key for values in configs.values() for key in values)
        if len({repr(values.get(key)) for values in configs.values()}) > 1
    ]
    keys, options = list(metrics) or known, list(config) or differing
    rows = [
        [name, record.state, last[name].get("step"), *map(configs[name].get, options), *map(last[name].get, keys)]
        for name, record in records.items()
    ]
    columns = ["trial", "state", "step", *options, *keys]
    return Comparison(records, columns, rows, keys, path or Path("comparison.png"))
