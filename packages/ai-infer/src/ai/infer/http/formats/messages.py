"""A request and a reply of HTTP, as every part of the server sees them."""

import json
from dataclasses import dataclass

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


class RefusedError(Exception):
    """A request that gets no further; carries the reply's status and further headers."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def error_body(message: str) -> bytes:
    """Returns what the protocol wants in the body of a reply that is an error."""
    return json.dumps({"error": message}, separators=(",", ":")).encode()


def first_line(error: BaseException) -> str:
    """Returns an error without its traceback: what the worker's files are called is nobody's business outside."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
