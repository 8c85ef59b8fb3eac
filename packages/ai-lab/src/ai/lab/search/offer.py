"""A search that is offered to whoever comes: what runs its trials, in a file of the experiment or in its database.

The file begins with a line that tells the versions it was pickled by, and a checksum; the rest is `(search, run)`, with
the source of what is not installed. Reading it runs code, as importing a module does.
"""

import base64
import dataclasses
import hashlib
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ai.data.workers.error_text import error_text
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.versions import installed, mismatch, other_code
from ai.lab.files.folder import mark, write_atomic, write_json
from ai.lab.files.load import load_json
from ai.lab.record import EXPERIMENT
from ai.lab.search.loop import Run, Search
from ai.lab.search.optuna_storage import load_study

if TYPE_CHECKING:
    import optuna

JOB = "work.job"
_CHUNK = 32_000  # what every database takes as the text of one attribute


def write_offer(search: Search, run: Run) -> None:
    """Leaves in the experiment's folder, and in its database if it has one, what `ai-lab work` needs.

    The database's address, which may hold a password, is in neither.

    Raises:
        TypeError: the objective cannot be pickled.
    """
    payload = ship((dataclasses.replace(search, storage=None), run))
    header = {"versions": installed(), "storage": search.storage is not None, "sha256": _checksum(payload)}
    data = json.dumps(header).encode() + b"\n" + payload
    write_atomic(search.path / JOB, data)
    if search.storage is not None:
        text = base64.b64encode(data).decode()
        chunks = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
        for index, chunk in enumerate(chunks):
            search.study.set_user_attr(f"job-{index}", chunk)
        search.study.set_user_attr("experiment", load_json(search.path / EXPERIMENT))
        search.study.set_user_attr("job", len(chunks))


def take_offer(path: Path, storage: str | None) -> tuple[Search, Run]:
    """Returns the search that is offered in a folder, or in a database for a folder of that name here.

    Raises:
        ValueError: nothing is offered there, or the search is in a database whose address is not given.
        RuntimeError: it was offered by other versions than run here, or cannot be read here.
    """
    name = Search.study_name(path, "", storage) if storage is not None else ""
    file = path / JOB
    if storage is not None:
        study = load_study(path, storage, name)
        data = b"" if study is None else _stored(study)
    else:
        data = file.read_bytes() if file.exists() else b""
    if not data:
        where = f"the study {name!r} of the database" if storage is not None else str(path)
        raise ValueError(f"nothing is offered in {where}: experiment.offer(n, fn) of a script offers a search")
    line, _, payload = data.partition(b"\n")
    try:
        header = json.loads(line)
        is_whole = header["sha256"] == _checksum(payload)
    except (ValueError, TypeError, KeyError):
        is_whole = False
    if not is_whole:  # the texts of a database are written one after the other
        raise ValueError(
            f"what is offered in {path} is damaged, or is just being offered: try again, or offer it again"
        )
    theirs, where = header["versions"], f"where {path.name} was offered"
    if problem := mismatch(installed(), theirs, where):
        raise RuntimeError(problem)
    if difference := other_code(installed(), theirs, where):
        warnings.warn(difference, stacklevel=2)
    if header["storage"] and storage is None:
        raise ValueError(f"{path} is searched through a database: say which by --storage, or $AI_LAB_STORAGE")
    try:
        search, run = pickle.loads(payload)
    except Exception as error:
        raise RuntimeError(f"what is offered in {path} cannot be read here: {error_text(error)}") from error
    if storage is not None and not (path / EXPERIMENT).exists():
        assert study is not None
        search.identity = mark(path, "experiment")
        write_json(path / EXPERIMENT, study.user_attrs["experiment"])
    elif storage is not None:
        search.identity = mark(path, "experiment")
    search.path, search.storage = path, storage
    return search, run


def _stored(study: "optuna.Study") -> bytes:
    known: dict[str, Any] = study.user_attrs
    return base64.b64decode("".join(known.get(f"job-{index}", "") for index in range(known.get("job", 0))))


def _checksum(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def storage_address(given: str | None) -> str | None:
    """Returns the database's address that was given, else that of the environment."""
    return given or os.environ.get("AI_LAB_STORAGE") or None
