"""A folder that is whole or not there: filled beside its place, flushed to disk, and renamed."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ai.data.storage.atomic_file import sync


def commit(target: Path, fill: Callable[[Path], None], aside: Path | None = None) -> None:
    """Have `fill` write a folder beside `target`, flush it to disk, and rename it into place.

    Args:
        target: the folder; what is there is replaced.
        fill: called with the folder to fill.
        aside: where to put what is there instead of deleting it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        fill(partial)
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        if target.exists() and aside is not None:
            target.rename(aside)
            partial.rename(target)
        elif target.exists():  # the same step again, after a resume from further back
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


@contextmanager
def one_clear_error(target: Path) -> Iterator[None]:
    """Whatever a library makes of a full disk or a lost folder is one `OSError` that names the snapshot."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.filename is not None and Path(error.filename) != target:
            reason = f"{Path(error.filename).name}: {reason}"
        raise _not_written(target, reason, error.errno) from error
    except Exception as error:
        from safetensors import SafetensorError

        if not isinstance(error, (SafetensorError, RuntimeError)):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _not_written(target, reason, None) from error


def _not_written(target: Path, reason: str, number: int | None) -> OSError:
    sentence = f"snapshot {target} was not written ({reason}); those before it are as they were"
    return OSError(sentence) if number is None else OSError(number, sentence)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
