"""Several processes on one experiment: started as `python -m ai.lab.search.worker`, watched, replaced when they die."""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ai.data.workers.pickle_by_value import ship
from ai.lab.report.trial_table import TrialRow

if TYPE_CHECKING:
    from ai.lab.search.loop import Report, Run, Search

MAX_DEATHS = 3
"""So many workers may die without a finished trial between them; then something is wrong with the objective."""
_STOP_S = 15.0
_LOOK_S = 1.0


def run_workers(search: "Search", run: "Run", devices: Sequence[str | None], report: "Report") -> None:
    """Runs trials in a process for each of `devices` until the experiment has enough; see `Experiment.run`."""
    payload = ship((search, run))
    ends = None if run.timeout_s is None else time.monotonic() + run.timeout_s
    folder = search.path / "workers"
    folder.mkdir(exist_ok=True)
    selector = selectors.DefaultSelector()
    alive: set[Worker] = set()
    deaths, started = 0, 0

    def start(device: str | None) -> None:
        nonlocal started
        left = None if ends is None else max(0.0, ends - time.monotonic())
        how = {"device": device, "timeout_s": left}
        worker = Worker(payload, how, folder / f"{os.getpid()}-{started}.log", len(devices))
        started += 1
        alive.add(worker)
        selector.register(worker.events, selectors.EVENT_READ, worker)

    def hear(event: Mapping[str, Any]) -> None:
        nonlocal deaths
        if "error" in event:
            raise RuntimeError(f"a worker of {search.path} failed:\n{event['error']}")
        if "exit" in event:
            raise SystemExit(event["exit"])
        if "stopped" in event:
            for other in alive:
                other.take_no_more()
            return
        deaths = 0
        report(TrialRow(**{**event["row"], "path": Path(event["row"]["path"])}))

    def replace(worker: Worker) -> None:
        nonlocal deaths
        selector.unregister(worker.events)
        alive.discard(worker)
        status = worker.close()
        if status == 0:
            return
        deaths += 1
        if deaths >= MAX_DEATHS:
            raise RuntimeError(
                f"{deaths} workers of {search.path} died one after another, the last with status {status}; "
                f"its output ({worker.log_path}) ends:\n{worker.tail()}"
            )
        start(worker.device)

    try:
        for device in devices:
            start(device)
        while alive:
            ready = selector.select(_LOOK_S)
            for key, _ in ready:
                worker: Worker = key.data
                line = worker.events.readline()
                if line:
                    hear(json.loads(line))
                else:  # its end of the pipe is closed: it has ended
                    replace(worker)
            if not ready:  # a child that outlives its worker holds the pipe open
                for worker in [one for one in alive if one.has_ended]:
                    replace(worker)
    finally:
        selector.close()
        for worker in alive:
            worker.ask_to_stop()
        deadline = time.monotonic() + _STOP_S
        for worker in alive:
            worker.close(max(0.1, deadline - time.monotonic()))


class Worker:
    """One worker process. It ends when its standard input does, so none outlives its parent.

    Args:
        payload: What `ai.lab.search.worker` unpickles.
        how: What is this worker's own: its device and the time left.
        log_path: Takes what the process prints.
        n_jobs: How many share the machine's cores.
    """

    def __init__(self, payload: bytes, how: Mapping[str, Any], log_path: Path, n_jobs: int) -> None:
        self.log_path = log_path
        self.device: str | None = how["device"]
        threads = str(max(1, (os.cpu_count() or 1) // n_jobs))
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        receive, send = os.pipe()
        with open(log_path, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ai.lab.search.worker", str(send)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[send],
                env=environment,
                start_new_session=True,  # Ctrl-C comes to us, and we end the workers in good order
            )
        os.close(send)
        self.events = open(receive, "rb", buffering=0)
        assert self._process.stdin is not None
        header = json.dumps({"path": sys.path, "bytes": len(payload), **how}).encode()
        try:
            self._process.stdin.write(header + b"\n" + payload)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died already; its closed pipe of events says so too

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def take_no_more(self) -> None:
        """Lets it end after its trial."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has ended

    def ask_to_stop(self) -> None:
        """Lets it end its trial as interrupted."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass

    def close(self, timeout_s: float = _STOP_S) -> int:
        """Waits for its end, kills it when that does not come, and returns its exit status."""
        self.ask_to_stop()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.events.close()
        return self._process.returncode

    def tail(self, limit_bytes: int = 2000) -> str:
        """Returns the end of what it printed."""
        return self.log_path.read_bytes()[-limit_bytes:].decode(errors="replace").strip() or "(nothing)"
