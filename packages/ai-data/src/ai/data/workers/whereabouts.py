"""Where a worker's thread is, told by another thread of its process while one piece of work takes long."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DOING = "doing"
_N_SHOWN = 2  # calls from the outside, and from the inside


class Whereabouts:
    """Sends `("doing", text)` again and again while the thread that made it is at one piece of work.

    It says what hangs, not that anything goes on: who waits for the work does not take it for a sign of life.

    Args:
        send: of the worker's link.
        every_s: a piece of work that takes longer is told of, and again after as long; None tells nothing.
    """

    def __init__(self, send: Callable[[Any], None], every_s: float | None) -> None:
        self._send = send
        self._every_s = every_s
        self._working = threading.get_ident()
        self._file = sys._getframe(1).f_code.co_filename  # of the worker itself, which calls what may hang
        self._since: float | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Whereabouts":
        if self._every_s is not None:
            threading.Thread(target=self._tell, args=(self._every_s,), name="ai.data.Whereabouts", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Returns a context for one piece of work."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _tell(self, every_s: float) -> None:
        while not self._over.wait(min(every_s, threading.TIMEOUT_MAX)):
            since = self._since
            if since is None or time.monotonic() - since < every_s:
                continue
            try:
                self._send((DOING, self._calls()))
            except BaseException:  # its parent has ended it
                return

    def _calls(self) -> str:
        """Returns the calls that the thread is in, outermost first, without those of the worker itself."""
        shown: list[str] = []
        # No file is looked at, as for a traceback's lines: it may be the disk that hangs.
        for frame, line in traceback.walk_stack(sys._current_frames()[self._working]):
            if frame.f_code.co_filename == self._file:
                break
            shown.insert(0, f"{frame.f_code.co_name} ({os.path.basename(frame.f_code.co_filename)}:{line})")
        if len(shown) > 2 * _N_SHOWN:
            shown[_N_SHOWN:-_N_SHOWN] = ["…"]
        return " > ".join(shown)
