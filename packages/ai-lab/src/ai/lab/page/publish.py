"""A published page: the same page without a server, which opens from a folder or any web host.

A browser loads neither modules nor data from a folder, but it does run scripts: the page's modules are made one script,
and a trial's answers are a script that is loaded when the trial is looked at.
"""

import base64
import json
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ai.lab.files.folder import enclosing_trial, write_atomic
from ai.lab.page.catalog import Catalog
from ai.lab.page.decimate import decimate
from ai.lab.page.importance import Importances
from ai.lab.page.server import describe_trial, tell_diff
from ai.lab.record import METRICS, SYSTEM, Record

POINTS = 2000
"""A published curve has about so many points at most, with every peak kept."""
DATA = "data"
_MODULES = (
    *("address", "api", "dom", "groups", "download", "charts", "curves", "marks", "config", "code", "log"),
    *("media", "samples", "search", "table", "app"),
)
_PLAIN = ("style.css", "uPlot.min.css", "uPlot.iife.min.js", "uPlot.LICENSE", "icon.svg")
_HERE = ("host", "pid", "cwd", "parent")


def publish(root: Path, out: Path, *, results_only: bool = False) -> int:
    """Writes the page of the trials under `root` to a folder, and returns how many trials it shows.

    A page that was published there before gives way; other files in the folder stay. Host, process and folders are
    left out.

    Args:
        root: The folder whose trials are shown.
        out: The folder to write; missing, empty, or one that was published to.
        results_only: Whether code, commands, packages and logs are left out too.

    Raises:
        ValueError: `out` holds something else, or lies in a recorded trial; or there is no trial.
    """
    catalog = Catalog(root)
    told = catalog.changes(-1)
    if not told["trials"]:
        raise ValueError(f"there is no trial in {root} to publish")
    published = (out / DATA / "trials.js").is_file() and (out / "page.js").is_file()
    if out.exists() and not published and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} must be a new or empty folder, or hold a page that was published before")
    if (trial := enclosing_trial(out / DATA)) is not None:
        raise ValueError(f"{out} lies in the folder of the trial {trial}; choose another")
    if (out / DATA).exists():
        shutil.rmtree(out / DATA)
    (out / DATA).mkdir(parents=True)
    places = {}
    for number, row in enumerate(told["trials"]):
        row["path"] = row["name"]
        if row["id"].startswith("damaged-"):
            row["problems"] = [str(problem).replace(str(root), "") for problem in row["problems"]]
            continue
        places[row["id"]] = number
        answers = _answers(catalog, row["id"], out / DATA / str(number), results_only)
        _write_script(out / DATA / f"{number}.js", f"publishedTrials[{number}]", answers)
    table = {"root": root.name, "editable": False, **told}
    asked = {one: Importances().of(catalog.experiment_path(one), one) for one in told["experiments"]}
    _write_script(out / DATA / "trials.js", "published", {"table": table, "places": places, "importance": asked})
    web = files("ai.lab.page") / "web"
    for name in _PLAIN:
        write_atomic(out / name, (web / name).read_bytes())
    write_atomic(
        out / "page.js", _bundle({name: (web / f"{name}.js").read_text("utf-8") for name in _MODULES}).encode()
    )
    scripts = f'<script src="{DATA}/trials.js" defer></script>\n<script src="page.js" defer></script>'
    index = (web / "index.html").read_text("utf-8")
    write_atomic(out / "index.html", index.replace('<script src="app.js" type="module"></script>', scripts).encode())
    return len(told["trials"])


def _answers(catalog: Catalog, identity: str, folder: Path, results_only: bool) -> dict[str, Any]:
    """Returns what the page asks of one trial, its pictures copied to `folder`."""
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
    kept, pictures = _kept(record, folder)
    return {"details": details, "log": log, "diff": diff, "curves": curves, "kept": kept, "pictures": pictures}


def _kept(record: Record, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Returns texts, and the names of copied pictures, by what the page asks for them as."""
    found = {f"sample/{step}": path for step, path in record.samples().items()}
    found |= {f"media/{step}/{name}": path for name, steps in record.media().items() for step, path in steps.items()}
    kept, pictures = {}, {}
    for number, (asked, path) in enumerate(found.items()):
        if path.suffix not in (".json", ".txt"):
            folder.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / f"{number}{path.suffix}")
            pictures[asked] = f"{DATA}/{folder.name}/{number}{path.suffix}"
        else:
            kept[asked] = path.read_bytes().decode(errors="replace")
    return kept, pictures


def _encode(steps: np.ndarray, times: np.ndarray, values: np.ndarray) -> list[str]:
    index = decimate(np.arange(len(values)), values, POINTS)[0]
    return [base64.b64encode(np.asarray(one[index], "<f8").tobytes()).decode() for one in (steps, times, values)]


def _write_script(path: Path, name: str, value: object) -> None:
    """Writes a value as a script. It is parsed as JSON there, so that no key or text in it means anything else."""
    write_atomic(path, f"globalThis.{name} = JSON.parse({json.dumps(json.dumps(value, allow_nan=False))});\n".encode())


def _bundle(modules: dict[str, str]) -> str:
    """Returns modules, each after those that it imports, as one script: a function each, which returns its exports."""
    parts = ["'use strict';", "globalThis.publishedTrials = {};"]
    for name, text in modules.items():
        exports = re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", text, re.MULTILINE)
        body = re.sub(
            r"^import (?:\* as )?(.*) from '\./(\w+)\.js';$", r"const \1 = module_\2;", text, flags=re.MULTILINE
        )
        body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
        parts.append(f"const module_{name} = (() => {{\n{body}\nreturn {{ {', '.join(exports)} }};\n}})();")
    return "\n".join(parts) + "\n"
