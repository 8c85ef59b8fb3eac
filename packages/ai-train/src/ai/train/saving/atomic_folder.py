"""A folder that is whole or not there: filled beside its place, flushed to disk, and renamed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ai.data.storage.atomic_file import sync


def commit(target: Path, fill: Callable[[Path], None]) -> None:
    """Have `fill` write a folder beside `target`, flush it to disk, and rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        fill(partial)
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        if target.exists():  # the same step again, after a resume from further back
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(target.parent)
    for leftover in [*target.parent.glob(".*.partial"), *target.parent.glob(".*.old")]:  # of a killed process
        if not _is_running(leftover.name.split(".")[-2]):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
