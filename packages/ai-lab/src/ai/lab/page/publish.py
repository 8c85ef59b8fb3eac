"""A published page: the same page without a server, which opens from a folder or any web host.

A browser loads neither modules nor data from a folder, but it does run scripts: the page's modules are made one script,
and a trial's answers are a script that is loaded when the trial is looked at.
"""

import base64
import contextlib
import json
import os
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ai.lab.files.folder import enclosing_trial, write_atomic
from ai.lab.files.lock import Lock
from ai.lab.page.catalog import Catalog
from ai.lab.page.decimate import decimate
from ai.lab.page.importance import Importances
from ai.lab.page.server import describe_trial, tell_diff
from ai.lab.record import METRICS, SYSTEM, Record

POINTS = 2000
"""A published curve has about so many points at most, with every peak kept."""
DATA = "data-"
"""How the folder of a page's data is called, before digits that only this page has."""
_MODULES = (
    *("address", "api", "dom", "groups", "download", "charts", "curves", "marks", "config", "code", "log"),
    *("steps", "media", "samples", "search", "table", "app"),
)
_PLAIN = ("style.css", "uPlot.min.css", "uPlot.iife.min.js", "uPlot.LICENSE", "icon.svg")
_DATA = re.compile(rf"\.?{DATA}[0-9a-f]{{16}}")
_LOCK = ".publishing"
_OURS = "'use strict';\nglobalThis.publishedTrials = {};\n"
_HERE = ("host", "pid", "user", "cwd", "parent")


def publish(root: Path, out: Path, *, results_only: bool = False) -> int:
    """Writes the page of the trials under `root` to a folder, and returns how many trials it shows.

    A page that was published there before gives way in the moment when `index.html` is replaced, and who looks at it in
    a browser must load it again; other files in the folder stay. Host, user, process and folders are left out. What
    cannot be read of a trial is left out and said in its row.

    Args:
        root: The folder whose trials are shown.
        out: The folder to write; missing, empty, or one that was published to.
        results_only: Whether code, commands, packages and logs are left out too.

    Raises:
        ValueError: `out` holds something else, or lies in a recorded trial; or there is no trial.
        RuntimeError: another process publishes to `out` at this moment.
    """
    catalog = Catalog(root)
    told = catalog.changes(-1)
    if not told["trials"]:
        raise ValueError(f"there is no trial in {root} to publish")
    if out.exists() and not _was_published(out):
        raise ValueError(f"{out} must be a new or empty folder, or hold a page that was published before")
    name = f"{DATA}{told['epoch']}"
    if (trial := enclosing_trial(out / name)) is not None:
        raise ValueError(f"{out} lies in the folder of the trial {trial}; choose another")
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out / _LOCK)
    if (other := lock.try_acquire()) is not None:
        raise RuntimeError(f"{out} is being published to by process {other.get('pid', 'unknown')}; try again")
    try:
        _write(catalog, told, out, name, results_only)
    finally:
        (out / _LOCK).unlink(missing_ok=True)
        lock.release()
    return len(told["trials"])


