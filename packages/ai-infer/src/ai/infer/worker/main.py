"""The worker's program: `python -m ai.infer.worker.main ARGUMENTS`, started by `ai.infer.launcher`."""

import gc
import json
import os
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from ai.infer.transport.frames import FrameStream, Kind
from ai.infer.transport.shared_weights import SharedWeights
from ai.infer.worker.loop import Worker, WorkerOptions


def main(arguments: dict[str, Any]) -> None:
    """Runs a worker; see `ai.infer.launcher` for the arguments."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # they reach the whole group: the starter decides, and its end is ours
        signal.signal(number, signal.SIG_IGN)
    control = FrameStream(socket.socket(fileno=arguments["control"]))
    folder = Path(arguments["socket"]).parent
    try:
        with os.fdopen(arguments["payload"], "rb", closefd=False) as file:
            file.seek(0)
            payload = torch.load(file, map_location="cpu", weights_only=False)
        os.close(arguments["payload"])
        options: WorkerOptions = payload["options"]
        _take_over(options.torch_state)
        weights = SharedWeights(payload["model"], arguments["weights"])
        os.close(arguments["weights"])
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = Path(arguments["socket"])
        path.unlink(missing_ok=True)  # that of a worker which died
        listener.bind(os.fspath(path))
        listener.setblocking(False)
        worker = Worker(
            payload["model"], options, listener, control, weights, arguments["starter"], arguments["version"]
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
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the model's own threads and atexit handlers must not hold up the end


def _take_over(state: dict[str, Any]) -> None:
    """Sets torch up as the starter had it, so that equal inputs give equal bits."""
    torch.set_num_threads(state["num_threads"])
    torch.set_default_dtype(state["default_dtype"])
    torch.set_float32_matmul_precision(state["matmul_precision"])
    torch.use_deterministic_algorithms(state["deterministic"], warn_only=state["deterministic_warn_only"])
    torch.backends.mkldnn.enabled = state["mkldnn"]
    torch.backends.cudnn.allow_tf32 = state["cudnn_tf32"]
    torch.backends.cudnn.benchmark = state["cudnn_benchmark"]
    torch.backends.cudnn.deterministic = state["cudnn_deterministic"]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
