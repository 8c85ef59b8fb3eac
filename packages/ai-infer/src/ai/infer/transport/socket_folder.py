"""The folder in which an inferencer can be reached: private to the user, gone with its processes."""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

ADDRESS_FILE = "inferencer.json"
"""What clients read in the folder: how many replicas there are, and whether they are restarted."""

EXTRA_STATE_FILE = "extra_state-{}"
"""What workers read beside the weights, where modules have extra state; counted from 1."""

VITALS_FILE = "vitals-{}"
"""Where each worker, by its number, shows how it is."""

VERSIONS_FILE = "versions"
"""Where the inferencer of a whole machine notes how its callers count the versions of the parameters."""

_LOCK = "owner"
_GRACE_S = 60.0
_MAX_PATH = 80  # of a socket's address, which the system limits to about a hundred bytes


def make_folder() -> tuple[Path, int]:
    """Returns a new folder of mode 0700 and the descriptor of a lock that lasts as long as any process holds it.

    Folders whose processes were all killed at once are removed on the way.
    """
    parent = Path(tempfile.gettempdir())
    if len(os.fspath(parent)) > _MAX_PATH - 30:
        parent = Path("/tmp")
    prefix = f"ai-infer-{os.getuid()}-"
    for old in parent.glob(f"{prefix}*"):
        _remove_if_abandoned(old)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _remove_if_abandoned(folder: Path) -> None:
    try:
        if folder.lstat().st_uid != os.getuid():
            return
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # perhaps just being made
            if time.time() - folder.stat().st_mtime > _GRACE_S:
                shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - folder.stat().st_mtime > 1.0:  # else its owner may be about to lock it
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
    except OSError:  # locked, hence alive; or removed by someone else meanwhile
        return
