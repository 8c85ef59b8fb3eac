"""Memory that two processes share, through which the large arrays of their messages go without being copied on the way.

The sender's is anonymous (`memfd_create`) and handed over as an open file: it has no name that could be left behind, it
goes with the processes that hold it, however they end, and it takes nothing of `/dev/shm`, small as that may be.
"""

import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

LEAST = 32 << 10
"""Bytes below which an array travels through the socket: it is then no part of an area that its user would hold."""
# A sender has so many areas at most. Whatever finds none free, because its receiver still holds them all, goes through
# the socket.
_MOST = 6
# So many notes of what messages need are kept, and an area of more than so many times the largest is given up: one
# large message would else be held for ever, in each area.
_N_NOTES = 32
_SLACK = 4
_ALIGNED = 64  # bytes; so many at first hold the area's state
_FREE, _HELD, _LEFT = 0, 1, 2

_n_forks = 0


def _count_fork() -> None:
    global _n_forks
    _n_forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_count_fork)


class Spot(NamedTuple):
    """Where in an area an array lies."""

    start: int
    n_bytes: int


class Area:
    """Shared memory of one message at a time.

    Args:
        number: among those of one side, from 1; what it replaces had the same.
        n_bytes: how large.

    Raises:
        OSError: there is no such memory, or no more.
    """

    def __init__(self, number: int, n_bytes: int) -> None:
        self.number = number
        self.file: int | None = None  # open until the receiver has it
        self.file = os.memfd_create("ai.data", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(self.file, 0, n_bytes)  # no memory is an error here, and no signal later
            self._memory = _mapped(self.file, n_bytes)
            self._n_bytes = n_bytes
        except BaseException:
            self.close()
            raise
        self._user: Callable[[], Any] = _nobody

    def __len__(self) -> int:
        return self._n_bytes

    def __del__(self) -> None:
        self.close()

    @property
    def is_free(self) -> bool:
        """Whether neither side has an array in it."""
        return self._memory[0] == _FREE and self._user() is None

    @property
    def is_left(self) -> bool:
        """Whether its receiver was forked with it: two hold it then, and it is told by neither when both are done."""
        return self._memory[0] == _LEFT

    def taken(self) -> np.ndarray:
        """Returns its bytes; it is not free again while they, or an array in them, live here."""
        whole = np.frombuffer(self._memory, np.uint8)
        self._user = weakref.ref(whole)
        return whole

    def hand_over(self) -> None:
        """Notes that its receiver holds it from now on, until it says otherwise."""
        self._memory[0] = _HELD

    def give_up(self) -> None:
        """Gives its memory back to the system, on both sides, but for its state: it is of no use from then on."""
        if self._n_bytes > mmap.PAGESIZE:
            with suppress(OSError):  # where the system cannot, it goes when it is replaced
                self._memory.madvise(mmap.MADV_REMOVE, mmap.PAGESIZE)
        self._n_bytes = 0

    def close(self) -> None:
        """Closes the file, which is no longer needed once the receiver has it."""
        file, self.file = self.file, None
        if file is not None:
            os.close(file)


class Areas:
    """The areas that one side of a connection fills; none where the system has no such memory."""

    def __init__(self) -> None:
        self._areas: list[Area] = []
        self._notes: deque[int] = deque(maxlen=_N_NOTES)  # bytes
        self._turn = threading.Lock()
        self._works = hasattr(os, "memfd_create")

    def taken(self, n_bytes: int) -> tuple[Area, np.ndarray] | None:
        """Returns a free area of at least `n_bytes`, and its bytes; None where there is none."""
        with self._turn:
            if not self._works:
                return None
            n_bytes = max([_ALIGNED + n_bytes, *self._notes])
            free = [area for area in self._areas if area.is_free]
            for area in free:
                if len(area) > _SLACK * n_bytes:
                    area.give_up()
            for area in free:
                if len(area) >= n_bytes:
                    return area, area.taken()
            replaced = next(iter(free), None) or next((area for area in self._areas if area.is_left), None)
            if replaced is None and len(self._areas) == _MOST:
                return None
            try:
                area = Area(len(self._areas) + 1 if replaced is None else replaced.number, n_bytes)
            except (OSError, ValueError):  # no such memory here, or no more of it: the socket takes any size
                self._works = bool(self._areas)
                return None
            if replaced is None:
                self._areas.append(area)
            else:
                self._areas[replaced.number - 1] = area
            return area, area.taken()

    def note(self, n_bytes: int) -> None:
        """Notes what a message would have needed, for areas to come."""
        if n_bytes:
            with self._turn:
                self._notes.append(_ALIGNED + n_bytes)


class Parcel:
    """What of one message lies in an area: arrays are made in it, or copied there when the message is sent."""

    def __init__(self, areas: Areas) -> None:
        self._areas = areas
        self._bytes: np.ndarray | None = None
        self._address = self._n_used = self._n_wanted = 0
        self.area: Area | None = None

    def room(self, n_bytes: int) -> np.ndarray | None:
        """Returns bytes for an array that the message will hold; None where it is small, or no area has room.

        Whoever keeps them, or what is made of them, keeps the area from being used again.
        """
        if n_bytes < LEAST:
            return None
        self._n_wanted += -(-n_bytes // _ALIGNED) * _ALIGNED
        if self.area is None:
            if (found := self._areas.taken(self._n_wanted)) is None:
                return None
            self.area, self._bytes = found
            self._address, self._n_used = self._bytes.ctypes.data, _ALIGNED
        assert self._bytes is not None
        start = self._n_used
        if start + n_bytes > len(self._bytes):
            return None
        self._n_used = -(-(start + n_bytes) // _ALIGNED) * _ALIGNED
        return self._bytes[start : start + n_bytes]

    def placed(self, buffers: Sequence[memoryview]) -> list[Spot | None]:
        """Returns where the bytes of a message lie in the area, copied there if need be; None: not in there."""
        spots = [self._spot(buffer) for buffer in buffers]
        outside = [k for k, spot in enumerate(spots) if spot is None and buffers[k].nbytes >= LEAST]
        if self.area is None and outside:  # all of them in one
            self._areas.note(sum(-(-buffers[k].nbytes // _ALIGNED) * _ALIGNED for k in outside))
        for k in outside:
            if (room := self.room(buffers[k].nbytes)) is not None:
                room[:] = np.frombuffer(buffers[k], np.uint8)
                spots[k] = self._spot(room.data)
        self._areas.note(self._n_wanted)
        return spots

    def _spot(self, buffer: memoryview) -> Spot | None:
        if self._bytes is None or buffer.nbytes == 0:
            return None
        start = np.frombuffer(buffer, np.uint8).ctypes.data - self._address
        return Spot(start, buffer.nbytes) if 0 < start < len(self._bytes) else None


class Received:
    """The areas of the other side."""

    def __init__(self) -> None:
        self._memories: dict[int, tuple[mmap.mmap, Any]] = {}

    def open(self, number: int, file: int) -> None:
        """Takes an area, in place of the one that had its number; closes the file."""
        n_bytes = os.fstat(file).st_size
        try:
            self._memories[number] = _mapped(file, n_bytes), None
        except OSError as error:
            raise OSError(
                f"{n_bytes / 1e6:.0f} MB that a worker shares found no room in this process ({error}); raise its limit "
                "(ulimit -v), or use smaller batches"
            ) from error
        finally:
            os.close(file)

    def buffers(self, number: int, spots: Sequence[Spot | None]) -> list[memoryview | None]:
        """Returns the bytes at spots of an area.

        The sender uses it again once they and all that was made of them are gone.
        """
        memory, _ = self._memories[number]
        whole = np.frombuffer(memory, np.uint8)
        self._memories[number] = memory, weakref.ref(whole, partial(_give_back, memory, _n_forks))
        view = whole.data
        return [None if spot is None else view[spot.start : spot.start + spot.n_bytes] for spot in spots]


def _give_back(memory: mmap.mmap, n_forks: int, _whole: Any) -> None:
    # A forked process has it as well, and may still read it.
    memory[0] = _FREE if n_forks == _n_forks else _LEFT


def _mapped(file: int, n_bytes: int) -> mmap.mmap:
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # at once, and not a fault a page
    return mmap.mmap(file, n_bytes, flags)


def _nobody() -> None:
    return None
