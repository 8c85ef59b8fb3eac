"""One thread at a time."""

import threading
from typing import Any


class Turn:
    """A lock that its holder may take again; a copy or a pickle of what it guards has one of its own.

    >>> import copy
    >>> turn = Turn()
    >>> with turn, turn, copy.deepcopy(turn):
    ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["Turn"], tuple[()]]:
        return Turn, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Turn":
        return Turn()
