"""Runs scripts as `python script.py` would, in a fork of a process that has imported torch and other packages already.

A fresh interpreter takes two to five seconds of a core for these imports, and the suite runs some hundred scripts, of
which many start further ones. Arguments, folder, environment, open files, standard streams, signals and exit status are
the script's own, and so is every module of ours; only what is imported of others is shared, so what a script imports,
and with which warnings, is for tests that start an interpreter.

`executable()` is what stands for `sys.executable`. It is a small interpreter that hands its arguments and open files to
the process that forks, passes signals on, and ends as the script does; if it is killed, so is the script.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

_IMPORTED = [
    "torch",
    "torch._dynamo",  # as an optimiser's first step does: a second, half of it sympy
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "PIL.Image",
    "cloudpickle",
    "optuna",
]
_HIGH = 500  # from here on received files lie until they are put where they belong
_warm: subprocess.Popen[bytes] | None = None
_folder: Path | None = None
_starting = threading.Lock()
_owner = 0
"""The process that has started it."""


def run(
    script: str | Path,
    *arguments: object,
    folder: str | Path,
    environment: dict[str, str] | None = None,
    warnings: str = "default",
    timeout: float = 300,
    nested: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end; a negative status is the signal that ended it.

    Args:
        script: Its path.
        arguments: As text in its `sys.argv`.
        folder: Where it runs.
        environment: Variables beside those of this process.
        warnings: What becomes of warnings, as `-W` has it.
        timeout: Seconds after which it is killed.
        nested: Whether its `sys.executable` is such an executable, too.

    Raises:
        subprocess.TimeoutExpired: It was.
    """
    command = [executable(), "-W", warnings, str(script), *map(str, arguments)]
    variables = {**os.environ, **(environment or {}), **({"WARM_PYTHON_NESTED": "1"} if nested else {})}
    with tempfile.TemporaryDirectory() as streams:
        out, err = Path(streams, "out"), Path(streams, "err")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
        try:
            status = process.wait(timeout)
        except BaseException as error:
            process.kill()
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                error.output, error.stderr = out.read_text(), err.read_text()
            raise
        return subprocess.CompletedProcess(command, status, out.read_text(), err.read_text())


def executable() -> str:
    """Returns the path of an interpreter that starts warm, for children of this process, which get its environment.

    On a system that has none of what it is made of, it is `sys.executable`.
    """
    global _warm, _folder, _owner
    if not hasattr(os, "pidfd_open"):
        return sys.executable
    if _folder is None:
        _owner = os.getpid()
        _folder = Path(tempfile.mkdtemp(prefix="warm", dir="/tmp"))  # a socket's path may have a hundred bytes
        os.environ["WARM_PYTHON"] = str(_folder / "socket")
        made = _folder / "python"
        made.write_text(f"#!{sys.executable} -ISE\nREAL = {sys.executable!r}\n{_CLIENT}")
        made.chmod(0o700)
    if _owner == os.getpid():
        with _starting:
            if _warm is None or _warm.poll() is not None:
                (_folder / "socket").unlink(missing_ok=True)
                _warm = _started(_folder)
    return str(_folder / "python")


def _started(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "MPLBACKEND": "agg"},  # read as it is imported
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"listens\n"
    return process


