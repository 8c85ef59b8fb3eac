"""Starts the workers of one inferencer, watches them, and stops them."""

import json
import logging
import math
import os
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ai.infer.errors import InferError, WorkerDiedError
from ai.infer.stats import Stats
from ai.infer.transport.frames import Frame, FrameStream, Kind
from ai.infer.transport.payload import pack_payload
from ai.infer.transport.shared_weights import SharedWeights
from ai.infer.transport.socket_folder import ADDRESS_FILE, EXTRA_STATE_FILE, VITALS_FILE, make_folder, sweep
from ai.infer.transport.vitals import BEAT_S, Vitals
from ai.infer.worker.options import WorkerOptions

_STOP_TIMEOUT_S = 10.0
_MIN_LIFE_S = 1.0  # a worker that dies sooner than this after it was ready is not worth restarting at once
_MAX_BACKOFF_S = 30.0
_log = logging.getLogger("ai.infer")
_MAX_POLL_S = 3600.0  # more is more than a poll can be asked for


class _Process:
    """One worker's process, and the line to it."""

    def __init__(self, index: int, process: "subprocess.Popen[bytes]", control: FrameStream) -> None:
        self.index = index
        self.process = process
        self.control = control
        self.applied = -1  # version of the weights that it has taken over; -1: it is not ready
        self.spawned_at = time.monotonic()
        self.ready_at = 0.0
        self.failure: str | None = None
        self.stalled = False
        self.tried = 0  # the number of the last extra state that it was asked about
        self.refusal = ""  # what the model raised at that; empty: it takes it

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def starting(self) -> bool:
        return self.failure is None and self.applied < 0


