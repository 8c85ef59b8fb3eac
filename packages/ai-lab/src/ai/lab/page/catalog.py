"""Every trial under a root as the page needs it, kept in memory and brought up to date by what changed on disk."""

import contextlib
import json
import math
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from ai.lab.config import flatten, read_yaml
from ai.lab.files.folder import find, read_marker
from ai.lab.files.metrics_file import last_values, read_lines
from ai.lab.files.metrics_index import load_columns
from ai.lab.record import CONFIG, EXPERIMENT, META, METRICS, Column, Record, live_state

CACHED_BYTES = 512 << 20
"""So much memory the columns of metrics may take before the least recently used are let go."""


class Catalog:
    """The trials under `root`, by identity.

    Args:
        root: A folder; it may appear later.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records: dict[str, Record] = {}
        self._experiments: dict[str, dict[str, str]] = {}
        self._rows: dict[str, tuple[tuple[object, ...], dict[str, Any]]] = {}
        self._configs: dict[str, tuple[object, dict[str, Any]]] = {}
        self._columns: OrderedDict[tuple[str, str], _Tail] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row a trial, newest first: id, name, state, created, step, config, metrics, score, version."""
        with self._lock:
            records: dict[str, Record] = {}
            experiments: dict[str, dict[str, str]] = {}
            for path in find(self.root):
                with contextlib.suppress(OSError, ValueError):  # deleted in this moment
                    marker = read_marker(path) or {}
                    if marker.get("kind") == "experiment":
                        experiments[marker["id"]] = {"name": self._name(path), "direction": _direction(path)}
                    elif marker.get("kind") == "trial":
                        record = self._known(path, marker["id"])
                        records.setdefault(record.id, record)  # of a copied folder the first is shown
            self._records, self._experiments = records, experiments
            self._configs = {identity: kept for identity, kept in self._configs.items() if identity in records}
            self._rows = {identity: self._row(record) for identity, record in records.items()}
            rows = [row for _, row in self._rows.values()]
        return sorted(rows, key=lambda row: (-(row["created"] or 0), row["name"]))

    def experiments(self) -> dict[str, dict[str, str]]:
        """Returns name and direction of the experiments that the rows of the last call belong to, by identity."""
        return dict(self._experiments)

    def record(self, identity: str) -> Record:
        """Returns a trial by its identity.

        Raises:
            KeyError: there is none.
        """
        if identity not in self._records or not self._records[identity].path.exists():
            self.rows()
        return self._records[identity]

    def columns(self, identity: str, file: str = METRICS) -> dict[str, Column]:
        """Returns a trial's metrics; only what was appended since the last call is read."""
        path = self.record(identity).path / file
        with self._lock:
            return self._read(identity, path)

    def _read(self, identity: str, path: Path) -> dict[str, Column]:
        tail = self._columns.setdefault((identity, path.name), _Tail(path))
        if tail.path != path:
            tail = self._columns[identity, path.name] = _Tail(path)
        self._columns.move_to_end((identity, path.name))
        tail.update()
        while len(self._columns) > 1 and sum(one.nbytes for one in self._columns.values()) > CACHED_BYTES:
            self._columns.popitem(last=False)
        return tail.columns()

    def _last(self, record: Record, meta: dict[str, Any]) -> dict[str, float]:
        """A trial's last values: a closed one tells them, of a live or killed one the file is read, once."""
        if "last" in meta:
            return dict(meta["last"])
        columns = self._read(record.id, record.path / METRICS)
        rows = last_values(record.path / METRICS, 1 << 14)
        return {**rows, **{key: float(column.values[-1]) for key, column in columns.items()}}

    def config(self, record: Record) -> dict[str, Any]:
        """Returns a trial's configuration with dotted names, and the hyper-parameters that a search chose."""
        return {**self._config(record), **flatten(record.meta.get("hparams") or {})}

    def _config(self, record: Record) -> dict[str, Any]:
        stamp = _stamp(record.path / CONFIG)
        known = self._configs.get(record.id)
        if known is None or known[0] != stamp:
            known = (stamp, {})
            with contextlib.suppress(OSError, ValueError):  # none, or damaged
                known = (stamp, flatten(read_yaml(record.path / CONFIG)))
            self._configs[record.id] = known
        return known[1]

    def _known(self, path: Path, identity: str) -> Record:
        known = self._records.get(identity)
        return known if known is not None and known.path == path else Record(path)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path != self.root else path.name

    def _row(self, record: Record) -> tuple[tuple[object, ...], dict[str, Any]]:
        version = tuple(_stamp(record.path / name) for name in (META, CONFIG, METRICS))
        known = self._rows.get(record.id)
        if known is not None and known[0] == version and known[1]["path"] == str(record.path):
            row = known[1]
            if row["state"] in ("running", "dead"):  # a killed process changes no file
                row = {**row, "state": live_state(record.path, {"state": "running"})}
            return version, row
        meta = record.meta
        last = self._last(record, meta)
        session = (meta.get("sessions") or [{}])[-1]
        git = session.get("git") or {}
        hparams = meta.get("hparams") or {}
        row = {
            "id": record.id,
            "name": self._name(record.path),
            "path": str(record.path),
            "state": live_state(record.path, meta),
            "created": meta.get("created"),
            "updated": last.pop("time", None),
            "step": last.pop("step", None),
            "steplimit": meta.get("steplimit"),
            "score": meta.get("score"),
            "experiment": meta.get("experiment"),
            "commit": (git.get("commit") or "")[:10],
            "config": {key: short(value) for key, value in {**self._config(record), **hparams}.items()},
            "hparams": {key: short(value) for key, value in hparams.items()},
            "metrics": {key: plain(value) for key, value in last.items()},
        }
        return version, row


def _direction(path: Path) -> str:
    found = json.loads((path / EXPERIMENT).read_bytes())
    return "max" if found.get("direction") == "max" else "min"


class _Tail:
    """A metrics file's columns, extended by what is appended to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._inode = -1
        self._parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}

    def update(self) -> None:
        from ai.lab.files.metrics_file import parse_rows, to_columns

        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return
        if status.st_size < self._read or (self._inode not in (-1, status.st_ino)):
            self._read, self._parts = 0, {}  # cut by a resumed run, or written anew
        if self._read == 0:
            columns, self._read = load_columns(self.path)
            self._parts = {key: [column] for key, column in columns.items()}
        self._inode = status.st_ino
        if status.st_size == self._read:
            return
        lines = read_lines(self.path, self._read)
        self._read += len(lines)
        for key, part in to_columns(parse_rows(lines)).items():
            self._parts.setdefault(key, []).append(part)

    def columns(self) -> dict[str, Column]:
        for key, parts in self._parts.items():
            if len(parts) > 1:
                self._parts[key] = [tuple(map(np.concatenate, zip(*parts, strict=True)))]  # type: ignore[list-item]
        return {key: Column(*parts[0]) for key, parts in self._parts.items()}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for parts in self._parts.values() for part in parts for array in part)


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: what is not finite becomes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def short(value: Any, length: int = 200) -> Any:
    """Returns a value as JSON can hold it, long text cut."""
    if isinstance(value, bool | int | float) or value is None:
        return plain(value)
    text = str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size)
