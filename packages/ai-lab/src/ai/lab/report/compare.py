"""Trials beside each other: a table of what they were told and what came out, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ai.lab.arguments import check_directions, check_texts
from ai.lab.record import Record
from ai.lab.report.table import Spread, Table

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


class Comparison(Table):
    """A table with a row a trial, or a row for trials that repeat each other; prints as text. Made by `compare`.

    Attributes:
        columns: The head, from `trial` on.
        rows: One list a trial; None where a trial has no such value.
    """

    def __init__(
        self,
        records: Mapping[str, Record],
        columns: list[str],
        rows: list[list[Any]],
        metrics: list[str],
        path: Path,
        groups: Mapping[str, list[str]],
    ) -> None:
        super().__init__(columns, rows)
        self._records, self._metrics, self._path, self._groups = dict(records), metrics, path, groups

    def plot(self, path: str | Path | None = None) -> Path:
        """Draws the metrics of all trials over one another and returns the picture's path."""
        from ai.lab.report.plots import plot_records

        return plot_records(self._records, self._metrics, path or self._path, self._groups)

    def plot_samples(self, path: str | Path | None = None) -> Path:
        """Draws each trial's last page of samples, side by side, and returns the picture's path.

        Raises:
            ValueError: no trial has samples.
        """
        from ai.lab.report.plots import plot_samples

        return plot_samples(self._records, path or self._path.with_name("samples.png"))

    def frame(self) -> "pd.DataFrame":
        """Returns a DataFrame by trial; see also `to_pandas`."""
        return self.to_pandas().set_index("trial")


def compare(
    records: Mapping[str, Record],
    metrics: Sequence[str] = (),
    config: Sequence[str] = (),
    path: Path | None = None,
    over: Sequence[str] = (),
    best: Mapping[str, str] | None = None,
) -> Comparison:
    """Returns trials beside each other.

    Args:
        records: The trials by the name they are shown under.
        metrics: Columns of last values; all by default.
        config: Columns of configuration; by default those in which the trials differ.
        path: Where `.plot()` puts its picture by default.
        over: Names of the configuration that only repeat a run, such as `seed`: trials that differ in nothing else are
            one row, named for what their names have in common (for all of them where that names another row too),
            with mean ± standard deviation.
        best: `'min'` or `'max'` by metric: a column `best …` more, of the best value that each run ever had.

    Raises:
        TypeError: one of them is of another type.
        ValueError: a metric was recorded by none of them, `over` names no configuration of theirs, or a direction is
            none.
    """
    check_texts(metrics=metrics, config=config, over=over)
    best = check_directions(best={} if best is None else best)
    last = {name: record.last() for name, record in records.items()}
    configs = {name: record.flat_config for name, record in records.items()}
    known = list(dict.fromkeys(key for values in last.values() for key in values if key not in ("step", "time")))
    for name, wanted in (("metrics", metrics), ("best", best)):
        for key in wanted:
            if key in known:
                continue
            raise ValueError(f"{name} must be recorded ones ({', '.join(known) or 'none'}), got {key!r}")
    differing = [
        key
        for key in dict.fromkeys(key for values in configs.values() for key in values)
        if len({repr(values.get(key)) for values in configs.values()}) > 1
    ]
    every = {key for values in configs.values() for key in values}
    for key in over:
        if key not in every:
            raise ValueError(f"over must name configuration ({', '.join(sorted(every)) or 'none'}), got {key!r}")
    keys, options = list(metrics) or known, list(config) or [key for key in differing if key not in over]
    bests = {
        name: _bests(record, {key: best[key] for key in best if key in last[name]}) for name, record in records.items()
    }
    columns = [*((last, key) for key in keys), *((bests, key) for key in best)]
    rows = []
    groups = _groups(configs, over)
    for title, names in zip(_titles(groups), groups, strict=True):
        states = dict.fromkeys(records[name].state for name in names)
        values = [[found[name][key] for name in names if key in found[name]] for found, key in columns]
        told = [(Spread.of(one) if over else one[0]) if one else None for one in values]
        step = max((last[name]["step"] for name in names if "step" in last[name]), default=None)
        rows.append([title, ", ".join(states), step, *map(configs[names[0]].get, options), *told])
    heads = ["trial", "state", "step", *options, *keys, *(f"best {key}" for key in best)]
    together = {str(row[0]): names for row, names in zip(rows, groups, strict=True)}
    return Comparison(records, heads, rows, keys, path or Path("comparison.png"), together)


def _bests(record: Record, directions: Mapping[str, str]) -> dict[str, float]:
    """Returns the best value that a run ever had of some metrics; NaN where none was a number."""
    metrics = record.metrics() if directions else {}
    pick = {"min": np.fmin, "max": np.fmax}
    return {key: float(pick[direction].reduce(metrics[key].values)) for key, direction in directions.items()}


def _groups(configs: Mapping[str, Mapping[str, Any]], over: Sequence[str]) -> list[list[str]]:
    """Returns the names of trials that are told in one row."""
    if not over:
        return [[name] for name in configs]
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        rest = {key: value for key, value in config.items() if key not in over}
        groups.setdefault(repr(sorted(rest.items(), key=lambda item: item[0])), []).append(name)
    return list(groups.values())


def _titles(groups: Sequence[Sequence[str]]) -> list[str]:
    """Returns what each row is called: what its names have in common, or all of them where two rows would share it."""
    common = [_common(names) for names in groups]
    return [one if common.count(one) == 1 else ", ".join(names) for one, names in zip(common, groups, strict=True)]


def _common(names: Sequence[str]) -> str:
    """Returns what names have in common, without what hangs on to it: `a/lr0.1-` of `a/lr0.1-0` and `a/lr0.1-1`."""
    if len(names) == 1:
        return names[0]
    first, last = min(names), max(names)
    n = next((index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:n].rstrip("-_./= ") or names[0]
