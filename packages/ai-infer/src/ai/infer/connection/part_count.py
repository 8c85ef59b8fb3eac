"""Counts the parts that were taken of a reply, so that the worker makes more of them."""

from ai.infer.connection.connection import Connection
from ai.infer.connection.pending_request import PendingRequest
from ai.infer.transport.frames import STREAM_WINDOW


class PartCount:
    """Says now and then that there is room for more parts.

    Args:
        connection: the connection that the request took.
        request: the request.
    """

    def __init__(self, connection: Connection, request: PendingRequest) -> None:
        self._connection = connection
        self._request = request
        self._n = 0

    def add(self) -> None:
        """Counts a part."""
        self._n += 1
        if self._n == STREAM_WINDOW // 2:
            self._connection.took_parts(self._request, self._n)
            self._n = 0
