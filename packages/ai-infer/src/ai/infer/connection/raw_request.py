"""A request of raw tensors that calls back: what a server needs, thousands of times a second."""

from collections.abc import Callable

from ai.infer.connection.connection import Connection
from ai.infer.connection.pending_request import PendingRequest
from ai.infer.transport.trees import Tree


class RawRequest(PendingRequest):
    """A request that `InferencerClient.start_raw` sends.

    Args:
        connection: the connection that it takes.
        saw: called with the version of the weights that made the reply.
    """

    def __init__(self, connection: Connection, saw: Callable[[int], object]) -> None:
        super().__init__(0, raw=True)
        self._connection = connection
        self._saw = saw

    def result(self) -> Tree:
        """Returns the model's output, each of its tensors a `RawTensor`; raises like `InferencerClient.__call__`."""
        try:
            version, output = self._connection.outcome(self)
        except TimeoutError:
            self._connection.cancel(self)
            raise
        self._saw(version)
        return output

    def cancel(self) -> None:
        """Drops the request; whoever waits for it is not called any more."""
        self.waiter = None
        self.is_dropped = True
        self._connection.cancel(self)
