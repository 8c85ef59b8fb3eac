"""Word of a run that needs somebody: at a number that is none, a stall, a failure, or the end."""

import json
import math
import queue
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from ai.data.workers.error_text import error_text
from ai.lab.arguments import check_seconds
from ai.lab.record import Record
from ai.lab.recording.session import Closing

WAITING = 100
"""So many alerts may wait for a slow receiver before further ones are left out."""
LONGEST_S = 1e8
"""Three years: more than that a thread cannot wait everywhere."""
ENDS = ("finished", "stopped", "pruned", "interrupted", "failed")
"""The states in which a run ends."""
SEND_S = 10.0
"""So long a webhook may take to answer, and the end of a run waits for what is still to be sent."""


@dataclass(frozen=True)
class Alert:
    """What happened.

    Attributes:
        kind: `'nan'`, `'stall'`, or the state in which the run ended, such as `'failed'` or `'finished'`.
        trial: The name of the trial's folder.
        path: The folder.
        step: The last step that was logged; None before any.
        text: All of it in one line.
    """

    kind: str
    trial: str
    path: str
    step: int | None
    text: str


class Alerts(Closing):
    """A logger that tells somebody what happens to a run: `Trial(…, loggers=[ai.lab.Alerts(print)])`.

    Told are the first number of each metric that is not finite, a stall, and the end. A process that is killed tells
    nothing: the page shows it as dead.

    Args:
        to: Called with each `Alert` from a thread of its own; or the address of a webhook, to which it is posted as
            JSON with a `text`, as Slack, Mattermost and others take it. One that fails or is slow never hurts the run.
        stall_after_s: A run that logs nothing for so long has stalled; None for never.
        ends: The states at whose end it is told; all of them by default.

    Raises:
        TypeError: `ends` is no tuple, or `stall_after_s` no number.
        ValueError: `to` is no address of the web, `ends` names no state, or `stall_after_s` is not positive or no time.

    Example:
        >>> import tempfile
        >>> from ai.lab import Trial
        >>> told = []
        >>> with Trial(tempfile.mkdtemp() + "/t", loggers=[Alerts(told.append)], system_interval_s=None) as trial:
        ...     trial.log(3, {"loss": float("nan")})
        >>> [(alert.kind, alert.text) for alert in told]
        [('nan', 't: loss is nan at step 3'), ('finished', 't: finished at step 3')]
    """

    def __init__(
        self,
        to: str | Callable[[Alert], object],
        *,
        stall_after_s: float | None = None,
        ends: tuple[str, ...] | None = None,
    ) -> None:
        if not callable(to) and not (isinstance(to, str) and re.match(r"https?://[^/\s]", to)):
            raise ValueError(f"to must be a callable or an address such as 'https://host/path', got {to!r}")
        if not isinstance(ends, list | tuple | set | frozenset | None):
            raise TypeError(f"ends must be a tuple of states, such as ('failed',), got {ends!r}")
        if unknown := set(ends or ()) - set(ENDS):
            raise ValueError(f"ends must be of {', '.join(ENDS)}, got {', '.join(sorted(map(str, unknown)))}")
        check_seconds(LONGEST_S, stall_after_s=stall_after_s)
        self._send = (lambda alert: _post(to, alert)) if isinstance(to, str) else to
        self._stall_after_s, self._ends = stall_after_s, ends
        self._current: _Watch | None = None

    def begin(self, record: Record) -> None:
        """Begins to watch a run."""
        if self._current is not None:
            raise RuntimeError(
                f"one Alerts watches one run at a time, and {self._current.record.path} is not over: make another"
            )
        self._current = _Watch(record, self._send, self._stall_after_s)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Looks at a row."""
        if self._current is not None:
            self._current.see(step, values)

    def close(self, state: str, error: BaseException | None = None) -> None:
        """Tells the end, and waits a bounded time until it is told."""
        watch, self._current = self._current, None
        if watch is not None:
            watch.end(state if self._ends is None or state in self._ends else None, error)


class _Watch:
    """One run under watch: a thread that sends, and looks for stalls meanwhile."""

    def __init__(self, record: Record, send: Callable[[Alert], object], stall_after_s: float | None) -> None:
        self.record = record
        self._send, self._stall_after_s = send, stall_after_s
        self._step: int | None = None
        self._rows = 0
        self._odd: set[str] = set()
        self._queue: queue.Queue[Alert | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="ai-lab alerts", daemon=True)
        self._thread.start()

    def see(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        self._rows += 1
        for key, value in values.items():
            if not math.isfinite(value) and key not in self._odd:
                self._odd.add(key)
                self._tell("nan", f"{key} is {value} at step {step}")

    def end(self, state: str | None, error: BaseException | None) -> None:
        if state is not None:
            why = f" by {error_text(error)}" if error is not None else ""
            at = f" at step {self._step}" if self._step is not None else ""
            self._tell(state, f"{state}{at}{why}")
        try:
            self._queue.put(None, timeout=SEND_S)
        except queue.Full:
            return
        self._thread.join(SEND_S)

    def _tell(self, kind: str, what: str) -> None:
        alert = Alert(kind, self.record.name, str(self.record.path), self._step, f"{self.record.name}: {what}")
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            print(f"ai.lab: an alert is left out, its receiver is too slow: {alert.text}", file=sys.stderr)

    def _run(self) -> None:
        seen, since, told = -1, time.monotonic(), False
        while True:
            if self._rows != seen:
                seen, since, told = self._rows, time.monotonic(), False
            left = None if self._stall_after_s is None or told else self._stall_after_s - (time.monotonic() - since)
            if left is not None and left <= 0:
                told = True
                self._tell("stall", f"nothing was logged for {self._stall_after_s:g} s")
                continue
            # While a stall is known, only a new row can end it: looked for as often as one is looked for.
            pause_s = left if left is not None else self._stall_after_s
            try:
                alert = self._queue.get(timeout=pause_s)
            except queue.Empty:
                continue
            if alert is None:
                return
            try:
                self._send(alert)
            except Exception as error:  # the receiver's trouble is none of the run's
                print(f"ai.lab: an alert was not taken: {error_text(error)}", file=sys.stderr)


def _post(address: str, alert: Alert) -> None:
    request = urllib.request.Request(
        address, json.dumps(asdict(alert)).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=SEND_S):
        pass
