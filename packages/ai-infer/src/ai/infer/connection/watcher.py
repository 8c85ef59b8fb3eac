"""What a connection tells whoever watches it beside the threads that wait: an event loop, or nobody."""

from collections.abc import Callable
from typing import Protocol

from ai.infer.connection.pending_request import PendingRequest


class Watcher(Protocol):
    """Is told what happens on a connection, by whatever thread sees it, with the connection's lock held."""

    @property
    def attached(self) -> bool:
        """Whether it watches now, so that replies are to be looked for on its behalf."""

    def finished(self, request: PendingRequest) -> None:
        """A request has an outcome, was cancelled, or is overdue."""

    def has_room(self) -> None:
        """A further request may be sent."""

    def has_unsent(self) -> None:
        """The socket did not take all; the watcher is to call `Connection.flush` once it takes more."""

    def ends(self, then: Callable[[], None] | None = None) -> None:
        """The connection is over; `then` closes its descriptors, once nobody watches them."""


class _Nobody:
    attached = False

    def finished(self, request: PendingRequest) -> None:
        pass

    def has_room(self) -> None:
        pass

    def has_unsent(self) -> None:
        pass

    def ends(self, then: Callable[[], None] | None = None) -> None:
        if then is not None:
            then()


NOBODY: Watcher = _Nobody()
"""Threads alone use the connection."""
