"""SIGTERM and Ctrl-C as a wish to stop after the current step; a second Ctrl-C exits at once."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Self


class StopSignals:
    """While entered, SIGTERM and SIGINT set `requested` instead of ending the process; a second SIGINT exits with 130.

    Handlers can be set in the main thread only: elsewhere signals are left as they are.

    >>> with StopSignals() as signals:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     signals.requested
    'SIGTERM'
    """

    def __init__(self, watch: bool = True) -> None:
        self.requested: str | None = None
        self._watch = watch and threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if self._watch:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python; it cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._before.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and self.requested == "SIGINT":
            raise SystemExit(130)
        self.requested = name
        again = "; press Ctrl-C again to exit at once" if number == signal.SIGINT else ""
        print(f"\n{name}: stopping after this step{again}", file=sys.stderr, flush=True)
