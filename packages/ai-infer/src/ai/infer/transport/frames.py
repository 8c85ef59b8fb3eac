"""Messages over a stream socket: what does not fit a slot, what is no request, and everything where no slots are.

A frame is a prefix (kind, sizes, request id, weights version), a header, and a body.
"""

import enum
import socket
import struct
from collections import deque
from typing import NamedTuple

PROTOCOL = 3
"""Counts the changes of what client and worker say to each other."""
STREAM_WINDOW = 64
"""Parts of one reply that may be on their way: a worker makes no more of it until its client has taken some."""
_PREFIX = struct.Struct("<BxxxIQQQ")
_MAX_HEADER_BYTES = 1 << 24
_FIRST_BYTES = 1 << 20  # of memory for a section, however long it says that it will be: more comes as bytes come


class Kind(enum.IntEnum):
    """What a frame is about."""

    HELLO = 1
    REQUEST = 2
    REPLY = 3
    ERROR = 4
    CANCEL = 5
    PING = 6
    STATS = 7
    BYE = 8
    UPDATE = 9
    LOG = 10
    STREAM = 11
    """A request whose reply is to come in parts."""
    PART = 12
    END = 13
    """Of the parts of a reply."""
    ROOM = 14
    """A client has taken so many parts (`version`) of a reply."""
    TRY = 15
    """Whether the model takes the extra state of that number: asked by the starter; the answer has what it raised."""


class Frame(NamedTuple):
    """One message; `id` is the request's, `version` that of the weights that made a reply."""

    kind: Kind
    id: int
    version: int
    header: bytes
    body: bytearray


class FrameStream:
    """Frames over a non-blocking socket: nothing here waits, whoever polls the socket does.

    Args:
        connection: a connected stream socket; the stream owns it.
        max_bytes: the largest body that is accepted.
    """

    def __init__(self, connection: socket.socket, max_bytes: int = (1 << 32) - 1) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.closed = False
        self.n_unsent = 0
        self._max_bytes = max_bytes
        self._unsent: deque[memoryview] = deque()
        self._begin()

    def _begin(self) -> None:
        self._prefix: tuple[int, int, int, int, int] | None = None
        self._header: bytearray | None = None
        self._expect(_PREFIX.size)

    def _expect(self, n_bytes: int) -> None:
        self._n_expected = n_bytes
        self._buffer = bytearray(min(n_bytes, _FIRST_BYTES))
        self._target = memoryview(self._buffer)
        self._filled = 0

    def _is_full(self) -> bool:
        """Returns whether the section has come in full; makes room for more of it if its memory is."""
        if self._filled < len(self._buffer):
            return False
        missing = self._n_expected - len(self._buffer)
        if not missing:
            return True
        self._target.release()
        self._buffer += bytes(min(missing, len(self._buffer)))
        self._target = memoryview(self._buffer)
        return False

    def fileno(self) -> int:
        """Returns the socket's descriptor."""
        return self.socket.fileno()

    def receive(self) -> list[Frame]:
        """Returns the frames that have arrived in full; sets `closed` when the other side is gone.

        Raises:
            ValueError: the bytes are no frame, or one larger than the limit.
        """
        frames: list[Frame] = []
        while not self.closed:
            try:
                n_bytes = self.socket.recv_into(self._target[self._filled :])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                n_bytes = 0
            if n_bytes == 0:
                self.closed = True
                break
            self._filled += n_bytes
            while self._is_full():
                frame = self._advance()
                if frame is not None:
                    frames.append(frame)
        return frames

    def _advance(self) -> Frame | None:
        """Takes the section that has just been filled; returns the frame that it completes."""
        if self._prefix is None:
            self._prefix = _PREFIX.unpack(self._buffer)
            kind, n_header, _, _, n_body = self._prefix
            if kind not in Kind._value2member_map_ or n_header > _MAX_HEADER_BYTES or n_body > self._max_bytes:
                raise ValueError(
                    f"a frame must be of a known kind with a body of at most {self._max_bytes} bytes, "
                    f"not of kind {kind} with {n_body} bytes"
                )
            self._expect(n_header)
            return None
        if self._header is None:
            self._header = self._buffer
            self._expect(self._prefix[4])
            return None
        kind, _, request_id, version, _ = self._prefix
        frame = Frame(Kind(kind), request_id, version, bytes(self._header), self._buffer)
        self._begin()
        return frame

    def send(
        self, kind: Kind, request_id: int = 0, *, version: int = 0, header: bytes = b"", body: memoryview | bytes = b""
    ) -> None:
        """Queues a frame and sends what the socket takes now; `flush` sends the rest."""
        prefix = _PREFIX.pack(kind, len(header), request_id, version, len(body))
        for part in (prefix + header, body):
            if len(part):
                self._unsent.append(memoryview(part))
                self.n_unsent += len(part)
        self.flush()

    def flush(self) -> bool:
        """Sends what the socket takes now; returns whether nothing is left."""
        while self._unsent and not self.closed:
            try:
                n_bytes = self.socket.send(self._unsent[0], getattr(socket, "MSG_NOSIGNAL", 0))
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                self.closed = True
                break
            self.n_unsent -= n_bytes
            if n_bytes == len(self._unsent[0]):
                self._unsent.popleft()
            else:
                self._unsent[0] = self._unsent[0][n_bytes:]
        return True

    def send_with_descriptors(self, kind: Kind, header: bytes, descriptors: list[int]) -> None:
        """Sends a small frame without a body, and open files with it; the stream must have nothing unsent."""
        try:
            socket.send_fds(self.socket, [_PREFIX.pack(kind, len(header), 0, 0, 0) + header], descriptors)
        except OSError:  # the other side did not wait for it
            self.closed = True

    def receive_with_descriptors(self, max_descriptors: int) -> tuple[Frame | None, list[int]]:
        """Returns the small frame that was sent with open files, and the files; None if the other side is gone."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, _PREFIX.size, max_descriptors)
        if not data:
            self.closed = True
            return None, descriptors
        self._target[: len(data)] = data
        self._filled = len(data)
        frame = None
        while frame is None and self._is_full():
            frame = self._advance()
        if frame is None:
            frames = self.receive()
            frame = frames[0] if frames else None
        return frame, descriptors

    def close(self) -> None:
        """Closes the socket; what is unsent is lost."""
        self.closed = True
        self._unsent.clear()
        self.socket.close()