class Launcher:
    """The workers of one inferencer. A thread of its own sees their messages and their deaths, and logs them.

    Args:
        model: shipped to the workers by value.
        options: for each worker.
        restart: whether a worker that dies is started again, with the newest weights.
        start_timeout_s: after which a worker that is not ready is killed.
        stall_timeout_s: after so long in one call of the model a worker hangs; None: it may take any time.
        build: makes the model in the worker, where `model`'s state is loaded into it; None: `model` itself is sent.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Sequence[WorkerOptions],
        restart: bool,
        start_timeout_s: float,
        stall_timeout_s: float | None = None,
        build: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.pid = os.getpid()
        self._restart = restart
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._stopping = False
        self._version = 0
        self._extra = self._n_tried = 0  # the files of the extra state that holds, and of the last one
        self._taken = b""  # the extra state that models were last seen to take
        self._changed = threading.Condition()
        self._updating = threading.Lock()
        self._processes: list[_Process] = []
        self._payload = -1
        self._vitals: list[Vitals] = []
        self._backoff_s = 0.0
        self._weights = SharedWeights(model)
        self._waker, self._wake_end = socket.socketpair()
        self.folder, self._lock = make_folder()
        try:
            about = {
                "replicas": len(options),
                "restart": restart,
                "start_timeout_s": start_timeout_s,
                "stall_timeout_s": stall_timeout_s,
            }
            (self.folder / ADDRESS_FILE).write_text(json.dumps(about))
            self._payload = pack_payload(model, options, build)
            self._vitals = [Vitals(self.folder / VITALS_FILE.format(index), new=True) for index in range(len(options))]
            self._processes = [self._spawn(index) for index in range(len(options))]
            self._thread = threading.Thread(target=self._watch, name="ai-infer-launcher", daemon=True)
            self._thread.start()
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def _spawn(self, index: int) -> _Process:
        ours, theirs = socket.socketpair()
        arguments = {
            "control": theirs.fileno(),
            "payload": self._payload,
            "index": index,
            "weights": self._weights.descriptor,
            "socket": os.fspath(self.folder / f"worker-{index}"),
            "starter": os.getpid(),
            "version": self._version,
            "extra": self._extra,
        }
        files = [self._payload, self._weights.descriptor]
        self._vitals[index].clear()
        paths = [os.path.abspath(path) for path in sys.path]  # as here, also what the script itself has added
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ai.infer.worker.main", json.dumps(arguments)],
            pass_fds=[theirs.fileno(), *files, self._lock],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        theirs.close()
        _log.info("worker %d starts as process %d", index, process.pid)
        return _Process(index, process, FrameStream(ours))

    def _await_ready(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not any(process.starting for process in self._processes))
            failures = [process.failure for process in self._processes if process.failure is not None]
        if failures:
            raise InferError(f"a worker could not start: {failures[0]}")

    # Weights ----------------------------------------------------------------------------------------------------

    def update(self, tensors: list[Tensor], extra: bytes = b"") -> int:
        """Publishes new weights to every worker and returns their version; see `SharedWeights.check`.

        Args:
            tensors: what `check` returned.
            extra: what `pack_extra_state` returned.

        Raises:
            ValueError: the model of a worker does not take the extra state.
            TimeoutError: a worker hangs.
        """
        with self._updating:
            version = self._version + 1
            with self._changed:
                # The buffer of `version` held version - 2; who has that or a newer one no longer reads it.
                self._wait_for(lambda process: process.applied >= version - 2, "yet to take earlier weights")
                self._check_alive()
                number = self._keep_extra_state(extra) if extra else self._extra
            self._weights.write(tensors, version)
            with self._changed:
                self._check_alive()
                before, self._extra = self._extra, number
                self._version = version
                self._weights.announce(version)
                for process in self._processes:
                    if process.failure is None:
                        process.control.send(Kind.UPDATE, number, version=version)
                for path in self.folder.glob(EXTRA_STATE_FILE.format("*")):
                    # A worker that has yet to take version - 1 reads that one's.
                    if path.name not in (EXTRA_STATE_FILE.format(before), EXTRA_STATE_FILE.format(number)):
                        path.unlink()
            return version

    def check(self, state_dict: dict[str, Tensor]) -> list[Tensor]:
        """Returns the tensors to `update` with; raises ValueError if they do not fit the model."""
        return self._weights.check(state_dict)

    def _wait_for(self, done: Callable[[_Process], bool], what: str) -> None:
        """Waits until `done` of each worker that lives; `_changed` is held, and what happens to them is seen."""

        def late() -> list[_Process]:
            return (
                [] if self._stopping else [each for each in self._processes if each.failure is None and not done(each)]
            )

        look_s = None if self._stall_timeout_s is None else min(max(self._stall_timeout_s / 4, 0.01), BEAT_S)
        while not self._changed.wait_for(lambda: not late(), look_s):
            for process in late():
                if self._stalls(process):
                    raise TimeoutError(f"worker {process.index} hangs and has {what}")

    def _keep_extra_state(self, extra: bytes) -> int:
        """Returns the number of the file where workers find an extra state, once their models were seen to take it."""
        self._n_tried += 1
        path = self.folder / EXTRA_STATE_FILE.format(self._n_tried)
        try:
            path.write_bytes(extra)
            if extra != self._taken:
                self._try_extra_state(self._n_tried)
                self._taken = extra
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return self._n_tried

    def _try_extra_state(self, number: int) -> None:
        """Raises ValueError if a worker's model does not take an extra state; `_changed` is held."""

        def up() -> list[_Process]:
            return [each for each in self._processes if each.failure is None and each.applied >= 0]

        def has_answered(process: _Process) -> bool:
            return process not in asked or process.tried == number

        longest_s = min(float(self._start_timeout_s), _MAX_POLL_S)
        for _ in range(2):  # a worker that dies meanwhile may do so for another reason
            if not self._changed.wait_for(lambda: up() or self._stopping, longest_s):
                raise TimeoutError("no worker was restarted in time to try the extra state")
            asked = up()
            for process in asked:
                process.control.send(Kind.TRY, number)
            self._wait_for(has_answered, "yet to try the extra state")
            self._check_alive()
            answered = [process for process in asked if process.tried == number]
            if answered:
                break
        else:
            raise WorkerDiedError(f"no worker lived to try the extra state: {asked[0].failure}")
        for process in answered:
            if process.refusal:
                raise ValueError(f"state_dict must hold an extra state that the model takes: {process.refusal}")

    def _check_alive(self) -> None:
        if self._stopping:
            raise WorkerDiedError("the inferencer was stopped")
        if all(process.failure is not None for process in self._processes) and not self._restart:
            raise WorkerDiedError(f"the worker is dead: {self._processes[0].failure}")

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that live."""
        with self._changed:
            return [process.process.pid for process in self._processes if process.failure is None]

    @property
    def ready(self) -> bool:
        """Whether a worker lives, has its weights, and does not hang in a batch."""
        if not self._stopping:
            limit = self._stall_timeout_s
            for each in self._processes:  # no generator, no further call: a server asks this for every request
                if each.failure is None and each.applied >= 0:
                    if limit is None or self._vitals[each.index].hangs(limit) is None:
                        return True
        return False

    def _stalls(self, process: _Process) -> bool:
        limit = self._stall_timeout_s
        return limit is not None and self._vitals[process.index].hangs(limit) is not None

    @property
    def vitals(self) -> Stats:
        """The workers' counters, added up, as they last showed them; nobody is asked, so nothing is waited for."""
        return Stats.total([each.read() for each in self._vitals])

    # Watching ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Runs in the thread: reads what workers say, notices deaths, restarts if asked."""
        selector = selectors.DefaultSelector()
        selector.register(self._wake_end, selectors.EVENT_READ, None)
        for process in self._processes:
            selector.register(process.control.socket, selectors.EVENT_READ, process)
        due: dict[int, float] = {}  # worker index → when to start it again
        with selector:
            while True:
                self._end_overdue_starts()
                starting = [process for process in self._processes if process.starting]
                times = [*due.values(), *(process.spawned_at + self._start_timeout_s for process in starting)]
                look_s = _MAX_POLL_S if self._stall_timeout_s is None else max(self._stall_timeout_s / 2, 0.01)
                timeout = min(max(0.0, min(times, default=math.inf) - time.monotonic()), look_s, _MAX_POLL_S)
                self._log_stalls()
                for key, _ in selector.select(timeout):
                    if key.data is None:
                        return
                    process = key.data
                    try:
                        for frame in process.control.receive():
                            self._take(process, frame)
                    except ValueError as error:  # something in the worker wrote to its line to us
                        _log.error("worker %d sent what is no message, and is ended: %s", process.index, error)
                        process.process.kill()
                        process.control.closed = True
                    if process.control.closed:
                        selector.unregister(process.control.socket)
                        self._bury(process)
                        if self._restart and process.ready_at:
                            due[process.index] = time.monotonic() + self._pause(process)
                for index in [index for index, when in due.items() if when <= time.monotonic()]:
                    with self._changed:
                        if self._stopping:
                            return
                        try:
                            process = self._spawn(index)
                        except OSError as error:  # no memory, no process, no descriptor just now
                            _log.error("worker %d could not be started again, and will be later: %s", index, error)
                            due[index] = time.monotonic() + _MAX_BACKOFF_S
                            continue
                        self._processes[index] = process
                        process.ready_at = time.monotonic()  # so that one that fails to start is tried again
                    selector.register(process.control.socket, selectors.EVENT_READ, process)
                    del due[index]

    def _log_stalls(self) -> None:
        """Says once that a worker hangs, and once that it moves again."""
        for process in self._processes:
            stalls = process.failure is None and self._stalls(process)
            if stalls and not process.stalled:
                _log.error("worker %d hangs: it has not moved for over %s s", process.index, self._stall_timeout_s)
            elif process.stalled and not stalls and process.failure is None:
                _log.warning("worker %d moves again", process.index)
            process.stalled = stalls

    def _end_overdue_starts(self) -> None:
        """Kills workers that hang before they are ready, for instance in what the model's module does on import."""
        with self._changed:
            for process in self._processes:
                if process.starting and time.monotonic() >= process.spawned_at + self._start_timeout_s:
                    process.failure = f"process {process.process.pid} was not ready after {self._start_timeout_s} s"
                    process.process.kill()  # the end of its line tells the rest
                    self._changed.notify_all()

    def _pause(self, process: _Process) -> float:
        """Returns how long to wait before a worker is started again: not at all, unless it keeps dying young."""
        young = time.monotonic() - process.ready_at < _MIN_LIFE_S or process.applied < 0
        self._backoff_s = min(max(0.1, 2 * self._backoff_s), _MAX_BACKOFF_S) if young else 0.0
        return self._backoff_s

    def _take(self, process: _Process, frame: Frame) -> None:
        if frame.kind is Kind.LOG:
            about = json.loads(frame.header)
            _log.log(about["level"], "worker %d: %s", process.index, about["message"])
            return
        with self._changed:
            if frame.kind is Kind.ERROR:
                process.failure = frame.header.decode()
            elif frame.kind is Kind.TRY:
                process.tried, process.refusal = frame.id, frame.header.decode()
            else:
                if frame.kind is Kind.HELLO:
                    process.ready_at = time.monotonic()
                    taken_s = process.ready_at - process.spawned_at
                    _log.info("worker %d is ready as process %d after %.1f s", process.index, process.pid, taken_s)
                    if frame.version < self._version:  # weights that came while it started
                        process.control.send(Kind.UPDATE, self._extra, version=self._version)
                process.applied = max(process.applied, frame.version)
            self._changed.notify_all()

    def _bury(self, process: _Process) -> None:
        code = process.process.wait()  # its end of the line is closed, so it is at its end
        with self._changed:
            process.control.close()
            if process.failure is None:
                process.failure = f"it ended with exit code {code}"
            if not self._stopping:
                then = "it is started again" if self._restart and process.ready_at else "it is not started again"
                text = "worker %d (process %d) died, and %s: %s"
                _log.error(text, process.index, process.pid, then, process.failure)
            self._changed.notify_all()

    # Stopping ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stops the workers after their current batch, and removes the folder. In a forked child: nothing."""
        if os.getpid() != self.pid:
            return
        with self._changed:
            if self._stopping:
                return
            self._stopping = True
            for process in self._processes:
                if process.failure is None:
                    process.control.send(Kind.BYE)
            self._changed.notify_all()
        self._waker.send(b"x")
        if hasattr(self, "_thread") and threading.current_thread() is not self._thread:
            self._thread.join()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process in self._processes:
            try:
                process.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.process.kill()
                process.process.wait()
            process.control.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        for descriptor in (self._payload, self._weights.descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._waker.close()
        self._wake_end.close()
        sweep()
