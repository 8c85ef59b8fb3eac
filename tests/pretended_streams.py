"""The streams of a pretended device: what one of them does is seen by another where that has waited for it."""

import threading
from collections.abc import Iterable

Clock = dict[int, int]  # of each stream, how much of its work has surely been done


class StreamError(RuntimeError):
    """Memory is used in one stream while another may still be at work on it."""


class Streams:
    """What was asked of each stream, what it has waited for, and which of them has touched which memory.

    Memory is known by its address, and nothing is kept of it until there is a second stream. Memory that was given back
    and taken again is fresh, whoever still reads it: what `record_stream` is for is not seen.
    """

    def __init__(self) -> None:
        self._clocks: list[Clock] = [{0: 0}]  # the default stream is the first
        self._first = 0  # what it had been asked for when a second one came
        self._known: Clock = {}  # done before the CPU asks for anything more
        self._written: dict[int, tuple[int, int]] = {}
        self._read: dict[int, Clock] = {}
        self._turn = threading.RLock()

    @property
    def several(self) -> bool:
        """Whether there is more than the default stream."""
        return len(self._clocks) > 1

    def open(self) -> int:
        """Returns the number of a new stream."""
        with self._turn:
            if not self.several:
                self._first = self._clocks[0][0]
            self._clocks.append({len(self._clocks): 0})
            return len(self._clocks) - 1

    def clock(self, stream: int) -> Clock:
        """Returns what will have happened once the stream has done what it was asked for so far."""
        return dict(self._clocks[stream])

    def tick(self, stream: int) -> tuple[int, int]:
        """Returns the place of the next piece of work of the stream."""
        with self._turn:
            self._clocks[stream][stream] += 1
            return stream, self._clocks[stream][stream]

    def wait(self, stream: int, clock: Clock) -> None:
        """What the stream is asked for from now on happens after all of the clock."""
        self._merge(self._clocks[stream], clock)

    def wait_on_cpu(self, clock: Clock) -> None:
        """What any stream is asked for from now on happens after all of the clock."""
        self._merge(self._known, clock)

    def everything(self) -> Clock:
        """Returns what will have happened once all streams have done what they were asked for so far."""
        return {stream: clock[stream] for stream, clock in enumerate(self._clocks)}

    def work(self, stream: int, reads: Iterable[int], writes: Iterable[int], fresh: Iterable[int]) -> None:
        """The stream is asked to read and write memory, and to fill some that nobody had.

        Raises:
            StreamError: another stream may still write what it reads, or use what it writes.
        """
        with self._turn:
            _, now = self.tick(stream)
            for address in reads:
                self._refuse(stream, self._written.get(address, (0, self._first)), "read", "written")
                self._read.setdefault(address, {})[stream] = now
            for address in writes:
                self._refuse(stream, self._written.get(address, (0, self._first)), "written", "written")
                for reader in self._read.pop(address, {}).items():
                    self._refuse(stream, reader, "written", "read")
                self._written[address] = stream, now
            for address in fresh:
                self._read.pop(address, None)
                self._written[address] = stream, now

    def _refuse(self, stream: int, by: tuple[int, int], wanted: str, before: str) -> None:
        other, when = by
        if other != stream and when > max(self._clocks[stream].get(other, 0), self._known.get(other, 0)):
            raise StreamError(f"memory is {wanted} in stream {stream} that may still be {before} in stream {other}")

    def _merge(self, into: Clock, clock: Clock) -> None:
        with self._turn:
            for stream, when in clock.items():
                into[stream] = max(into.get(stream, 0), when)
