"""A trial's folder as a reader sees it, from anywhere, also while it runs. A reader writes nothing but tags."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ai.data.storage.paths import expanded
from ai.lab.config import flatten
from ai.lab.configuration.yaml_file import read_yaml
from ai.lab.files.folder import read_marker
from ai.lab.files.load import META as META_TYPES
from ai.lab.files.load import load_json, load_typed, read_small
from ai.lab.files.marks import change_marks, load_marks
from ai.lab.files.metrics_columns import read_columns
from ai.lab.files.metrics_index import last_values, read_indexed, read_indexed_table
from ai.lab.files.ownership import holder

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

META, CONFIG, METRICS, SYSTEM, LOG = "meta.json", "config.yaml", "metrics.jsonl", "system.jsonl", "log.txt"
SNAPSHOTS, SAMPLES, MEDIA = "snapshots", "samples", "media"
EXPERIMENT = "experiment.json"
MEDIA_TYPES = {
    ".png": "image/png",
    ".json": "application/json",
    ".txt": "text/plain",
    ".jpg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".flac": "audio/flac",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}
"""What a trial keeps besides numbers, by suffix; nothing of it runs in a browser."""


class Column(NamedTuple):
    """One metric over a run: `steps` int64, `times` (seconds since the epoch) and `values` float64, each `(n,)`."""

    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray


class Metrics(Mapping[str, Column]):
    """A trial's metrics by name, in the order of writing.

    Example:
        >>> columns = {"loss": (np.array([0, 9]), np.array([1.0, 2.0]), np.array([0.5, 0.25]))}
        >>> Metrics(columns)["loss"].values.tolist()
        [0.5, 0.25]
    """

    def __init__(self, columns: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        if not isinstance(columns, Mapping):
            raise TypeError(f"columns must be arrays of steps, times and values by name, got {columns!r}")
        for key, column in columns.items():
            if len(column) != 3 or len({len(part) for part in column}) != 1:
                raise ValueError(f"columns[{key!r}] must be steps, times and values of one length, got {column!r}")
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
        return {key: float(column.values[-1]) for key, column in self._columns.items() if len(column.values)}

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
        marker: What its marker file holds, where that is known.

    Raises:
        TypeError: `path` is neither text nor a path.
        FileNotFoundError: it is no trial's.
    """

    def __init__(self, path: str | Path, marker: Mapping[str, Any] | None = None) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"path must be text or a pathlib.Path, got {path!r}")
        self.path = expanded(path)
        marker = marker or read_marker(self.path)
        if marker is None or marker["kind"] != "trial":
            raise FileNotFoundError(f"{self.path} is no recorded trial")
        self.id: str = marker["id"]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def meta(self) -> dict[str, Any]:
        """What `meta.json` holds; empty while it is not yet written, without what is damaged (`problems` says what).

        What a session keeps in files of its own, its packages and diff, is read with it.
        """
        meta = self.load_meta()[0]
        if "sessions" in meta:
            meta["sessions"] = [self._whole(session) for session in meta["sessions"] or []]
        return meta

    def _whole(self, session: Mapping[str, Any]) -> dict[str, Any]:
        session = {name: value for name, value in session.items() if value is not None}
        if (name := session.get("packages_file")) is not None:
            with contextlib.suppress(OSError, ValueError):
                session["packages"] = load_json(self.inside(name))
        if "git" in session:
            git = session["git"] = {name: value for name, value in session["git"].items() if value is not None}
            if (name := git.get("diff_file")) is not None:
                with contextlib.suppress(OSError, ValueError):
                    git["diff"] = self.inside(name).read_bytes().decode(errors="replace")
        return session

    def inside(self, name: str) -> Path:
        """Returns a file of the folder that its metadata names.

        Raises:
            ValueError: the name leads out of the folder.
        """
        path = Path(os.path.normpath(self.path / name))
        if self.path not in path.parents:
            raise ValueError(f"{name!r} leads out of {self.path}")
        return path

    def load_meta(self) -> tuple[dict[str, Any], list[str]]:
        """Returns what `meta.json` holds, and what is wrong with it."""
        return load_meta(self.path)

    def problems(self) -> list[str]:
        """Returns what is damaged in the folder's small files, and in the metrics; empty if all is well."""
        problems = list(self.load_meta()[1])
        try:
            self.config  # noqa: B018  (reading it is the test)
        except (OSError, ValueError) as error:
            problems.append(str(error))
        damaged = read_indexed_table(self.path / METRICS).damaged
        return problems + ([f"{METRICS}: {damaged} damaged line{'s' if damaged > 1 else ''}"] if damaged else [])

    @property
    def state(self) -> str:
        """`created`, `running`, `finished`, `stopped`, `pruned`, `interrupted`, `failed`, or `dead` (killed)."""
        return live_state(self.path, self.meta)

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration, empty without one, as YAML has it: tuples are lists, paths text.

        The dataclass makes of it what it was: `Train.from_dict(record.config)`.
        """
        return self.load_config(self.meta)

    def load_config(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the recorded configuration: the copy in `meta`, which is read faster, unless the file was edited."""
        return load_config(self.path, meta)

    @property
    def flat_config(self) -> dict[str, Any]:
        """The configuration with dotted names, and the hyper-parameters that a search chose."""
        meta = self.meta
        try:
            config = flatten(self.load_config(meta))
        except (OSError, ValueError):
            config = {}
        return {**config, **flatten(meta.get("hparams") or {})}

    def metrics(self) -> Metrics:
        """Returns all metrics."""
        return Metrics(read_indexed(self.path / METRICS))

    def last(self) -> dict[str, float]:
        """Returns each metric's last value, `step` and `time`."""
        told = self.load_meta()[0].get("last")
        return dict(told) if told is not None else last_values(self.path / METRICS)

    def system(self) -> Metrics:
        """Returns the system metrics."""
        return Metrics(read_columns(self.path / SYSTEM))

    @property
    def tags(self) -> list[str]:
        """What the trial was tagged with."""
        tags: list[str] = load_marks(self.path)[0]["tags"]
        return tags

    def tag(self, *tags: str, remove: Sequence[str] = ()) -> list[str]:
        """Adds tags and removes others, and returns those that are there now; also of a running trial.

        Raises:
            TypeError: `remove` is a text instead of a list.
            ValueError: a tag is not one word.
        """
        now: list[str] = change_marks(self.path, add=tags, remove=remove)["tags"]
        return now

    def samples(self) -> dict[int, Path]:
        """Returns the sample pages by step, ascending."""
        folder = self.path / SAMPLES
        if not folder.is_dir():
            return {}
        return {int(path.stem): path for path in sorted(folder.glob("*.png")) if path.stem.isdecimal()}

    def media(self) -> dict[str, dict[int, Path]]:
        """Returns the files that `Trial.keep` wrote: by name, then by step, ascending."""
        found: dict[str, dict[int, Path]] = {}
        for path in sorted((self.path / MEDIA).glob("*/*")):
            if path.parent.name.isdecimal() and path.suffix in MEDIA_TYPES:
                found.setdefault(path.stem, {})[int(path.parent.name)] = path
        return found

    def snapshots(self) -> dict[int, Path]:
        """Returns the committed snapshots by step, ascending."""
        folder = self.path / SNAPSHOTS
        if not folder.is_dir():
            return {}
        found = (path for path in folder.iterdir() if path.name.isdecimal() and (path / "manifest.json").is_file())
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