class Process(subprocess.Popen[Any]):
    """As `subprocess.Popen` of a command whose interpreter starts warm; its `pid` is that of the script itself."""

    def __init__(self, command: Any, *, pass_fds: Any = (), env: Any = None, **how: Any) -> None:
        self._real: int | None = None
        self._stand_in = 0
        warm = executable()
        if warm == sys.executable:
            super().__init__(command, pass_fds=pass_fds, env=env, **how)
            return
        told, tells = os.pipe()
        env = {**(os.environ if env is None else env), "WARM_PYTHON": os.environ["WARM_PYTHON"]}
        try:
            pid = {"WARM_PYTHON_PID": str(tells)}
            super().__init__([warm, *command[1:]], pass_fds=[*pass_fds, tells], env=env | pid, **how)
        finally:
            os.close(tells)
            with open(told, "rb") as file:
                self._real = int.from_bytes(file.read(), "little") or None

    @property
    def pid(self) -> int:  # type: ignore[override]
        return self._real or self._stand_in

    @pid.setter
    def pid(self, stand_in: int) -> None:
        self._stand_in = stand_in

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        try:
            pid, status = os.waitpid(self._stand_in, wait_flags)
        except ChildProcessError:
            pid, status = self._stand_in, 0
        return (self.pid if pid else 0), status

    def _internal_poll(self, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid == self.pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


_STARTS_WARM = types.SimpleNamespace(
    Popen=Process, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
)


def start_inferencers_warm(patch: Any) -> None:
    """Has the workers of every `Inferencer` of this process start so, until the monkeypatch is undone."""
    from ai.infer import launcher

    executable()  # in this process, and not first in a forked child, with which it would end
    patch.setattr(launcher, "subprocess", _STARTS_WARM)


def start_data_workers_warm(patch: Any) -> None:
    """Likewise those of loaders and generated data, which pays where they import torch."""
    from ai.data.workers import worker

    executable()
    patch.setattr(worker, "subprocess", _STARTS_WARM)


@atexit.register
def _end() -> None:
    if _warm is None or _folder is None or _owner != os.getpid():  # not a forked child, which may ask it, too
        return
    if _warm.poll() is None:
        os.killpg(_warm.pid, 9)
        _warm.wait()
    for pipe in (_warm.stdin, _warm.stdout):
        assert pipe is not None
        pipe.close()
    shutil.rmtree(_folder, ignore_errors=True)


# What stands for the interpreter. It imports little: it starts in a hundredth of a second.
_CLIENT = '''
import array, marshal, os, signal, socket, sys

tells = int(os.environ.pop("WARM_PYTHON_PID", -1))


def tell(pid):
    """Says which process the script is, to who asked for it."""
    if tells >= 0:
        os.write(tells, pid.to_bytes(4, "little"))
        os.close(tells)


def cold():
    tell(os.getpid())
    os.execv(REAL, [REAL, *sys.argv[1:]])


def how():
    """Returns what is to be run, or None where only a fresh interpreter will do."""
    rest, job = sys.argv[1:], {"options": [], "safe": False, "unbuffered": False}
    while rest:
        word = rest.pop(0)
        if word == "-P":
            job["safe"] = True
        elif word == "-u":
            job["unbuffered"] = True
        elif word.startswith("-W") and (rest or len(word) > 2):
            job["options"].append(word[2:] or rest.pop(0))
        elif word in ("-m", "-c") and rest:
            return {**job, "kind": word, "what": rest[0], "argv": [word, *rest[1:]]}
        elif word.startswith("-"):
            return None
        else:
            return {**job, "kind": "script", "what": word, "argv": [word, *rest]}
    return None


def main():
    job = how()
    line = socket.socket(socket.AF_UNIX)
    try:
        if job is None:
            cold()
        line.connect(os.environ["WARM_PYTHON"])
    except (KeyError, OSError):
        cold()
    passed = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, passed)
    numbers = [number for number in range(256) if number not in (line.fileno(), tells) and is_open(number)]
    job |= {
        "files": numbers,
        "executable": sys.argv[0],
        "parent": os.getppid(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "leads": os.getsid(0) == os.getpid(),
    }
    data = marshal.dumps(job)
    line.sendmsg(
        [len(data).to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))]
    )
    line.sendall(data)
    pid = int.from_bytes(line.recv(4), "little")
    if not pid:
        cold()
    tell(pid)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in numbers:  # whose ends are the script's to close
        os.close(number) if number > 2 else os.dup2(nothing, number)
    for number in passed:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
    ended = line.recv(4)
    status = int.from_bytes(ended, "little", signed=True) if len(ended) == 4 else -9
    if status < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if status != -9:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        signal.pause()
    os._exit(status)


def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


main()
'''


def _serve(folder: Path) -> dict[str, Any]:
    """Forks for whoever asks; returns in each child what it is to run."""
    import gc
    import importlib
    import select
    import signal
    import socket

    for name in _IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(100)
    gc.collect()
    gc.freeze()
    print("listens", flush=True)
    while True:
        if 0 in select.select([0, listener], [], [])[0]:  # who has started this is gone, as pytest-xdist's processes go
            shutil.rmtree(folder, ignore_errors=True)
            os.killpg(0, signal.SIGKILL)
        line, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return _keep(line)
        line.close()


def _keep(line: Any) -> dict[str, Any]:
    """Starts one script, and ends with it; returns in the child, with its files at their places."""
    import array
    import fcntl
    import marshal
    import select
    import signal
    import socket

    size = array.array("i").itemsize
    head, ancillary, _, _ = line.recvmsg(8, socket.CMSG_SPACE(256 * size))
    files = array.array("i")
    for _, _, data in ancillary:
        files.frombytes(data[: len(data) - len(data) % size])
    want, parts = int.from_bytes(head, "little"), b""
    while len(parts) < want:
        parts += line.recv(want - len(parts))
    job: dict[str, Any] = marshal.loads(parts)
    own = os.environ
    if any(own.get(name) != job["environment"].get(name) for name in ("OMP_NUM_THREADS", "PYTHONHASHSEED")):
        line.sendall(bytes(4))  # of which the shared imports know something else
        os._exit(0)
    if pid := os.fork():
        for number in files:
            os.close(number)
        watch = os.pidfd_open(pid)
        line.sendall(pid.to_bytes(4, "little"))
        if watch not in select.select([watch, line], [], [])[0]:
            os.kill(pid, signal.SIGKILL)  # as whoever stood for it was
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            line.sendall(status.to_bytes(4, "little", signed=True))
        finally:
            os._exit(0)
    line.close()
    high = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _HIGH) for number in files]
    for number in files:
        os.close(number)
    for number in range(3):
        os.close(number)
    for number, there in zip(high, job["files"], strict=True):
        os.dup2(number, there)
        os.close(number)
    return job


