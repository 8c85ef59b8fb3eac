"""A trial's code as it was: a git worktree at its commit, its changes applied, its script put in place."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ai.lab.provenance.code_state import is_as_kept
from ai.lab.provenance.description import command_line
from ai.lab.record import Record


def check_out(record: Record, folder: Path | None = None) -> tuple[Path, str]:
    """Makes the worktree and returns the folder to run the trial's command in, and the command.

    Args:
        record: The trial.
        folder: The worktree to make; by default one beside the repository, named for both.

    Raises:
        ValueError: the trial did not run in a repository that is still there, its changes were cut, what was recorded
            of them or its script was edited since, or `folder` exists.
        OSError: the recorded changes or the script cannot be read.
        RuntimeError: git refuses; then there is no worktree.
    """
    sessions = record.meta.get("sessions") or [{}]
    session = sessions[-1]
    git, cwd = session.get("git") or {}, session.get("cwd")
    if not git.get("commit") or cwd is None:
        raise ValueError(f"{record.path} ran at no commit of a git repository")
    if not os.path.isdir(cwd):
        raise ValueError(f"the folder that {record.path} was run in is gone: {cwd}")
    top = Path(_git(Path(cwd), "rev-parse", "--show-toplevel").strip())
    diff = _changes(record, git)
    name = session.get("script_file")
    script = None if name is None else _as_kept(record, name)
    if b"\n[cut: the whole diff has " in diff[-100:]:
        raise ValueError(f"the changes that {record.path} ran with were too long to be recorded whole")
    folder = folder or top.with_name(f"{top.name}-{record.name}")
    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another with --to")
    _git(top, "worktree", "add", "--detach", str(folder), git["commit"])
    if diff:
        try:
            _git(folder, "apply", "--whitespace=nowarn", "-", given=diff)
        except BaseException:
            _git(top, "worktree", "remove", "--force", str(folder))
            raise
    inside = Path(os.path.realpath(cwd)).relative_to(os.path.realpath(top))
    (folder / inside).mkdir(parents=True, exist_ok=True)  # one without a file that git knows
    argv = list(session.get("argv") or [])
    if script is not None:
        _put_script(Path(name).name.partition("-")[2], script, argv, folder / inside)
    return folder / inside, command_line(argv)


def not_checked_out(record: Record) -> list[str]:
    """Returns the files that the trial ran beside and no commit has: only its script was recorded of them."""
    session = (record.meta.get("sessions") or [{}])[-1]
    script = Path(session.get("script_file") or "").name.partition("-")[2]
    return [name for name in (session.get("git") or {}).get("untracked") or [] if Path(name).name != script]


def _changes(record: Record, git: Mapping[str, Any]) -> bytes:
    """Returns the diff byte for byte; for reading it may have lost what is no text."""
    name = git.get("diff_file")
    return _as_kept(record, name) if name is not None else (git.get("diff") or "").encode()


def _as_kept(record: Record, name: str) -> bytes:
    data = record.inside(name).read_bytes()
    if not is_as_kept(name, data):
        raise ValueError(f"{record.path / name} was edited since it was recorded: the trial did not run with it")
    return data


def _put_script(script: str, data: bytes, argv: list[str], cwd: Path) -> None:
    """Puts the script that no commit has where the command looks for it: beside the others, if it was elsewhere."""
    place = next((index for index, one in enumerate(argv) if Path(one).name == script), None)
    target = cwd / script
    if place is not None and not os.path.isabs(argv[place]):
        target = Path(os.path.normpath(cwd / argv[place]))
    elif place is not None:
        argv[place] = script
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _git(folder: Path, *arguments: str, given: bytes | None = None) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, input=given, capture_output=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"git {arguments[0]} failed in {folder}: {done.stderr.decode(errors='replace').strip()}")
    return os.fsdecode(done.stdout)
