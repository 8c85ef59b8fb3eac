"""A request of raw tensors that calls back: what a server needs, thousands of times a second."""

from collections.abc import Callable

from ai.infer.connection.connection import Connection
from ai.infer.connection.pending_request import PendingRequest
from ai.infer.transport.trees import Tree


class RawRequest:
    """A request that `InferencerClient.start_raw` sent.

    Args:
        connection: the connection that it takes.
        done: called with it in the event loop, once, when `result` has something to tell.
        saw: called with the version of the weights that made the reply.
    """

    __slots__ = ("_connection", "_done", "_saw", "request")

    def __init__(
        self, connection: Connection, done: Callable[["RawRequest"], object], saw: Callable[[int], object]
    ) -> None:
        self._connection = connection
        self._done = done
        self._saw = saw
        self.request: PendingRequest | None = None

    def finish(self, _: PendingRequest) -> None:
        """Tells whoever asked."""
        self._done(self)

    def result(self) -> Tree:
        """Returns the model's output, each of its tensors a `RawTensor`; raises like `InferencerClient.__call__`."""
        assert self.request is not None
        try:
            version, output = self._connection.outcome(self.request)
        except TimeoutError:
            self._connection.cancel(self.request)
            raise
        self._saw(version)
        return output

    def cancel(self) -> None:
        """Drops the request; `done` is not called any more."""
        assert self.request is not None
        self.request.waiter = None
        self._connection.cancel(self.request)
