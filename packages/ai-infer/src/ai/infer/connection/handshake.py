"""How a client reaches a worker: a Unix socket, a greeting, and slots in shared memory where both sides have them."""

import json
import math
import os
import select
import socket
import struct
import time
from pathlib import Path
from typing import Literal, NamedTuple

from ai.infer.connection.client_slots import ClientSlots
from ai.infer.connection.hang_check import HangCheck
from ai.infer.errors import InferError, WorkerDiedError
from ai.infer.transport.frames import PROTOCOL, Frame, FrameStream, Kind

_CONNECT_S = 30.0  # for a client without a deadline, while more clients are waiting than the system lets wait
_RETRY_S = 0.02
_N_DESCRIPTORS = 4  # that make up a client's slots
Transport = Literal["auto", "shm", "socket"]


class Handshake(NamedTuple):
    """What a worker handed over to a new client."""

    stream: FrameStream
    pidfd: int
    """A handle on the worker's process; -1: there is none."""
    batch_size: int
    slots: ClientSlots | None


def shake_hands(
    path: Path, transport: Transport, slot_bytes: int, check_hang: HangCheck, deadline: float | None
) -> Handshake:
    """Connects to a worker; arguments and errors are those of `Connection`."""
    check_hang()
    stream = FrameStream(_connect(path, deadline))
    pidfd = _open_worker(stream.socket)
    try:
        hello = {"protocol": PROTOCOL, "transport": transport, "slot_bytes": slot_bytes}
        stream.send(Kind.HELLO, header=json.dumps(hello).encode())
        stream.closed = False  # one that has hung up already has said why
        frame, descriptors = _await_hello(stream, pidfd, check_hang, deadline)
        if frame.kind is not Kind.HELLO:
            raise WorkerDiedError(frame.header.decode())
        reply = json.loads(frame.header)
        if "error" in reply:
            raise InferError(reply["error"])
        slots = _open_slots(descriptors, reply) if "first_slot" in reply else None
        return Handshake(stream, pidfd, reply["batch_size"], slots)
    except BaseException:
        stream.close()
        if pidfd >= 0:
            os.close(pidfd)
        raise


def _open_slots(descriptors: list[int], reply: dict[str, int]) -> ClientSlots:
    """Returns the slots that a worker handed over; the system gives no descriptors for which there is no room."""
    slots = None
    try:
        if len(descriptors) == _N_DESCRIPTORS:
            slots = ClientSlots(descriptors, reply["first_slot"], reply["slot_bytes"])
    finally:
        for descriptor in descriptors if slots is None else descriptors[:2]:  # what is mapped needs none
            os.close(descriptor)
    if slots is None:
        raise InferError("this process has no descriptor left for a client: close some, or raise its limit (ulimit -n)")
    return slots


def milliseconds(timeout: float | None) -> int | None:
    """Returns a time-out in seconds as `poll` wants it."""
    return None if timeout is None else math.ceil(timeout * 1000)


def _connect(path: Path, deadline: float | None) -> socket.socket:
    """Connects without being held up by a worker whose queue of new clients is full."""
    limit = time.monotonic() + _CONNECT_S if deadline is None else deadline
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    while True:
        try:
            connection.connect(os.fspath(path))
            return connection
        except BlockingIOError:
            if time.monotonic() < limit:
                time.sleep(_RETRY_S)
                continue
            connection.close()
            raise TimeoutError("the worker took on no new client in time: too many wait already") from None
        except OSError as error:
            connection.close()
            raise WorkerDiedError(f"no worker answers at {path}: {error.strerror}") from None


def _open_worker(connection: socket.socket) -> int:
    """Opens a handle on the worker's process: its death shows even if a child of it keeps the socket open."""
    if not (hasattr(os, "pidfd_open") and hasattr(socket, "SO_PEERCRED")):
        return -1
    pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    try:
        return os.pidfd_open(pid)
    except OSError:  # another process namespace, or already gone: the socket's end of file will tell
        return -1


def _await_hello(
    stream: FrameStream, pidfd: int, check_hang: HangCheck, deadline: float | None
) -> tuple[Frame, list[int]]:
    """Returns the worker's first frame and the open files that came with it."""
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLIN)
    if pidfd >= 0:
        poller.register(pidfd, select.POLLIN)
    frame: Frame | None = None
    descriptors: list[int] = []
    lives = True
    while lives and frame is None:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        events = poller.poll(milliseconds(check_hang.slice_s(timeout)))
        if not events:
            check_hang()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("the worker did not answer in time")
            continue
        lives = pidfd not in [descriptor for descriptor, _ in events]
        try:
            frame, descriptors = stream.receive_with_descriptors(_N_DESCRIPTORS)
        except BlockingIOError:
            pass
        except OSError:
            stream.closed = True
        lives = lives and not stream.closed
    if frame is None:
        raise WorkerDiedError("the worker stopped before it answered")
    return frame, descriptors
