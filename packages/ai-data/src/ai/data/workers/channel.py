"""Messages between a process and its workers over a Unix socket.

Each byte of an array is copied once into the kernel and once out of it, straight into the memory that the receiver
keeps. There is no named shared memory to leak.
"""

import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ai.data.workers.message import joined, split

_HEADER = struct.Struct("<QQ")
_MAX_PARTS = 512  # the kernel takes at most 1024 in one call
_SOCKET_BYTES = 4 << 20


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
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)

    def send(self, message: Any, *, timeout_s: float | None = None) -> None:
        """Sends a message, whole or not at all unless the other side dies.

        Raises:
            ConnectionError: the other side is gone.
            TimeoutError: it did not read for `timeout_s` seconds.
        """
        body, raw = split(message)
        sizes = struct.pack(f"<{len(raw)}Q", *(part.nbytes for part in raw))
        header = _HEADER.pack(len(raw), body.nbytes)
        with self._sending:
            self._send_parts([memoryview(header + sizes), body, *raw], timeout_s)

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
        header = self._read(_HEADER.size)
        n_buffers, n_body = _HEADER.unpack(header)
        sizes = struct.unpack(f"<{n_buffers}Q", self._read(8 * n_buffers))
        body = self._read(n_body)
        return body, [self._read(size) for size in sizes]

    def close(self) -> None:
        """Ends the connection; both sides' waits end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def _send_parts(self, parts: list[memoryview], timeout_s: float | None) -> None:
        parts = [part for part in parts if part.nbytes]
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while parts:
            try:
                n_sent = self._socket.sendmsg(parts[:_MAX_PARTS], [], socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLOUT)
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"the other side of a worker's channel read nothing for {timeout_s} s") from None
                continue
            while parts and n_sent >= parts[0].nbytes:
                n_sent -= parts.pop(0).nbytes
            if n_sent:
                parts[0] = parts[0][n_sent:]

    def _read(self, n_bytes: int) -> memoryview:
        # Freed memory of this size comes back without a page fault a page, unlike a bytearray's zeroed memory.
        whole = memoryview(np.empty(n_bytes, np.uint8))  # type: ignore[arg-type]
        n_read = 0
        while n_read < n_bytes:
            try:
                n_new = self._socket.recv_into(whole[n_read:], 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except OSError as error:
                raise EOFError(f"the connection broke: {error}") from error
            if n_new == 0:
                raise EOFError("the other side closed the connection")
            n_read += n_new
        return whole

    def _wait(self, event: int) -> None:
        poll = select.poll()
        try:
            poll.register(self._socket, event)
            ready = poll.poll(1000)
        except (OSError, ValueError) as error:  # closed by another thread
            raise EOFError("the connection was closed") from error
        if not ready and not self._alive():
            raise EOFError("the other side is gone")
