"""One piece of work at a time in a thread, whose failure is raised where it is waited for."""

import threading
from collections.abc import Callable


class Background:
    """Runs a function in a thread; the next one begins when it is over.

    >>> done = []
    >>> background = Background('example')
    >>> background.start(lambda: done.append(1))
    >>> background.wait()
    >>> done
    [1]
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Wait for the work before, and begin this one; raises what `wait` raises."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        # Not a daemon: the interpreter's exit waits for it.
        self._thread = threading.Thread(target=run, name=self._name)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the work is over; raises what it raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            error, self._failure = self._failure, None
            raise error
