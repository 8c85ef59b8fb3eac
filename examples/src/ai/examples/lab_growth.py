"""What the lab's records cost as they grow, in CPU seconds and bytes: lists of trials, long runs, many prints.

Run: `python -m ai.examples.reproduce lab-growth`, on Linux. Stopped and run again at the same commit, it goes on.
"""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai.examples.reproduce import surroundings
from ai.lab import Trial
from ai.lab.files.folder import lab_root

_DIGITS = 4


def reproduce(*, trials: int = 10_000, rows: int = 1_000_000, writes: int = 100_000, seed: int = 0) -> dict[str, float]:
    """Measures each at a hundredth, a tenth and the whole of the sizes given, each size in a process of its own.

    `… exponent` is the slope over the two decades: 1 is linear. What is measured is kept until all is. `seed` changes
    nothing: nothing is drawn.
    """
    parts = {"list": trials, "finished": trials, "row": rows, "write": writes, "overlay": 10_000}
    once = ("finished", "overlay")
    steps = {name: [n] if name in once else [max(1, n // 100), max(1, n // 10), n] for name, n in parts.items()}
    kept = _Kept(lab_root() / "reproduce" / "lab-growth.part.json")
    figures: dict[str, float] = {}
    for name, sizes in steps.items():
        found = [kept.figures(name, size) for size in sizes]
        for size, told in zip(sizes, found, strict=True):
            figures |= {f"{key} at {size}": round(value, _DIGITS) for key, value in told.items()}
        for key in found[0]:
            small, large = found[0][key], found[-1][key]
            if key.endswith("_s") and len(sizes) > 1 and min(small, large) > 0:
                figures[f"{key} exponent"] = round(math.log(large / small) / math.log(sizes[-1] / sizes[0]), 2)
    kept.forget()
    return figures


class _Kept:
    """Figures measured before this was stopped, of the same code."""

    def __init__(self, path: Path) -> None:
        self._path, self._commit = path, surroundings()["commit"]
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(path.read_text("utf-8"))
            self._found: dict[str, dict[str, float]] = told["found"] if told["commit"] == self._commit else {}
            return
        self._found = {}

    def figures(self, name: str, size: int) -> dict[str, float]:
        key = f"{name} at {size}"
        if key not in self._found:
            self._found[key] = _apart(name, size)
            print(key, self._found[key], file=sys.stderr, flush=True)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"commit": self._commit, "found": self._found}), encoding="utf-8")
        return self._found[key]

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)


def _apart(name: str, size: int) -> dict[str, float]:
    command = [sys.executable, "-m", __spec__.name, name, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} at {size} failed:\n{done.stderr[-2000:]}")
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def _cpu_s(do: Callable[[], object]) -> float:
    begun = time.process_time()
    do()
    return time.process_time() - begun


def _memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def killed_list(root: Path, n: int) -> dict[str, float]:
    """A list of killed trials, the dearest kind: their owners are looked for each time."""
    return _list(root, n, "running")


def finished_list(root: Path, n: int) -> dict[str, float]:
    """A list of trials that ended well, and the memory of the whole process."""
    told = _list(root, n, "finished")
    return {f"finished_{key}": value for key, value in told.items()} | {"finished_process_mb": _memory_mb()}


def _list(root: Path, n: int, state: str) -> dict[str, float]:
    from ai.lab.page.catalog import Catalog

    with Trial(root / "t0", config={"lr": 0.1, "net": {"dim": 8}}, system_interval_s=None, capture=False) as trial:
        for step in range(10):
            trial.log(step, {"loss": 1 / (step + 1)})
        owner = (trial.path / "owner.json").read_bytes()
    files = {path.relative_to(trial.path): path.read_bytes() for path in trial.path.rglob("*") if path.is_file()}
    if state == "running":  # as a kill leaves it: the owner is named, and neither last values nor an end are told
        meta = json.loads(files[Path("meta.json")])
        session = {name: value for name, value in meta["sessions"][-1].items() if name not in ("end", "state")}
        told = {name: value for name, value in meta.items() if name != "last"} | {"state": state, "sessions": [session]}
        files |= {Path("meta.json"): json.dumps(told, indent=1).encode(), Path("owner.json"): owner}
    for number in range(1, n):
        for name, data in files.items():
            path = root / f"t{number}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.replace(trial.id.encode(), f"{number:032x}".encode()))
    memory_mb, catalog = _memory_mb(), Catalog(root)
    first_s = _cpu_s(lambda: json.dumps(catalog.changes(-1)))
    if len(catalog.rows()) != n:
        raise RuntimeError(f"{len(catalog.rows())} of {n} trials are listed")
    idle_s = _cpu_s(lambda: catalog.changes(catalog.changes(-1)["version"])) / 2
    return {"first_list_s": first_s, "idle_poll_s": idle_s, "list_mb": _memory_mb() - memory_mb}


