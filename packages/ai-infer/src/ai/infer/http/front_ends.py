"""Several front ends, processes that answer HTTP at one listening socket, in front of one set of models' workers."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from ai.infer.http.formats.messages import RefusedError
from ai.infer.http.line import Line, LineClosedError
from ai.infer.http.metrics import Metrics
from ai.infer.http.models.repository import Repository
from ai.infer.http.owner import LocalOwner
from ai.infer.inferencer import Inferencer

_log = logging.getLogger("ai.infer")
_START_TIMEOUT_S = 120.0
_LOOK_INTERVAL_S = 0.05
_PING_INTERVAL_S = 1.0
_SILENCE_S = 30.0  # after which a front end that answers nothing is ended: JSON may hold it up for a second or two
_COUNTS_TIMEOUT_S = 1.0
_YOUNG_S = 5.0  # a front end that dies sooner after it was ready is not started again at once
_MAX_BACKOFF_S = 30.0
_GRACE_S = 5.0  # beyond what requests on their way may take at the end


class _FrontEnd:
    """One of the processes, while it lives."""

    def __init__(self, index: int, process: asyncio.subprocess.Process, line: Line) -> None:
        self.index = index
        self.process = process
        self.line = line
        self.ready = asyncio.Event()
        self.counts: dict[str, Any] | None = None
        """What it had counted when it was last asked."""


class FrontEnds:
    """Starts front ends, answers them, starts again what dies, and ends them.

    Args:
        n: how many.
        repository: the models, which this process loads.
        listener: the bound socket at which all of them listen.
        arguments: of `ai-infer serve`.
        tokens: see `App`.
    """

    def __init__(
        self, n: int, repository: Repository, listener: socket.socket, arguments: Namespace, tokens: list[str] | None
    ) -> None:
        self._owner = LocalOwner(repository)
        self._repository = repository
        self._listener = listener
        self._arguments = arguments
        self._tokens = tokens
        self._n = n
        self._living: dict[int, _FrontEnd] = {}
        self._stopping = asyncio.Event()
        self._of_the_dead = Metrics(repository)  # what they had counted, so that no sum ever falls
        for model in repository.all():
            model.hand_over = self._hand_over

    async def serve(self, listens: Callable[[], None]) -> int:
        """Serves until SIGTERM or Ctrl-C; returns the exit code.

        Args:
            listens: called once all front ends listen.
        """
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        loading = asyncio.create_task(self._load())
        keepers = [asyncio.create_task(self._keep(index, loading)) for index in range(self._n)]
        stop = asyncio.create_task(self._stopping.wait())
        code = 0
        try:
            first = asyncio.create_task(self._await_all(loading))
            await asyncio.wait([first, stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
            if first.done() and first.exception() is None and not self._stopping.is_set():
                listens()
                await asyncio.gather(stop, self._tell_of_changes())
            elif not self._stopping.is_set():
                code = 1
                failed = [task for task in (first, *keepers) if task.done() and task.exception() is not None]
                _log.error("the server could not start: %s", failed[0].exception() if failed else "")
            first.cancel()
        finally:
            self._stopping.set()
            await self._end(keepers)
        return code

    async def _load(self) -> list[dict[str, Any]]:
        await self._owner.start()
        return self._states()

    def _states(self) -> list[dict[str, Any]]:
        return [model.state() for model in self._repository.all()]

    async def _await_all(self, loading: "asyncio.Task[Any]") -> None:
        await loading
        while len(self._living) < self._n or not all(each.ready.is_set() for each in self._living.values()):
            await asyncio.sleep(_LOOK_INTERVAL_S)

    # One front end ----------------------------------------------------------------------------------------------

    async def _keep(self, index: int, loading: "asyncio.Task[Any]") -> None:
        """Runs a front end, anew whenever it dies; raises if the first one does before it was ready."""
        backoff, was_ready = 0.0, False
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                front_end = await self._start(index)
            except OSError as error:  # no memory, no process, no descriptor just now
                if not was_ready:
                    raise
                _log.error("front end %d could not be started again, and will be later: %s", index, error)
                await self._pause(_MAX_BACKOFF_S)
                continue
            await self._attend(front_end, loading)
            if self._stopping.is_set():
                return
            was_ready = was_ready or front_end.ready.is_set()
            if not was_ready:
                code = front_end.process.returncode
                raise RuntimeError(f"front end {index} ended with exit code {code} before it listened")
            young = not front_end.ready.is_set() or time.monotonic() - started < _YOUNG_S
            backoff = min(max(0.1, 2 * backoff), _MAX_BACKOFF_S) if young else 0.0
            await self._pause(backoff)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _start(self, index: int) -> _FrontEnd:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "ai.infer.http.front_end", str(theirs.fileno()), str(self._listener.fileno())),
                pass_fds=[theirs.fileno(), self._listener.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        _log.info("front end %d starts as process %d", index, process.pid)
        front_end: _FrontEnd

        async def answer(what: str, about: dict[str, Any]) -> Any:
            return await self._answer(front_end, what, about)

        front_end = self._living[index] = _FrontEnd(index, process, Line(ours, answer))
        if self._stopping.is_set():  # the others were told while this one was made
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        return front_end

    async def _attend(self, front_end: _FrontEnd, loading: "asyncio.Task[Any]") -> None:
        """Serves a front end until it is dead."""
        serving = asyncio.create_task(front_end.line.serve())
        watching = asyncio.create_task(self._watch(front_end, loading))
        code = await front_end.process.wait()
        watching.cancel()
        await asyncio.gather(serving, watching, return_exceptions=True)
        self._living.pop(front_end.index, None)
        if front_end.counts is not None:
            self._of_the_dead.add(front_end.counts)
        if not self._stopping.is_set():
            text = "front end %d (process %d) died with exit code %d, and is started again"
            _log.error(text, front_end.index, front_end.process.pid, code)

    async def _watch(self, front_end: _FrontEnd, loading: "asyncio.Task[Any]") -> None:
        """Tells a front end what to serve; ends it if it does not start, or falls silent."""
        process, line = front_end.process, front_end.line
        try:
            await asyncio.shield(loading)
            about = {
                "arguments": {name: x for name, x in vars(self._arguments).items() if _is_plain(x)},
                "tokens": self._tokens,
                "path": [os.getcwd()],
                "models": self._states(),
            }
            await line.ask("serve", _START_TIMEOUT_S, **about)
            async with asyncio.timeout(_START_TIMEOUT_S):
                await front_end.ready.wait()
            await line.ask("models", _SILENCE_S, models=self._states())  # which may have changed meanwhile
            while True:
                await asyncio.sleep(_PING_INTERVAL_S)
                front_end.counts = await line.ask("counts", _SILENCE_S)
        except LineClosedError:
            pass
        except TimeoutError:
            _log.error("front end %d (process %d) does not answer, and is ended", front_end.index, process.pid)
        if process.returncode is None and not self._stopping.is_set():
            await asyncio.sleep(_PING_INTERVAL_S)  # it may be about to end by itself
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _answer(self, front_end: _FrontEnd, what: str, about: dict[str, Any]) -> Any:
        if what == "ready":
            front_end.ready.set()
            return None
        if what == "change":
            await self._owner.change(about["action"], about["name"])
            await self._tell_all()
            return None
        if what == "metrics":
            return (await self._write_metrics()).decode()
        raise RefusedError(400, f"the owner of the models is not asked for {what!r}")

    # All of them ------------------------------------------------------------------------------------------------

    async def _ask_all(self, what: str, timeout_s: float, **about: Any) -> list[tuple[_FrontEnd, Any]]:
        """Returns each front end with its answer; those that do not answer are left out."""

        async def ask(front_end: _FrontEnd) -> tuple[_FrontEnd, Any] | None:
            with contextlib.suppress(OSError, TimeoutError, RefusedError):
                return front_end, await front_end.line.ask(what, timeout_s, **about)
            return None

        front_ends = [each for each in self._living.values() if each.ready.is_set()]
        answers = await asyncio.gather(*(ask(each) for each in front_ends))
        return [answer for answer in answers if answer is not None]

    async def _tell_all(self) -> None:
        """Tells every front end of the models; returns once they need none of the workers that were before."""
        await self._ask_all("models", self._arguments.timeout + _COUNTS_TIMEOUT_S, models=self._states())

    def _hand_over(self, old: Inferencer) -> None:
        """In a thread: see `ServedModel.hand_over`."""
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._tell_all(), self._loop).result()

    async def _tell_of_changes(self) -> None:
        """Tells the front ends when a model's workers die, hang, or come back."""
        told = self._states()
        telling: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            states = self._states()
            if states != told:
                told = states
                task = asyncio.create_task(self._tell_all())
                telling.add(task)
                task.add_done_callback(telling.discard)
            await self._pause(_LOOK_INTERVAL_S)

    async def _write_metrics(self) -> bytes:
        for front_end, counts in await self._ask_all("counts", _COUNTS_TIMEOUT_S):
            front_end.counts = counts
        total = Metrics(self._repository)
        total.add(self._of_the_dead.counts())
        for front_end in self._living.values():
            if front_end.counts is not None:
                total.add(front_end.counts)
        return total.write()

    async def _end(self, keepers: "list[asyncio.Task[None]]") -> None:
        """Lets every front end answer what it has, then ends it."""
        self._listener.close()
        for front_end in self._living.values():
            with contextlib.suppress(ProcessLookupError):
                front_end.process.send_signal(signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=self._arguments.drain + _GRACE_S)
        for front_end in self._living.values():
            with contextlib.suppress(ProcessLookupError):
                front_end.process.kill()
        if late:
            await asyncio.wait(late)
        await asyncio.to_thread(self._owner.close)


def _is_plain(x: Any) -> bool:
    return x is None or isinstance(x, (str, int, float, list))