def _prepare(job: dict[str, Any]) -> None:
    """Makes this process what a fresh interpreter would be."""
    import importlib
    import random
    import select
    import warnings

    import numpy as np

    if job["leads"]:
        os.setsid()
    os.chdir(job["folder"])
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(job["environment"])
    starter = os.pidfd_open(job["parent"]) if os.path.exists(f"/proc/{job['parent']}") else None
    own, real = os.getpid(), os.getppid

    def getppid() -> int:
        """The process that started this one, as long as it lives."""
        if os.getpid() != own:  # a forked child
            return real()
        gone = starter is None or bool(select.select([starter], [], [], 0)[0])
        return 1 if gone else int(job["parent"])

    os.getppid = getppid
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    if job["unbuffered"] or os.environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    if "WARM_PYTHON_NESTED" in os.environ:
        sys.executable = job["executable"]
    sys.argv = job["argv"]
    sys.orig_argv = [sys.executable, *(["-m", job["what"]] if job["kind"] == "-m" else []), *job["argv"][1:]]
    if job["kind"] == "script":
        sys.orig_argv.insert(1, job["what"])
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    rest = [path for path in sys.path[1:] if path not in before]
    safe = job["safe"] or os.environ.get("PYTHONSAFEPATH")
    first = {"script": os.path.dirname(os.path.realpath(job["what"])), "-m": job["folder"], "-c": ""}[job["kind"]]
    sys.path[:] = list(dict.fromkeys([*([] if safe else [first]), *given, *rest]))
    importlib.invalidate_caches()
    warnings.resetwarnings()
    for category in (ResourceWarning, ImportWarning, PendingDeprecationWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
    options = [each for each in os.environ.get("PYTHONWARNINGS", "").split(",") if each] + job["options"]
    sys.warnoptions[:] = options
    warnings._processoptions(options)  # type: ignore[attr-defined]
    # said by the compiler, of other packages' files, to whoever happens to import them first
    warnings.filterwarnings("ignore", "invalid escape sequence")
    warnings.simplefilter("ignore", SyntaxWarning)
    tempfile.tempdir = None  # which another environment may name
    random.seed()
    np.random.seed()


def _main() -> None:
    job = _serve(Path(sys.argv[1]))
    _prepare(job)
    import runpy

    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    if job["kind"] == "-m":
        runpy._run_module_as_main(job["what"])  # type: ignore[attr-defined]
        return
    source = job["what"]
    if job["kind"] == "script":
        main.__file__ = job["what"]
        source = Path(job["what"]).read_bytes()
    exec(compile(source, job["what"] if job["kind"] == "script" else "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    _main()
