"""What a run was made from: git state, packages, hardware, command line. Collected once, at the start of a session."""

import contextlib
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ai.lab.provenance.masking import mask

DIFF_LIMIT_BYTES = 4 << 20
"""A longer diff is cut, and says so: a generated file that was never ignored must not fill every trial."""


started_by: dict[str, Any] = {}
"""What describes the command and code of a process that works for one on another machine: those of that one."""


def describe_origin() -> dict[str, Any]:
    """Returns folder, command and code of this process."""
    session = describe_session()
    return {key: session[key] for key in ("cwd", "argv", "git")}


def describe_session() -> dict[str, Any]:
    """Returns what identifies this process and what it runs on, ready for JSON.

    Keys: `time` (seconds since the epoch), `host`, `pid`, `user`, `cwd`, `argv` (with the interpreter), `python`,
    `torch_seed` (only when torch is loaded), `hardware`, `packages`, `git` (None outside a repository).
    """
    session: dict[str, Any] = {
        "time": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": _user(),
        "cwd": os.getcwd(),
        "argv": mask(list(sys.orig_argv) or [sys.executable, *sys.argv]),
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "packages": installed_packages(),
        "git": describe_git(Path.cwd()),
    }
    if torch := sys.modules.get("torch"):
        session["torch_seed"] = torch.initial_seed()
        session["torch_threads"] = torch.get_num_threads()
        session["deterministic"] = torch.are_deterministic_algorithms_enabled()
    return {**session, **started_by}


def describe_hardware() -> dict[str, Any]:
    """Returns processor, cores, memory in bytes and GPUs (only those of a loaded torch: nothing is imported here)."""
    import psutil  # type: ignore[import-untyped]

    hardware: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        hardware["gpus"] = [
            {"name": torch.cuda.get_device_name(i), "memory_bytes": torch.cuda.get_device_properties(i).total_memory}
            for i in range(torch.cuda.device_count())
        ]
        hardware["cuda"] = torch.version.cuda
    return hardware


@cache
def installed_packages() -> dict[str, str]:
    """Returns `{name: version}` of every installed distribution, by name."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name and name not in found:  # the first on the path is the one that is imported
            found[name] = distribution.version
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


_described: dict[Path, tuple[float, dict[str, Any] | None]] = {}
_GIT_FRESH_S = 10.0


def describe_git(folder: Path) -> dict[str, Any] | None:
    """Returns commit, branch, remote, diff against the commit and untracked files of the repository around `folder`.

    None without a repository or without git. Nothing in the repository is touched, not even its index. Asked again
    within ten seconds, as by a search's short trials, the answer is the same one.
    """
    now = time.monotonic()
    if folder not in _described or now - _described[folder][0] > _GIT_FRESH_S:
        _described[folder] = (now, _ask_git(folder))
    return _described[folder][1]


_DIFF_TO_APPLY = (
    *(
        "--binary",
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "--no-relative",
        "--src-prefix=a/",
        "--dst-prefix=b/",
    ),
    *("-U3", "--submodule=short", "--ignore-submodules=dirty"),
)
"""However this user likes to look at diffs, `git apply` must take this one, and it must hold all that changed."""


def _ask_git(folder: Path) -> dict[str, Any] | None:
    commit = _git(folder, "rev-parse", "HEAD")
    inside = commit if commit is not None else _git(folder, "rev-parse", "--git-dir")
    if inside is None:
        return None
    diff = _git(folder, "diff", *_DIFF_TO_APPLY, "HEAD") if commit else ""
    untracked = _git(folder, "ls-files", "-z", "--others", "--exclude-standard", "--full-name", ":/") or ""
    return {
        "commit": commit.strip() if commit else None,
        "branch": _shown((_git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "").strip()) or None,
        "remote": _shown(_without_password((_git(folder, "remote", "get-url", "origin") or "").strip())) or None,
        "diff": _cut(diff or ""),
        "untracked": [_shown(name) for name in untracked.split("\0") if name][:1000],
    }


@cache
def tracked_by_git(path: Path) -> bool:
    """Returns whether a commit can have the file."""
    return _git(path.resolve().parent, "ls-files", "--error-unmatch", "--", path.name) is not None


def command_line(argv: list[str]) -> str:
    """Returns `argv` as one line for a shell."""
    return shlex.join(argv)


def _git(folder: Path, *arguments: str) -> str | None:
    # Without the optional locks, a `git commit` of the user running at the same time is never disturbed.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=10
        )
        if done.returncode == 0:
            return done.stdout.decode(errors="surrogateescape")  # whatever a file holds, its diff applies again
    return None


def _shown(text: str) -> str:
    """Returns text without the bytes that are none."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _cut(diff: str) -> str:
    if len(diff) <= DIFF_LIMIT_BYTES:
        return diff
    return f"{diff[:DIFF_LIMIT_BYTES]}\n[cut: the whole diff has {len(diff)} characters]\n"


def _without_password(url: str) -> str:
    """Returns `url` without a user and password, which must not end up in a folder that is shared."""
    scheme, separator, rest = url.partition("://")
    if separator and "@" in rest.split("/")[0]:
        rest = rest.split("@", 1)[1]
    return scheme + separator + rest


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _user() -> str | None:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None  # a container without an entry for its user
