"""A trial's folder as a reader sees it. Nothing here writes, so that a running trial can be read from anywhere."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ai.lab.config import flatten, read_yaml
from ai.lab.files import metrics_file as metrics
from ai.lab.files.folder import read_marker
from ai.lab.files.metrics_index import read_indexed
from ai.lab.files.ownership import holder

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

META, CONFIG, METRICS, SYSTEM, LOG = "meta.json", "config.yaml", "metrics.jsonl", "system.jsonl", "log.txt"
SNAPSHOTS, SAMPLES = "snapshots", "samples"
EXPERIMENT = "experiment.json"


class Column(NamedTuple):
    """One metric over a run: `steps` int64, `times` (seconds since the epoch) and `values` float64, each `(n,)`."""

    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray


class Metrics(Mapping[str, Column]):
    """A trial's metrics by name, in the order of writing.

    Example:
        >>> rows = [{"step": 0, "time": 1.0, "loss": 0.5}, {"step": 9, "time": 2.0, "loss": 0.25}]
        >>> Metrics(metrics.to_columns(rows))["loss"].values.tolist()
        [0.5, 0.25]
    """

    def __init__(self, columns: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        self._columns = {key: Column(*column) for key, column in columns.items()}

    def __getitem__(self, key: str) -> Column:
        if key not in self._columns:
            raise KeyError(f"no metric {key!r}; recorded are: {', '.join(self._columns) or 'none'}")
        return self._columns[key]

    def __contains__(self, key: object) -> bool:
        return key in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Metrics({', '.join(f'{key}: {len(column.steps)}' for key, column in self._columns.items())})"

    def last(self) -> dict[str, float]:
        """Returns each metric's last value."""
        return {key: float(column.values[-1]) for key, column in self._columns.items()}

    def frame(self) -> "pd.DataFrame":
        """Returns a DataFrame with one row a step and one column a metric (the last value of a step counts).

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Metrics.frame needs pandas: pip install pandas", name="pandas") from error
        series = {key: pd.Series(c.values, c.steps).groupby(level=0).last() for key, c in self._columns.items()}
        return pd.DataFrame(series).rename_axis("step")

    def _repr_html_(self) -> str | None:
        with contextlib.suppress(ModuleNotFoundError):
            return str(self.frame().to_html(max_rows=20))
        return None


class Record:
    """A recorded trial, for reading.

    Args:
        path: The trial's folder.

    Raises:
        FileNotFoundError: it is no trial's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        marker = read_marker(self.path)
        if marker is None or marker["kind"] != "trial":
            raise FileNotFoundError(f"{self.path} is no recorded trial")
        self.id: str = marker["id"]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def meta(self) -> dict[str, Any]:
        """What `meta.json` holds; empty while it is not yet written."""
        try:
            found = json.loads((self.path / META).read_bytes())
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    @property
    def state(self) -> str:
        """`created`, `running`, `finished`, `stopped`, `pruned`, `interrupted`, `failed`, or `dead` (killed)."""
        return live_state(self.path, self.meta)

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration, empty without one."""
        path = self.path / CONFIG
        return read_yaml(path) if path.exists() else {}

    @property
    def flat_config(self) -> dict[str, Any]:
        """The configuration with dotted names, and the hyper-parameters that a search chose."""
        try:
            config = flatten(self.config)
        except ValueError:
            config = {}
        return {**config, **flatten(self.meta.get("hparams") or {})}

    def metrics(self) -> Metrics:
        """Returns all metrics."""
        return Metrics(read_indexed(self.path / METRICS))

    def last(self, tail_bytes: int = 1 << 16) -> dict[str, float]:
        """Returns each metric's last value, `step` and `time`.

        Of a trial that has not ended in good order only the file's last `tail_bytes` are read, so that a metric that is
        rarely logged may be missing.
        """
        told = self.meta.get("last")
        return dict(told) if told is not None else metrics.last_values(self.path / METRICS, tail_bytes)

    def system(self) -> Metrics:
        """Returns the system metrics."""
        return Metrics(metrics.read_columns(self.path / SYSTEM))

    def samples(self) -> dict[int, Path]:
        """Returns the sample pages by step, ascending."""
        folder = self.path / SAMPLES
        if not folder.is_dir():
            return {}
        return {int(path.stem): path for path in sorted(folder.glob("*.png")) if path.stem.isdigit()}

    def snapshots(self) -> dict[int, Path]:
        """Returns the committed snapshots by step, ascending."""
        folder = self.path / SNAPSHOTS
        if not folder.is_dir():
            return {}
        found = (path for path in folder.iterdir() if path.name.isdigit() and (path / "manifest.json").is_file())
        return {int(path.name): path for path in sorted(found)}

    def log_text(self, limit_bytes: int = 1 << 16) -> str:
        """Returns the end of `log.txt`."""
        try:
            with open(self.path / LOG, "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - limit_bytes))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


def live_state(folder: Path, meta: Mapping[str, Any]) -> str:
    """Returns the state that `meta` tells, `dead` where it says running and no process is."""
    state = str(meta.get("state", "created"))
    if state == "running" and holder(folder) is None:
        return "dead"
    return state