def long_run(root: Path, n: int) -> dict[str, float]:
    """A run of many rows of two numbers: read at first, one row more, memory beside the file, and opened again."""
    from ai.lab.files.metrics_index import index_of
    from ai.lab.page.curve_cache import CurveCache

    with Trial(root / "t", system_interval_s=None, capture=False) as trial:

        def log() -> None:
            for step in range(n):
                trial.log(step, {"loss": 1 / (step + 1), "accuracy": 0.5})

        logged_s = _cpu_s(log)
    path, cache = trial.path / "metrics.jsonl", CurveCache()
    size = path.stat().st_size
    memory_mb = _memory_mb()
    read_s = _cpu_s(lambda: cache.columns(path))
    ratio = (_memory_mb() - memory_mb) * 1e6 / size
    trial.log(n, {"loss": 0.0, "accuracy": 1.0})
    memory_mb = _memory_mb()
    one_row_s = _cpu_s(lambda: cache.columns(path))
    one_row_mb = _memory_mb() - memory_mb
    trial.close()
    again_s = {}
    for name in ("open_again_s", "open_without_index_s"):
        if name == "open_without_index_s":
            index_of(path).unlink(missing_ok=True)
        with Trial(trial.path, system_interval_s=None, capture=False) as again:
            again_s[name] = _cpu_s(lambda: again.log(n, {"loss": 0.0, "accuracy": 1.0}))
    if len(cache.columns(path)["loss"][2]) != n + 3:
        raise RuntimeError("a row is missing")
    return {
        "log_row_s": logged_s,
        "read_rows_s": read_s,
        "one_more_row_of_them_s": one_row_s,
        "one_more_row_mb": one_row_mb,
        **again_s,
        "memory_by_file": ratio,
    }


def many_writes(root: Path, n: int) -> dict[str, float]:
    """Dots, printed one by one while the log captures them."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), Trial(root / "t", system_interval_s=None) as trial:
        dots_s = _cpu_s(lambda: [print(".", end="") for _ in range(n)])
    if trial.record.log_text().count(".") < min(n, 1 << 15):
        raise RuntimeError("dots are missing in the log")
    return {"print_dots_s": dots_s}


def overlay(root: Path, n: int) -> dict[str, float]:
    """Thirty curves of `n` points over one another, as the page asks for them."""
    import asyncio

    from ai.lab.page.server import make_app

    trials = []
    for number in range(30):
        with Trial(root / f"t{number}", system_interval_s=None, capture=False) as trial:
            for step in range(n):
                trial.log(step, {"loss": math.sin(step / 100) + number})
        trials.append(trial.id)
    app, sent = make_app(root), list[Any]()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    query = "&".join(["key=loss&points=1000", *(f"id={one}" for one in trials)]).encode()
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/api/curves",
    }
    scope |= {"query_string": query, "headers": [(b"host", b"localhost")], "root_path": "", "raw_path": b""}
    ask = {**scope, "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}
    asyncio.run(app({**ask, "path": "/api/trials"}, receive, send))  # the page asks for the list before
    asyncio.run(app({**ask, "query_string": b"key=none&id=" + trials[0].encode()}, receive, send))
    sent.clear()
    first_s = _cpu_s(lambda: asyncio.run(app(ask, receive, send)))
    again_s = _cpu_s(lambda: asyncio.run(app(ask, receive, send)))
    if [one["status"] for one in sent if one["type"] == "http.response.start"] != [200, 200]:
        raise RuntimeError("the curves were not told")
    return {"overlay_first_s": first_s, "overlay_again_s": again_s}


_MEASURES = {"list": killed_list, "finished": finished_list, "row": long_run, "write": many_writes, "overlay": overlay}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_MEASURES[sys.argv[1]](Path(folder), int(sys.argv[2]))))
