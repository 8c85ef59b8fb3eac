"""Workers as threads of this process: nothing is started, so that what stands above an engine can be tested alone."""

import os
import pickle
import queue
import threading
from collections.abc import Callable
from typing import Any

from ai.data.workers.error_text import error_text


class InProcess:
    """An engine whose workers are threads. One that never looks at its inbox cannot be ended from outside."""

    def __init__(self) -> None:
        self.workers: list[ThreadWorker] = []

    def start(
        self, payload: bytes, on_message: Callable[[Any], None], on_exit: Callable[[str], None]
    ) -> "ThreadWorker":
        """Returns a new thread, as `Engine` says."""
        worker = ThreadWorker(payload, on_message, on_exit)
        self.workers.append(worker)
        return worker

    def share(self, value: Any) -> Any:
        """Returns the value itself, as `Engine` allows."""
        return value


class ThreadWorker:
    """A worker that is a thread; messages travel as pickles, as they would to a process.

    Args:
        payload: as of `Engine.start`; so are the others.
        on_message: as above.
        on_exit: as above.

    Attributes:
        thread: what it runs in.
    """

    def __init__(self, payload: bytes, on_message: Callable[[Any], None], on_exit: Callable[[str], None]) -> None:
        self._link = _Link(on_message)
        self._payload = payload
        self._on_exit = on_exit
        self.thread = threading.Thread(target=self._run, name="ai.data.ThreadWorker", daemon=True)
        self.thread.start()

    @property
    def where(self) -> tuple[str, int]:
        """This host and this process."""
        return "localhost", os.getpid()

    def send(self, message: Any) -> bool:
        """Puts a copy of the message into the worker's inbox."""
        self._link.inbox.put(pickle.dumps(message))
        return not self._link.ended

    def close(self) -> None:
        """Ends the worker when it next looks at its inbox."""
        self._link.ended = True
        self._link.inbox.put(b"")

    def _run(self) -> None:
        how = "returned"
        try:
            pickle.loads(self._payload)(self._link)
        except _EndedError:
            how = "was closed"
        except BaseException as error:
            how = f"raised {error_text(error)}"
        self._on_exit(how)


class _Link:
    """As `ai.data.workers.worker.Link`."""

    def __init__(self, on_message: Callable[[Any], None]) -> None:
        self.ended = False
        self.inbox = _Inbox()
        self._on_message = on_message

    def send(self, message: Any) -> None:
        copied = pickle.loads(pickle.dumps(message))
        if self.ended:
            raise _EndedError
        self._on_message(copied)

    def wait_for_end(self) -> None:
        while True:
            self.inbox.get()


class _Inbox:
    def __init__(self) -> None:
        self._pickles: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def put(self, pickled: bytes) -> None:
        self._pickles.put(pickled)

    def get(self) -> Any:
        pickled = self._pickles.get()
        if not pickled:
            raise _EndedError
        return pickle.loads(pickled)

    def empty(self) -> bool:
        return self._pickles.empty()


class _EndedError(BaseException):
    """Ends a worker's thread; no `except Exception` of its function keeps it."""
