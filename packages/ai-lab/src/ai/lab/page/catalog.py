"""Every trial under a root as the page needs it, kept in memory and brought up to date by what changed on disk.

A look at the root costs a `stat` a folder; only folders that changed are read again, and only rows that changed told.
"""

import contextlib
import hashlib
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ai.data.workers.error_text import error_text
from ai.lab.config import flatten
from ai.lab.files.folder import read_marker
from ai.lab.files.load import DamagedError, is_step, load_json
from ai.lab.files.marks import MARKS, load_marks
from ai.lab.files.metrics_index import last_values
from ai.lab.files.ownership import FILE as OWNER
from ai.lab.files.ownership import holder
from ai.lab.page.curve_cache import CurveCache
from ai.lab.record import CONFIG, EXPERIMENT, META, METRICS, Column, Record, live_state, load_config, load_meta

SETTLED_NS = 2 * 10**9
"""A change this soon after another may carry the same time: what is so young is read again."""


ASKED_AT_ONCE = 200
"""Of so many trials each look asks whether a file was edited in its place, which changes no folder."""


class _Folder(NamedTuple):
    """What was found in a folder when its time was `stamp`."""

    stamp: int
    settled: bool
    marker: dict[str, Any] | None
    problem: str | None
    children: tuple[str, ...]


class _Stamps(NamedTuple):
    """What changes on disk when a trial does: the folder's time and place, time and size of two files in it."""

    folder: int
    path: str
    metrics: tuple[int, int] | None = None
    owner: tuple[int, int] | None = None


class _Row(NamedTuple):
    """A row as it is told, with the version that it came with and what it was made from."""

    version: int
    stamps: _Stamps
    read_ns: int
    row: dict[str, Any]


