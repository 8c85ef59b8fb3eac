"""A request of raw tensors that calls back: what a server needs, thousands of times a second."""

from collections.abc import Callable

from ai.infer.connection.connection import Connection
from ai.infer.connection.pending_request import Ticket
from ai.infer.transport.wire import Tree


class RawCall:
    """A request that `InferencerClient.start_raw` sent.

    Args:
        connection: the line that it takes.
        done: called with it in the event loop, once, when `result` has something to tell.
        saw: called with the version of the weights that made the reply.
    """

    __slots__ = ("_connection", "_done", "_saw", "ticket")

    def __init__(
        self, connection: Connection, done: Callable[["RawCall"], object], saw: Callable[[int], object]
    ) -> None:
        self._connection = connection
        self._done = done
        self._saw = saw
        self.ticket: Ticket | None = None

    def finish(self, _: Ticket) -> None:
        """Tells whoever asked."""
        self._done(self)

    def result(self) -> Tree:
        """Returns the model's output, each of its tensors a `RawTensor`; raises like `InferencerClient.__call__`."""
        assert self.ticket is not None
        try:
            version, output = self._connection.outcome(self.ticket)
        except TimeoutError:
            self._connection.cancel(self.ticket)
            raise
        self._saw(version)
        return output

    def cancel(self) -> None:
        """Drops the request; `done` is not called any more."""
        assert self.ticket is not None
        self.ticket.waiter = None
        self._connection.cancel(self.ticket)
