"""A request and a reply of HTTP, as every part of the server sees them."""

from dataclasses import dataclass, field

Headers = tuple[tuple[bytes, bytes], ...]
Reply = tuple[int, Headers, bytes]
"""Status, headers without content-length, body."""

JSON: Headers = ((b"content-type", b"application/json"),)
RETRY: Headers = ((b"retry-after", b"1"),)


@dataclass(slots=True)
class Request:
    """One request, its body complete."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    """Names in lower case; of several of one name the last."""
    body: bytes = b""
    keep_alive: bool = field(default=True)
    """Whether the connection outlives the reply."""


class RefusedError(Exception):
    """A request that gets no further; carries the reply's status and further headers."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