def _write(catalog: Catalog, told: dict[str, Any], out: Path, name: str, results_only: bool) -> None:
    """Writes a page, its data in the folder `name`, and removes the data of the page before."""
    new = out / f".{name}"
    new.mkdir()
    try:
        _write_data(catalog, told, new, name, results_only)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    os.rename(new, out / name)
    web = files("ai.lab.page") / "web"
    for file in _PLAIN:
        write_atomic(out / file, (web / file).read_bytes())
    write_atomic(out / "page.js", _bundle({one: (web / f"{one}.js").read_text("utf-8") for one in _MODULES}).encode())
    scripts = f'<script src="{name}/trials.js" defer></script>\n<script src="page.js" defer></script>'
    index = (web / "index.html").read_text("utf-8")
    write_atomic(out / "index.html", index.replace('<script src="app.js" type="module"></script>', scripts).encode())
    for folder in out.iterdir():
        if folder.name != name and _is_data(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _write_data(catalog: Catalog, told: dict[str, Any], new: Path, name: str, results_only: bool) -> None:
    """Writes the data of a page to the folder `new`, which will be called `name`."""
    places = {}
    for number, row in enumerate(told["trials"]):
        row["path"] = row["name"]
        if row["id"].startswith("damaged-"):
            row["problems"] = [str(problem).replace(str(catalog.root), "") for problem in row["problems"]]
            continue
        try:
            answers = _answers(catalog, row["id"], new / str(number), f"{name}/{number}", results_only)
        except Exception as error:  # whatever one trial holds, the others are published
            row["problems"] = [*row["problems"], f"not published whole: {type(error).__name__}"]
            continue
        places[row["id"]] = number
        row["problems"] = [*row["problems"], *(f"{one} cannot be read" for one in answers.pop("lost"))]
        _write_script(new / f"{number}.js", f"publishedTrials[{number}]", answers)
    table = {"root": catalog.root.name, "editable": False, **told}
    asked = {one: Importances().of(catalog.experiment_path(one), one) for one in told["experiments"]}
    page = {"data": name, "table": table, "places": places, "importance": asked}
    _write_script(new / "trials.js", "published", page)


def _was_published(out: Path) -> bool:
    """Whether a folder is empty, or holds a page that was published, whole or in part."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if (out / "page.js").read_text("utf-8").startswith(_OURS):
            return True
    return out.is_dir() and all(path.name == _LOCK or _is_data(path) for path in out.iterdir())


def _is_data(folder: Path) -> bool:
    """Whether a folder is a page's data: of this page, of one before, or of one that never became whole."""
    if _DATA.fullmatch(folder.name) or folder.name in (".data-new", ".data-old"):
        return True
    return folder.name == "data" and (folder / "trials.js").is_file()  # as it was called once


def _answers(catalog: Catalog, identity: str, folder: Path, place: str, results_only: bool) -> dict[str, Any]:
    """Returns what the page asks of one trial, its pictures copied to `folder`, which the page will find at `place`."""
    record = catalog.record(identity)
    details = describe_trial(catalog, identity)
    details["path"] = record.name
    for session in details["meta"].get("sessions", []):
        for name in (*_HERE, *(("argv", "git", "packages", "python", "script_file") if results_only else ())):
            session.pop(name, None)
    log, diff = ("", "") if results_only else (record.log_text(), tell_diff(record))
    curves = {
        "metrics": {key: _encode(*column) for key, column in catalog.columns(identity, METRICS).items()},
        "system": {key: _encode(*column) for key, column in catalog.columns(identity, SYSTEM).items()},
    }
    kept, pictures, lost = _kept(record, folder, place)
    answers = {"details": details, "log": log, "diff": diff, "curves": curves, "kept": kept, "pictures": pictures}
    return {**answers, "lost": lost}


def _kept(record: Record, folder: Path, place: str) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Returns texts, and the names of copied pictures, by what the page asks for them as; and what cannot be read."""
    found = {f"sample/{step}": path for step, path in record.samples().items()}
    found |= {f"media/{step}/{name}": path for name, steps in record.media().items() for step, path in steps.items()}
    kept: dict[str, str] = {}
    pictures: dict[str, str] = {}
    lost: list[str] = []
    for number, (asked, path) in enumerate(found.items()):
        try:
            data = path.read_bytes()
        except OSError:
            lost.append(asked)
            continue
        if path.suffix in (".json", ".txt"):
            kept[asked] = data.decode(errors="replace")
        else:
            folder.mkdir(exist_ok=True)
            (folder / f"{number}{path.suffix}").write_bytes(data)
            pictures[asked] = f"{place}/{number}{path.suffix}"
    return kept, pictures, lost


def _encode(steps: np.ndarray, times: np.ndarray, values: np.ndarray) -> list[str]:
    index = decimate(np.arange(len(values)), values, POINTS)[0]
    return [base64.b64encode(np.asarray(one[index], "<f8").tobytes()).decode() for one in (steps, times, values)]


def _write_script(path: Path, name: str, value: object) -> None:
    """Writes a value as a script. It is parsed as JSON there, so that no key or text in it means anything else."""
    write_atomic(path, f"globalThis.{name} = JSON.parse({json.dumps(json.dumps(value, allow_nan=False))});\n".encode())


def _bundle(modules: dict[str, str]) -> str:
    """Returns modules, each after those that it imports, as one script: a function each, which returns its exports."""
    parts = [_OURS]
    for name, text in modules.items():
        exports = re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", text, re.MULTILINE)
        body = re.sub(
            r"^import (?:\* as )?(.*) from '\./(\w+)\.js';$", r"const \1 = module_\2;", text, flags=re.MULTILINE
        )
        body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
        parts.append(f"const module_{name} = (() => {{\n{body}\nreturn {{ {', '.join(exports)} }};\n}})();")
    return "\n".join(parts) + "\n"
