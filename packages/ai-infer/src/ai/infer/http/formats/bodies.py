"""The bodies of requests: read within a time, a size and a common store, and unpacked within a size."""

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from typing import Any

from ai.infer.http.formats.messages import RETRY, RefusedError, Request

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_GZIP, _ZLIB, _BARE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_WINDOWS = {
    b"gzip": (_GZIP,),
    b"x-gzip": (_GZIP,),
    b"deflate": (_ZLIB, _BARE),  # some send it without the header of zlib that the standard asks for
}
_PIECE_BYTES = 1 << 16  # unpacked at once, since what follows a member of gzip is copied
_MAX_MEMBERS = 10_000  # of one body: an empty one has 20 bytes, and takes as long as a kilobyte


class BodyReader:
    """Reads the bodies of an application's requests.

    Args:
        max_bytes: of one body, packed and unpacked.
        max_unfinished_bytes: of all bodies together that are still being sent.
        timeout_s: how long a body may take to arrive.
    """

    def __init__(self, max_bytes: int, max_unfinished_bytes: int, timeout_s: float) -> None:
        self.max_bytes = max_bytes
        self.max_unfinished_bytes = max_unfinished_bytes
        self._timeout_s = timeout_s
        self.n_unfinished = 0

    async def read(self, request: Request, receive: Receive) -> bytes:
        """Returns a request's body, unpacked; one that is not to be had is refused before it is read.

        Raises:
            RefusedError: it is too large, too slow, or damaged.
            ConnectionResetError: the client is gone.
        """
        digits = request.headers.get(b"content-length", b"")
        length = int(digits) if digits.isdigit() and len(digits) < 20 else None
        if length is not None and length > self.max_bytes:
            raise self._too_large(f", not {length}")
        encoding = request.headers.get(b"content-encoding", b"identity")
        if encoding != b"identity" and (encoding := encoding.lower()) != b"identity" and encoding not in _WINDOWS:
            shown = encoding.decode("latin1")
            raise RefusedError(415, f"content-encoding must be gzip, deflate or identity, not {shown!r:.40}")
        collecting = self._collect(receive)
        try:
            waits_for = collecting.send(None)
        except StopIteration as done:  # nearly always: the body came with its head
            body: bytes = done.value
        else:
            try:
                async with asyncio.timeout(self._timeout_s):
                    body = await _Begun(collecting, waits_for)
            except TimeoutError:
                raise RefusedError(408, f"a request must be sent within {self._timeout_s} s") from None
        if length is not None and length != len(body):  # a server that knows no h2c takes what follows for another's
            hint = "; send it without the header upgrade" if b"upgrade" in request.headers else ""
            raise RefusedError(
                400, f"the body must have the {length} bytes of its content-length, not {len(body)}{hint}"
            )
        return body if encoding == b"identity" else self._unpack(body, encoding)

    async def _collect(self, receive: Receive) -> bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > self.max_bytes:
                raise self._too_large()
            return body
        parts, n_bytes = [body], len(body)
        self.n_unfinished += n_bytes
        try:
            while True:
                if n_bytes > self.max_bytes:
                    raise self._too_large()
                if self.n_unfinished > self.max_unfinished_bytes:
                    raise RefusedError(503, "too many bodies are being sent at once; try again soon", RETRY)
                if not message.get("more_body", False):
                    return b"".join(parts)
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError
                part = message.get("body", b"")
                parts.append(part)
                n_bytes += len(part)
                self.n_unfinished += len(part)
        finally:
            self.n_unfinished -= n_bytes

    def _unpack(self, body: bytes, encoding: bytes) -> bytes:
        for window in _WINDOWS[encoding]:
            with contextlib.suppress(zlib.error):
                return self._unpack_by(window, body, encoding)
        raise self._damaged(encoding)

    def _unpack_by(self, window: int, body: bytes, encoding: bytes) -> bytes:
        """Returns what a body unpacks to; gzip may have several members, one after the other (RFC 1952, 2.2)."""
        unpacker, n_members = zlib.decompressobj(window), 1
        parts, room, at = [], self.max_bytes + 1, 0
        while at < len(body):
            if unpacker.eof:
                if window != _GZIP:
                    break
                if n_members == _MAX_MEMBERS:
                    raise RefusedError(413, f"the body must have at most {_MAX_MEMBERS} members of gzip")
                unpacker, n_members = zlib.decompressobj(window), n_members + 1
            piece = memoryview(body)[at : at + _PIECE_BYTES]
            parts.append(unpacker.decompress(piece, room))
            room -= len(parts[-1])
            if room == 0:
                raise self._too_large(" when it is unpacked")
            at += len(piece) - len(unpacker.unused_data)
        if not unpacker.eof or at < len(body):
            raise self._damaged(encoding)
        return b"".join(parts)

    @staticmethod
    def _damaged(encoding: bytes) -> RefusedError:
        return RefusedError(400, f"the body must be whole and of content-encoding {encoding.decode()}")

    def _too_large(self, what: str = "") -> RefusedError:
        return RefusedError(413, f"the body must have at most {self.max_bytes} bytes{what}")


class _Begun:
    """A coroutine that has run until it had to wait; awaiting it goes on from there.

    Args:
        coroutine: that was begun.
        waits_for: what it waits for.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, bytes], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, bytes]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    got = yield waits_for
                except BaseException as error:
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(got)
            except StopIteration as done:
                body: bytes = done.value
                return body