class Catalog:
    """The trials under `root`, by identity.

    Args:
        root: A folder; it may appear later.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, _Folder] = {}
        self._trials: dict[str, tuple[str, dict[str, Any]]] = {}  # path and marker
        self._rows: dict[str, _Row] = {}
        self._gone: dict[str, int] = {}
        self._experiments: dict[str, dict[str, Any]] = {}
        self._places: dict[str, Path] = {}
        self._version = 0
        self._asked = 0
        self._epoch = secrets.token_hex(8)
        self._curves = CurveCache()
        self._lock = threading.Lock()

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row a trial, newest first: id, name, state, created, step, config, metrics, score, problems."""
        rows: list[dict[str, Any]] = self.changes(-1)["trials"]
        return rows

    def changes(self, since: int) -> dict[str, Any]:
        """Returns the rows that changed after version `since`, newest first, which are gone, and the version now.

        Versions are those of one catalog, named by `epoch`.
        """
        with self._lock:
            self._refresh()
            rows = [kept.row for kept in self._rows.values() if kept.version > since]
            gone = [identity for identity, version in self._gone.items() if version > since]
            rows.sort(key=lambda row: (-(row["created"] or 0), row["name"]))
            told = {"epoch": self._epoch, "version": self._version}
            return {**told, "trials": rows, "gone": gone, "experiments": self._experiments}

    def experiments(self) -> dict[str, dict[str, Any]]:
        """Returns name, direction and seeds of the experiments of the rows of the last call, by identity."""
        return dict(self._experiments)

    def experiment_path(self, identity: str) -> Path:
        """Returns the folder of an experiment by its identity.

        Raises:
            KeyError: there is none.
        """
        if identity not in self._places:
            self.changes(-1)
        return self._places[identity]

    def record(self, identity: str) -> Record:
        """Returns a trial by its identity.

        Raises:
            KeyError: there is none.
        """
        if identity not in self._trials or not os.path.exists(self._trials[identity][0]):
            self.changes(-1)
        return Record(*self._trials[identity])

    def columns(self, identity: str, file: str = METRICS) -> dict[str, Column]:
        """Returns a trial's metrics; only what was appended since the last call is read."""
        return self.named_columns(identity, file)[1]

    def damaged_lines(self, identity: str, file: str = METRICS) -> int:
        """Returns how many lines of a trial's metrics are damaged."""
        return self._curves.damaged(self.record(identity).path / file)

    def named_columns(self, identity: str, file: str) -> tuple[str, dict[str, Column]]:
        """Returns a trial's metrics, with a name that they have as long as they only grow."""
        name, columns = self._curves.named(self.record(identity).path / file)
        return name, {key: Column(*column) for key, column in columns.items()}

    def smoothed(self, identity: str, file: str, name: str, key: str, values: np.ndarray, weight: float) -> np.ndarray:
        """Returns the moving average of a metric that came with a name; only what is new is averaged."""
        return self._curves.smoothed(self.record(identity).path / file, name, key, values, weight)

    def config(self, record: Record) -> dict[str, Any]:
        """Returns a trial's configuration with dotted names, and the hyper-parameters that a search chose."""
        return record.flat_config

    # -- what changed

    def _refresh(self) -> None:
        trials: dict[str, tuple[str, dict[str, Any]]] = {}
        experiments: dict[str, dict[str, Any]] = {}
        places: dict[str, Path] = {}
        seen: set[str] = set()
        self._version += 1
        edited = self._edited()
        for path, folder in self._walk(str(self.root), self._folders, {}):
            marker = folder.marker
            if marker is None:
                if folder.problem is not None:
                    identity = f"damaged-{hashlib.sha1(os.fsencode(path)).hexdigest()[:16]}"
                    self._keep(identity, path, folder, edited)
                    seen.add(identity)
            elif marker["kind"] == "experiment":
                experiments[marker["id"]] = {"name": self._name(path), **_described(Path(path))}
                places[marker["id"]] = Path(path)
            elif marker["kind"] == "trial" and marker["id"] not in trials:  # of a copied folder the first is shown
                trials[marker["id"]] = (path, marker)
                if self._keep(marker["id"], path, folder, edited):
                    seen.add(marker["id"])
        self._trials, self._places = trials, places
        for identity in [one for one in self._rows if one not in seen]:
            self._curves.forget(Path(self._rows.pop(identity).stamps.path))
            self._gone[identity] = self._version
        if experiments != self._experiments:
            self._experiments = experiments

    def _walk(self, path: str, known: dict[str, _Folder], fresh: dict[str, _Folder]) -> Iterator[tuple[str, _Folder]]:
        """Yields the marked folders, each before those inside it, read only where their time changed."""
        stack = [path]
        while stack:
            path = stack.pop()
            try:
                stamp = os.stat(path).st_mtime_ns
            except OSError:
                continue
            folder = known.get(path)
            if folder is None or folder.stamp != stamp or not folder.settled:
                folder = _look(path, stamp)
            fresh[path] = folder
            if folder.marker is not None or folder.problem is not None:
                yield path, folder
            stack.extend(reversed(folder.children))
        self._folders = fresh

    def _edited(self) -> set[str]:
        """Returns those of the next few rows of which a small file was changed in its place since it was read."""
        names = list(self._rows)
        begin = self._asked if self._asked < len(names) else 0
        self._asked = begin + ASKED_AT_ONCE
        return {name for name in names[begin : self._asked] if _is_edited(self._rows[name])}

    def _keep(self, identity: str, path: str, folder: _Folder, edited: set[str]) -> bool:
        """Brings a trial's row up to date, and returns whether it has one: what was only constructed is no run."""
        known = self._rows.get(identity)
        if known is not None and folder.settled and identity not in edited and _is_told(known, path, folder):
            return True
        stamps, read_ns = _Stamps(folder.stamp, path), time.time_ns()
        try:
            if folder.marker is None:
                raise DamagedError(folder.problem)
            meta, problems = load_meta(path)
            # Each stamp is taken before what it tells of is read: what comes later is new.
            # What has ended changes its folder, and whoever goes on with a dead trial its owner.
            is_open = meta.get("state", "created") in ("running", "created")
            owner = _stamp(f"{path}/{OWNER}") if is_open else None
            state = live_state(path, meta) if meta or not problems else "damaged"
            metrics = _stamp(f"{path}/{METRICS}") if is_open and state != "dead" else None
            stamps = _Stamps(folder.stamp, path, metrics, owner)
            if is_open and known is None and not meta and not problems and metrics is None:
                return False
            row = self._row(identity, path, state, meta, problems)
        except Exception as error:  # whatever one record holds, the others are shown
            problem = folder.problem or error_text(error)
            row = {**_EMPTY, "id": identity, "name": self._name(path), "path": path, "problems": [problem]}
        changed = known is None or known.row != row
        self._rows[identity] = _Row(self._version if known is None or changed else known.version, stamps, read_ns, row)
        self._gone.pop(identity, None)
        return True

    def _last(self, path: str, state: str) -> dict[str, float]:
        """Returns each metric's last value; of a run that goes on only what was appended is read."""
        return self._curves.last(Path(path, METRICS)) if state == "running" else last_values(f"{path}/{METRICS}")

    def _name(self, path: str) -> str:
        root = str(self.root)
        return path[len(root) :].lstrip("/") if path != root else os.path.basename(path)

    def _row(
        self, identity: str, path: str, state: str, meta: Mapping[str, Any], problems: list[str]
    ) -> dict[str, Any]:
        """Returns a trial's row, plain in every part."""
        config: dict[str, Any] = {}
        try:
            config = flatten(load_config(path, meta))
        except (OSError, ValueError) as error:
            problems = [*problems, str(error)]
        session = (meta.get("sessions") or [{}])[-1]
        git = session.get("git") or {}
        hparams = flatten(meta.get("hparams") or {})
        told = meta.get("last")
        last = plain(dict(told) if told is not None else self._last(path, state))
        marks, wrong = load_marks(path)
        repeated = {"seed": meta["seed"]} if meta.get("seed") is not None else {}  # which run of its configuration
        return {
            "id": identity,
            "name": self._name(path),
            "path": path,
            "state": state,
            "created": meta.get("created"),
            "updated": last.pop("time", None),
            "step": last.pop("step", None),
            "steplimit": meta.get("steplimit"),
            "score": plain(meta.get("score")) if state == "finished" else None,
            "experiment": meta.get("experiment"),
            "number": meta.get("number"),
            "commit": (git.get("commit") or "")[:10],
            "config": {key: short(value) for key, value in {**repeated, **config, **hparams}.items()},
            "hparams": {key: short(value) for key, value in hparams.items()},
            "metrics": last,
            "tags": marks["tags"],
            "note": short(marks["note"]),
            "problems": [*problems, *wrong],
        }


