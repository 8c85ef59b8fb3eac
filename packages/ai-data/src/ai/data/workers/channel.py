"""Messages between a process and its workers over a Unix socket.

Large arrays lie in memory that both share, where there is such; what goes through the socket is copied once into the
kernel and once out of it, straight into the memory that the receiver keeps.
"""

import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ai.data.workers.areas import Areas, Parcel, Received, Spot
from ai.data.workers.message import joined, split

# How many buffers, bytes of the pickle, the area's number (0: none), whether its file comes along.
_HEADER = struct.Struct("<QQQQ")
_FILE = struct.Struct("i")
_MAX_PARTS = 512  # the kernel takes at most 1024 in one call
_SOCKET_BYTES = 4 << 20
T = TypeVar("T")


class Channel:
    """One end of a connected socket.

    Args:
        connection: closed together with the channel.
        alive: returns whether the other side still lives; asked once a second while waiting, because a socket that some
            forked process inherited does not report the end.
    """

    def __init__(self, connection: socket.socket, alive: Callable[[], bool]) -> None:
        self._socket = connection
        self._alive = alive
        self._sending = threading.Lock()
        self._areas = Areas()
        self._received = Received()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)

    def parcel(self) -> Parcel:
        """Returns shared memory for the arrays of one message, which `send` is given with it."""
        return Parcel(self._areas)

    def send(self, message: Any, *, timeout_s: float | None = None, parcel: Parcel | None = None) -> None:
        """Sends a message; whatever keeps it from going out whole, Ctrl-C as well, ends the connection.

        Args:
            message: what can be pickled.
            timeout_s: for how long the other side may read nothing; None: for ever.
            parcel: where its large arrays lie, or are put; None: all goes through the socket.

        Raises:
            ConnectionError: the other side is gone.
            TimeoutError: it did not read for `timeout_s` seconds.
        """
        body, raw = split(message)
        spots = [None] * len(raw) if parcel is None else parcel.placed(raw)
        area = None if parcel is None or not any(spots) else parcel.area
        sizes = [
            number for part, spot in zip(raw, spots, strict=True) for number in (part.nbytes, spot.start if spot else 0)
        ]
        outside = [part for part, spot in zip(raw, spots, strict=True) if spot is None]
        with self._sending:
            file = None if area is None else area.file
            header = _HEADER.pack(len(raw), body.nbytes, 0 if area is None else area.number, file is not None)
            if area is not None:
                area.hand_over()
            parts = [memoryview(header + struct.pack(f"<{len(sizes)}Q", *sizes)), body, *outside]
            try:
                self._send_parts(parts, timeout_s, file)
            except BaseException:  # the other side would take the next message for the rest of this one
                self.close()
                raise
            if area is not None:
                area.close()

    def receive(self) -> Any:
        """Returns the next message.

        Raises:
            EOFError: the other side is gone.
        """
        return joined(*self.receive_parts())

    def receive_parts(self) -> tuple[memoryview, list[memoryview]]:
        """Returns the next message as it came, for `joined` to make the message of.

        Raises:
            EOFError: the other side is gone.
        """
        header, file = self._read_header()
        n_buffers, n_body, area, has_file = _HEADER.unpack(header)
        if has_file:
            if file is None:
                import resource

                raise OSError(
                    "the memory that a worker shares could not be opened here: too many open files, of which this "
                    f"process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}; raise that (ulimit -n), or use "
                    "fewer workers"
                )
            self._received.open(area, file)
        numbers = struct.unpack(f"<{2 * n_buffers}Q", self._read(16 * n_buffers))
        sizes, starts = numbers[::2], numbers[1::2]
        body = self._read(n_body)
        spots = [Spot(start, size) if start else None for start, size in zip(starts, sizes, strict=True)]
        shared = self._received.buffers(area, spots) if area else [None] * n_buffers
        return body, [self._read(size) if part is None else part for part, size in zip(shared, sizes, strict=True)]

    def close(self) -> None:
        """Ends the connection; both sides' waits end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def _send_parts(self, parts: list[memoryview], timeout_s: float | None, file: int | None) -> None:
        parts = [part for part in parts if part.nbytes]
        files = [] if file is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _FILE.pack(file))]
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while parts:
            try:
                n_sent = self._socket.sendmsg(parts[:_MAX_PARTS], files, socket.MSG_DONTWAIT)
                files = []  # it came with the first byte
            except BlockingIOError:
                self._wait(select.POLLOUT)
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"the other side of a worker's channel read nothing for {timeout_s} s") from None
                continue
            while parts and n_sent >= parts[0].nbytes:
                n_sent -= parts.pop(0).nbytes
            if n_sent:
                parts[0] = parts[0][n_sent:]

    def _read_header(self) -> tuple[bytes, int | None]:
        """Returns a message's first bytes, and the file that came with them."""
        header, files = b"", b""
        while len(header) < _HEADER.size:
            flags = socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0)
            rest = _HEADER.size - len(header)
            more, extra, *_ = self._waited_for(
                partial(self._socket.recvmsg, rest, socket.CMSG_SPACE(_FILE.size), flags)
            )
            if not more:
                raise EOFError("the other side closed the connection")
            header += more
            files += b"".join(data for _, kind, data in extra if kind == socket.SCM_RIGHTS)
        return header, _FILE.unpack_from(files)[0] if files else None

    def _read(self, n_bytes: int) -> memoryview:
        # Freed memory of this size comes back without a page fault a page, unlike a bytearray's zeroed memory.
        whole = memoryview(np.empty(n_bytes, np.uint8))  # type: ignore[arg-type]
        n_read = 0
        while n_read < n_bytes:
            n_new = self._waited_for(partial(self._socket.recv_into, whole[n_read:], 0, socket.MSG_DONTWAIT))
            if n_new == 0:
                raise EOFError("the other side closed the connection")
            n_read += n_new
        return whole

    def _waited_for(self, read: Callable[[], T]) -> T:
        """Returns what a read gives that does not wait, when there is something to read."""
        while True:
            try:
                return read()
            except BlockingIOError:
                self._wait(select.POLLIN)
            except OSError as error:
                raise EOFError(f"the connection broke: {error}") from error

    def _wait(self, event: int) -> None:
        poll = select.poll()
        try:
            poll.register(self._socket, event)
            ready = poll.poll(1000)
        except (OSError, ValueError) as error:  # closed by another thread
            raise EOFError("the connection was closed") from error
        if not ready and not self._alive():
            raise EOFError("the other side is gone")