def load_meta(folder: Path | str) -> tuple[dict[str, Any], list[str]]:
    """Returns what a trial's `meta.json` holds, and what is wrong with it; nothing where there is none."""
    try:
        return load_typed(f"{folder}/{META}", META_TYPES)
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        return {}, [f"{META} cannot be read: {error.strerror}"]


def load_config(folder: Path | str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a trial's configuration: the copy in `meta`, which is read faster, unless the file was edited."""
    try:
        data = read_small(f"{folder}/{CONFIG}")
    except FileNotFoundError:
        return {}
    copy = meta.get("config") or {}
    if copy.get("sha1") == hashlib.sha1(data).hexdigest() and isinstance(copy.get("values"), dict):
        return dict(copy["values"])
    return read_yaml(Path(folder, CONFIG))


def live_state(folder: Path | str, meta: Mapping[str, Any]) -> str:
    """Returns the state that `meta` tells, `dead` where it says running and no process is."""
    state = str(meta.get("state", "created"))
    if state == "running" and holder(folder) is None:
        return "dead"
    return state


def was_opened(path: Path | str) -> bool:
    """Returns whether anything was ever recorded in a trial's folder: one that was only constructed is no run."""
    return os.path.exists(f"{path}/{META}") or os.path.exists(f"{path}/{METRICS}")
