"""Whether the worker that somebody waits for hangs: a wait without a deadline ends by it."""

from pathlib import Path

from ai.infer.errors import WorkerDiedError
from ai.infer.transport.vitals import BEAT_S, Vitals

_LONGEST_S = 3600.0  # that one wait may take, after which the next begins: the system knows no infinity


class HangCheck:
    """Looks at what a worker shows of itself.

    Args:
        path: of the worker's vitals.
        limit_s: how long one call of the model may take; None: any time, and it never hangs.

    Raises:
        WorkerDiedError: there are none.
    """

    def __init__(self, path: Path, limit_s: float | None) -> None:
        try:
            self._vitals = None if limit_s is None else Vitals(path)
        except FileNotFoundError:
            raise WorkerDiedError(f"no inferencer runs at {path.parent}: it was stopped") from None
        self._limit_s = limit_s or 0.0
        self.interval_s = None if limit_s is None else min(max(limit_s / 4, 0.01), BEAT_S)
        """How long to wait between two looks; None: there is nothing to look for."""

    def __call__(self) -> None:
        """Raises TimeoutError if the worker hangs."""
        reason = None if self._vitals is None else self._vitals.hangs(self._limit_s)
        if reason is not None:
            raise TimeoutError(reason)

    def slice_s(self, timeout: float | None) -> float | None:
        """Returns how long to wait, of `timeout` seconds or without an end, until the next look."""
        if timeout is None:
            return self.interval_s
        return min(timeout, _LONGEST_S if self.interval_s is None else self.interval_s)
