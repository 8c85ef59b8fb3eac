"""How a worker is started: the seam between those who have work and where it runs."""

from collections.abc import Callable
from typing import Any, Protocol


class Worker(Protocol):
    """A running worker, seen from the side that gives it work.

    One that shares memory has a `parcel()` for the arrays of one message, which `send` takes as a second argument.
    """

    @property
    def where(self) -> tuple[str, int]:
        """Host and process id; `("", 0)` while it is still being started."""

    def send(self, message: Any) -> bool:
        """Sends a message; returns whether it went out (if not, `on_exit` follows)."""

    def close(self) -> None:
        """Ends the worker, whatever it is doing."""


class Engine(Protocol):
    """Starts workers, each of which runs a function that receives a `Link`.

    It may have a `max_deaths`, as of `Supervisor`, and `message_bytes`: how much one message should hold where more
    messages cost more than larger ones.
    """

    def start(self, payload: bytes, on_message: Callable[[Any], None], on_exit: Callable[[str], None]) -> Worker:
        """Returns a new worker.

        Args:
            payload: what `ship` made of the function.
            on_message: called with each message of the worker, in order, in one thread; with ("failed", error) for one
                that cannot be read, or that it raised on.
            on_exit: called once with a description in that thread, after every message, when the worker is gone for
                whatever reason; perhaps before `start` has returned.

        Raises:
            OSError: it could not be started.
        """

    def share(self, value: Any) -> Any:
        """Returns what stands for `value` as an element of messages to many workers, each of which receives a copy.

        What it costs to bring the value to another machine is then paid once, not once a worker.
        """


def check_engine(engine: Any) -> None:
    """Raises `TypeError` for what starts no workers; None, which stands for processes of this machine, passes."""
    if isinstance(engine, type) or not (engine is None or (hasattr(engine, "start") and hasattr(engine, "share"))):
        raise TypeError(f"engine must start workers, as ai.data.Ray() does, got {engine!r}")


class Processes:
    """Workers as processes of this machine."""

    def start(self, payload: bytes, on_message: Callable[[Any], None], on_exit: Callable[[str], None]) -> Worker:
        """Returns a new process, as `Engine` says."""
        from ai.data.workers.worker import Child

        return Child(payload, on_message, on_exit)

    def share(self, value: Any) -> Any:
        """Returns the value itself: each process reads a copy of its own out of its socket."""
        return value
