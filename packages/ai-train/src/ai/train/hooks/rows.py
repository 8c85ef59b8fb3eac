"""The numbers of a step, collected and sent out as one row, with the rate of the steps since the row before."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ai.train.engine.run import Run

Metrics = dict[str, float]


class Rows:
    """Collects what is logged during one run.

    Args:
        run: whose steps they are.
        send: called on rank 0 with (step, numbers); None: nobody takes them.
        show: called with the numbers of a step, for a bar; None: nobody does.
    """

    def __init__(
        self, run: "Run", send: Callable[[int, Metrics], Any] | None, show: Callable[[Metrics], object] | None
    ) -> None:
        self.pending: Metrics = {}
        self._run, self._time, self._show = run, run.time, show
        self._send = send if run.ranks.rank == 0 else None
        self._step, self._since = run.step, run.time()

    def flush(self) -> None:
        """Send what was logged of the step that was just made."""
        if not self.pending:
            return
        numbers, self.pending = self.pending, {}
        step, now = self._run.step, self._time()
        if now > self._since and step > self._step:
            numbers["steps_per_s"] = (step - self._step) / (now - self._since)
        self._step, self._since = step, now
        if self._show is not None:
            self._show(numbers)
        self.send(step - 1, numbers)  # they belong to the step that was made from batch step - 1

    def send(self, step: int, numbers: Metrics) -> None:
        """Send a row."""
        if self._send is not None and numbers:
            self._send(step, numbers)
