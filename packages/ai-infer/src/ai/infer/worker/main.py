"""The worker's program: `python -m ai.infer.worker.main ARGUMENTS`, started by `ai.infer.launcher`."""

import contextlib
import gc
import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from ai.infer.transport.frames import FrameStream, Kind
from ai.infer.transport.payload import read_payload
from ai.infer.transport.shared_weights import SharedWeights
from ai.infer.transport.socket_folder import VITALS_FILE, sweep
from ai.infer.transport.vitals import Vitals
from ai.infer.worker.loop import Worker
from ai.infer.worker.options import WorkerOptions
from ai.infer.worker.switches import set_switches

_END_S = 10.0  # that a process takes at most to end


def main(arguments: dict[str, Any]) -> None:
    """Runs a worker; see `ai.infer.launcher` for the arguments."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # they reach the whole group: the starter decides, and its end is ours
        signal.signal(number, signal.SIG_IGN)
    control = FrameStream(socket.socket(fileno=arguments["control"]))
    raise_descriptor_limit()
    _send_log(control)
    folder = Path(arguments["socket"]).parent
    try:
        payload = read_payload(arguments["payload"])
        os.close(arguments["payload"])
        options: WorkerOptions = payload["options"][arguments["index"]]
        set_switches(options.torch_state)
        if "build" in payload:
            payload["model"] = payload["build"]()
            payload["model"].load_state_dict(payload.pop("state"))
        weights = SharedWeights(payload["model"], arguments["weights"])
        os.close(arguments["weights"])
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = Path(arguments["socket"])
        path.unlink(missing_ok=True)  # that of a worker which died
        listener.bind(os.fspath(path))
        listener.setblocking(False)
        worker = Worker(
            payload["model"],
            options,
            listener,
            control,
            weights,
            arguments["starter"],
            arguments["version"],
            Vitals(folder / VITALS_FILE.format(arguments["index"])),
            folder,
            arguments["extra"],
        )
        del payload
        listener.listen(1024)
    except BaseException:
        control.send(Kind.ERROR, header=traceback.format_exc().encode())
        os._exit(1)
    gc.freeze()  # torch alone makes half a million objects that no collection needs to look at
    control.send(Kind.HELLO, version=arguments["version"])
    code = 1
    try:
        if worker.serve():
            shutil.rmtree(folder, ignore_errors=True)
            _await_end(arguments["starter"])
            sweep()  # what else the starter had
        code = 0
    except BaseException as error:
        reason = f"the worker failed: {type(error).__name__}: {error}"
        worker.tell_all(reason)
        control.send(Kind.ERROR, header=f"{reason}\n\n{traceback.format_exc()}".encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the model's own threads and atexit handlers must not hold up the end


def _await_end(starter: int) -> None:
    """Waits until a process that ends has let go of its locks, which it does after its sockets."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # it has ended, or the system has none for us
            select.select([os.pidfd_open(starter)], [], [], _END_S)


def raise_descriptor_limit() -> None:
    """Lets this process have as many descriptors as the system allows: each client takes two."""
    try:
        import resource
    except ModuleNotFoundError:  # no POSIX
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _ToStarter(logging.Handler):
    """Hands log records to the starter, whose logging the user has set up."""

    def __init__(self, control: FrameStream) -> None:
        super().__init__()
        self._control = control

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            about = {"level": record.levelno, "message": record.getMessage()}
            self._control.send(Kind.LOG, header=json.dumps(about).encode())


def _send_log(control: FrameStream) -> None:
    logger = logging.getLogger("ai.infer")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_ToStarter(control))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
