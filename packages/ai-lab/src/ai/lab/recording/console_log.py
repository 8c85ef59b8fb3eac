"""What a run prints, kept in `log.txt` as well."""

import contextlib
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any, TextIO

_MOST_PARTS = 10_000
_LONGEST_LINE = 1 << 16
"""Of a longer line the end is kept."""


class TextLog:
    """Copies standard output and error into a file until `close`; of a progress bar only its last state is kept.

    A failure to write ends the copying, never the printing.

    Args:
        path: The file, appended to.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)
        self._lock = threading.RLock()  # a trial given up may be ended, which logs a line, while another is written
        self._streams = {name: _Tee(getattr(sys, name), self) for name in ("stdout", "stderr") if getattr(sys, name)}
        for name, stream in self._streams.items():
            setattr(sys, name, stream)

    def event(self, text: str) -> None:
        """Appends a line of our own, with the time."""
        self.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}\n")

    def write(self, lines: str) -> None:
        """Appends whole lines."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._file.write(lines.encode(errors="replace"))

    def end_lines(self) -> None:
        """Appends what was printed of a line that has no end yet: what comes next was later."""
        for stream in self._streams.values():
            stream.end_line()

    def close(self) -> None:
        """Puts the streams back and closes the file; may be called twice."""
        for name, stream in self._streams.items():
            stream.finish()
            # Logs may end in any order. Somebody who wrapped a stream since keeps working through ours.
            outer = _without_ended(getattr(sys, name))
            setattr(sys, name, outer)
            while isinstance(outer, _Tee):
                outer.inner = outer = _without_ended(outer.inner)
        self._file.close()


class _Tee:
    """A text stream that also hands complete lines to a log."""

    def __init__(self, inner: TextIO, log: TextLog) -> None:
        self.inner = inner
        self._log = weakref.ref(log)
        self.has_ended = False
        self._parts: list[str] = []  # of the line that is not at its end, joined only there

    def write(self, text: str) -> int:
        written = self.inner.write(text)
        with contextlib.suppress(Exception):
            self._keep(text)
        return written

    def _keep(self, text: str) -> None:
        if "\n" not in text and "\r" not in text:
            self._parts.append(text)
            if len(self._parts) > _MOST_PARTS:
                self._parts = ["".join(self._parts)[-_LONGEST_LINE:]]
            return
        whole, newline, rest = ("".join(self._parts) + text).rpartition("\n")
        # A carriage return overwrites the line on a screen, and so it does here.
        self._parts = [rest.rpartition("\r")[2] if not rest.endswith("\r") else rest]
        log = self._log()
        if newline and log is not None:
            log.write("".join(line.rstrip("\r").rpartition("\r")[2] + "\n" for line in whole.split("\n")))

    def end_line(self) -> None:
        if "".join(self._parts).strip():
            self._keep("\n")

    def finish(self) -> None:
        self.has_ended = True
        self.end_line()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _without_ended(stream: Any) -> Any:
    while isinstance(stream, _Tee) and stream.has_ended:
        stream = stream.inner
    return stream
