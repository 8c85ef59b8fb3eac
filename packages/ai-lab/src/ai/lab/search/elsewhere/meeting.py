"""Whether two processes, perhaps on two machines, see the same folder: proved, not guessed by its name.

Who has it invites: a folder is made within it, by which whoever sees it can be met. What was just made is found there,
and what is left there is found, read and deleted here.
"""

import contextlib
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from ai.lab.record import SNAPSHOTS


def invite(folder: Path) -> Path:
    """Returns a new folder within a trial's, by which a worker finds out whether it sees that one: see `meet`.

    It lies where a killed process leaves unfinished snapshots, and is deleted as one of them.
    """
    path = folder.resolve() / SNAPSHOTS / f".{secrets.token_hex(16)}.partial"
    with contextlib.suppress(OSError):  # then nobody finds it
        path.mkdir(parents=True)
    return path


def meet(meeting: Path, tell: Callable[[str, str], bool]) -> Path | None:
    """Returns the trial's folder that the search writes to, if it is the same folder here as there.

    Args:
        meeting: What `invite` returned there.
        tell: Asks `met` there, with what was left here.
    """
    name, said = secrets.token_hex(8), secrets.token_hex(16)
    with contextlib.suppress(OSError):  # also then it is asked, and deletes what it has made
        (meeting / name).mkdir()
        (meeting / name / name).write_text(said)
    try:
        return meeting.parents[1] if tell(name, said) else None
    finally:  # what the other side may not delete would stand in its way
        shutil.rmtree(meeting / name, ignore_errors=True)


def met(meeting: Path, name: str, said: str) -> bool:
    """Returns whether a worker has left there what it says, and whether what it leaves can be deleted here.

    Raises:
        ValueError: it names something outside of the folder.
    """
    left = meeting / name
    if meeting.resolve() not in left.resolve().parents:
        raise ValueError(f"{name!r} must lie in the folder of the meeting, {meeting}")
    try:
        is_met = (left / name).read_text() == said
        shutil.rmtree(left)
    except OSError:
        return False
    finally:
        shutil.rmtree(meeting, ignore_errors=True)
        with contextlib.suppress(OSError):  # there are snapshots already
            meeting.parent.rmdir()
    return is_met
