"""One use at a time, of what cannot be shared."""

from __future__ import annotations

import threading


class Turn:
    """A context that only one holder can be in; whoever comes second is refused, not kept waiting.

    Copies and pickles of it are free.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "a search must be used by one call at a time, this one is searching: make a Search for each thread, "
                "they may share an evaluator"
            )

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()
