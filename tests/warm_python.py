"""Runs scripts as `python script.py` would, in a fork of a process that has imported torch and the library already.

A fresh interpreter takes two seconds for these imports, and the suite runs a hundred scripts. Arguments, folder,
environment, standard streams, signals and exit status are the script's own; only what is imported before is shared, so
what a script imports, and with which warnings, is for tests that start an interpreter.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

_IMPORTED = [
    "torch",
    "torch._dynamo",  # as an optimiser's first step does: a second, half of it sympy
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "PIL.Image",
    "ai.model",
    "ai.data",
    "ai.train",
    "ai.lab",
]
_warm: subprocess.Popen[str] | None = None


def run(
    script: str | Path,
    *arguments: object,
    folder: str | Path,
    environment: dict[str, str] | None = None,
    warnings: str = "default",
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end; a negative status is the signal that ended it.

    Args:
        script: Its path.
        arguments: As text in its `sys.argv`.
        folder: Where it runs.
        environment: Variables beside those of this process.
        warnings: What becomes of warnings, as `-W` has it.
        timeout: Seconds after which it is killed.

    Raises:
        subprocess.TimeoutExpired: It was.
    """
    warm = _started()
    with tempfile.TemporaryDirectory() as streams:
        out, err = Path(streams, "out"), Path(streams, "err")
        job = {
            "argv": [str(script), *map(str, arguments)],
            "folder": str(folder),
            "environment": {**os.environ, **(environment or {})},
            "streams": [str(out), str(err)],
            "warnings": warnings,
        }
        assert warm.stdin is not None
        assert warm.stdout is not None
        print(json.dumps(job), file=warm.stdin, flush=True)
        if not select.select([warm.stdout], [], [], timeout)[0]:
            _end()
            raise subprocess.TimeoutExpired(job["argv"], timeout, out.read_text(), err.read_text())
        status = int(warm.stdout.readline())
        return subprocess.CompletedProcess(job["argv"], status, out.read_text(), err.read_text())


def _started() -> subprocess.Popen[str]:
    global _warm
    if _warm is None or _warm.poll() is not None:
        command = [sys.executable, "-W", "ignore", __file__]
        _warm = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "MPLBACKEND": "agg"},  # read as it is imported
        )
    return _warm


@atexit.register
def _end() -> None:
    global _warm
    if _warm is not None and _warm.poll() is None:
        os.killpg(_warm.pid, 9)
        _warm.wait()
    _warm = None


def _main() -> None:
    import importlib
    import runpy
    import warnings

    for name in _IMPORTED:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        return

    job = json.loads(line)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for stream, path in enumerate([os.devnull, *job["streams"]]):
        opened = os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, stream)
        os.close(opened)
    warnings.resetwarnings()
    warnings.simplefilter(job["warnings"])
    # said by the compiler, of other packages' files, to whoever happens to import them first
    warnings.filterwarnings("ignore", "invalid escape sequence")
    warnings.simplefilter("ignore", SyntaxWarning)
    sys.argv = job["argv"]
    sys.path[0] = str(Path(job["argv"][0]).resolve().parent)
    runpy.run_path(job["argv"][0], run_name="__main__")


if __name__ == "__main__":
    _main()