def _is_told(known: _Row, path: str, folder: _Folder) -> bool:
    """Whether a row still tells what is on disk."""
    state, stamps = known.row["state"], known.stamps
    if (stamps.folder, stamps.path) != (folder.stamp, path):
        return False
    if state == "dead":  # whoever goes on with it writes its name first
        is_settled = stamps.owner is None or stamps.owner[0] < time.time_ns() - SETTLED_NS
        return is_settled and stamps.owner == _stamp(f"{path}/{OWNER}")
    if state in ("running", "created") and stamps.metrics != _stamp(f"{path}/{METRICS}"):
        return False
    return state != "running" or holder(path) is not None  # a killed process changes no file


def _is_edited(known: _Row) -> bool:
    for name in (META, CONFIG, MARKS):
        with contextlib.suppress(OSError):
            if os.stat(f"{known.stamps.path}/{name}").st_ctime_ns > known.read_ns:
                return True
    return False


_EMPTY: dict[str, Any] = {
    "state": "damaged",
    "created": None,
    "updated": None,
    "step": None,
    "steplimit": None,
    "score": None,
    "experiment": None,
    "number": None,
    "commit": "",
    "config": {},
    "hparams": {},
    "metrics": {},
    "tags": [],
    "note": "",
}


def _look(path: str, stamp: int) -> _Folder:
    """Reads a folder's marker, and what is inside where it is no trial's."""
    settled = stamp < time.time_ns() - SETTLED_NS
    marker, problem = None, None
    try:
        marker = read_marker(path)
    except (OSError, ValueError) as error:
        problem = str(error)
    children: list[str] = []
    if marker is None or marker["kind"] != "trial":
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            children = sorted(
                entry.path for entry in entries if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)
            )
    return _Folder(stamp, settled, marker, problem, tuple(children))


def _described(path: Path) -> dict[str, Any]:
    """Returns an experiment's direction, and how often each configuration is run."""
    described: dict[str, Any] = {}
    with contextlib.suppress(OSError, DamagedError):
        described = load_json(path / EXPERIMENT)
    seeds = described.get("seeds")
    return {
        "direction": "max" if described.get("direction") == "max" else "min",
        "seeds": seeds if is_step(seeds) else 1,
    }


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: what is not finite becomes text."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else repr(value)
    if kind is dict:
        return {key: item if type(item) in _PLAIN else plain(item) for key, item in value.items()}
    if kind is list:
        return [plain(item) for item in value]
    return value


_PLAIN = (str, int, bool, type(None))
_NUMBERS = (float, int, bool)


def short(value: Any, length: int = 200) -> Any:
    """Returns a value as JSON can hold it, long text cut, with a digest of all of it."""
    if type(value) is int and abs(value) >= 2**53:  # a browser has no such number: a seed would be another
        return str(value)
    if type(value) in _NUMBERS or value is None:
        return plain(value)
    text = str(value)
    if len(text) <= length:
        return text
    # Two long texts stay two: runs are told apart, and put together, by what they show here.
    digest = hashlib.sha1(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{text[: length - 10]}… {digest}"


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size)
