"""Worker processes, on both sides: `Child` in the parent, and `python -m ai.data.workers.worker` as what it starts.

A worker never imports the user's script. Its first message is a cloudpickled function that receives the worker's
`Link`. It exits at once when its parent is gone, also by SIGKILL: a thread that reads the socket sees the end.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from ai.data.workers.areas import Parcel
from ai.data.workers.channel import Channel
from ai.data.workers.error_text import error_text, traceback_text
from ai.data.workers.message import joined

EXITED = "ai.data.exited"
"""Kind of a worker's last message, with how it ended, where it can tell."""
# A worker that reads nothing for so long (a stopped process) counts as dead.
_SEND_TIMEOUT_S = 60.0


class Child:
    """A running worker.

    Args:
        payload: cloudpickled function of a `Link`.
        on_message: called with each message in a thread of this child; with ("failed", error) for one that cannot be
            read, or that it raised on.
        on_exit: called with a description in that thread when the worker is gone for whatever reason.
    """

    def __init__(self, payload: bytes, on_message: Callable[[Any], None], on_exit: Callable[[str], None]) -> None:
        if os.name != "posix":
            raise OSError("worker processes need Linux or macOS: use worker='thread' or n_workers=0 here")
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        # One worker is one core; a worker that wants more may ask torch for it.
        environment.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        command = [sys.executable, "-P", "-m", "ai.data.workers.worker", str(theirs.fileno()), str(os.getpid())]
        try:
            with theirs:
                self.process = subprocess.Popen(
                    command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env=environment
                )
        except BaseException:
            ours.close()
            raise
        self.channel = Channel(ours, lambda: self.process.poll() is None)
        self._owner = os.getpid()
        self._on_message = on_message
        self._on_exit = on_exit
        self.send(payload)
        threading.Thread(target=self._receive, name="ai.data.Child", daemon=True).start()

    @property
    def where(self) -> tuple[str, int]:
        """This host and the worker's process id."""
        return socket.gethostname(), self.process.pid

    def parcel(self) -> Parcel:
        """Returns memory that the worker shares, for the arrays of one message."""
        return self.channel.parcel()

    def send(self, message: Any, parcel: Parcel | None = None) -> bool:
        """Sends a message; returns whether it went out (if not, `on_exit` follows)."""
        try:
            self.channel.send(message, timeout_s=_SEND_TIMEOUT_S, parcel=parcel)
        except TimeoutError:
            self.process.kill()
            return False
        except (OSError, EOFError):
            return False
        return True

    def close(self) -> None:
        """Ends the worker, whatever it is doing."""
        if os.getpid() != self._owner:
            return  # a forked copy of the parent exits; the worker is not its own
        self.channel.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _receive(self) -> None:
        told = ""
        try:
            while True:
                told = self._hear(self.channel.receive())
        except EOFError:
            pass
        except Exception as error:  # a message that cannot be read here, or that nobody can use
            self._on_message(("failed", error))
        self.channel.close()
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._on_exit(told or _how(code))

    def _hear(self, message: Any) -> str:  # which is not kept until the next one comes
        if message[0] == EXITED:
            return str(message[1])
        self._on_message(message)
        return ""


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    known = {number.value: number.name for number in signal.Signals}
    return f"was killed by signal {known.get(-code, -code)}"


class Link:
    """The worker's end: what its function talks through.

    Attributes:
        inbox: messages of the parent, in order.
    """

    def __init__(self, channel: Channel) -> None:
        self.inbox = _Inbox(lambda error: self.send(("failed", error)))
        self._channel = channel
        threading.Thread(target=self._receive, daemon=True).start()

    def parcel(self) -> Parcel:
        """Returns memory that the parent shares, for the arrays of one message."""
        return self._channel.parcel()

    def send(self, message: Any, parcel: Parcel | None = None) -> None:
        """Sends a message to the parent; waits while the parent has not read earlier ones."""
        try:
            self._channel.send(message, parcel=parcel or self.parcel())
        except (OSError, EOFError):
            os._exit(0)

    def wait_for_end(self) -> None:
        """Does nothing until the parent ends this worker; leaving would look like a death."""
        while True:
            self.inbox.get()

    def _receive(self) -> None:
        # Reading all the time keeps the parent from ever waiting, and sees its end.
        while True:
            try:
                self.inbox.put(self._channel.receive_parts())
            except EOFError:
                os._exit(0)
            except BaseException:  # nothing more is heard, and what waits for it would wait for ever
                traceback.print_exc()
                os._exit(1)


class _Inbox:
    """Messages of the parent, each made where it is used.

    Making one may import a package, such as torch for a tensor; the function that uses it may be importing it, too, and
    what two threads import at once can be found half made.
    """

    def __init__(self, on_unread: Callable[[Exception], object]) -> None:
        self._parts: queue.SimpleQueue[tuple[memoryview, list[memoryview]]] = queue.SimpleQueue()
        self._on_unread = on_unread

    def put(self, parts: tuple[memoryview, list[memoryview]]) -> None:
        self._parts.put(parts)

    def empty(self) -> bool:
        return self._parts.empty()

    def get(self) -> Any:
        while True:
            parts = self._parts.get()
            try:
                return joined(*parts)
            except Exception as error:  # left unsaid, the parent would wait for its answer
                self._on_unread(RuntimeError(f"{_UNREAD}: {error_text(error)}"))


_UNREAD = (
    "a worker process cannot read what it was sent; stored samples must be of classes that can be imported there, or "
    "give worker='thread'"
)


class WorkerFailedError(RuntimeError):
    """A worker could not be started, or died again and again."""


def portable_error(error: BaseException) -> BaseException:
    """Returns an error that pickles, with the worker's traceback as a note."""
    import pickle

    try:
        copied = pickle.loads(pickle.dumps(error))
        if type(copied) is not type(error) or str(copied) != str(error):
            raise TypeError("the error does not survive pickling")
    except Exception:
        copied = RuntimeError(error_text(error))
    copied.add_note(f"Traceback in the worker:\n{traceback_text(error)}")
    return copied  # type: ignore[no-any-return]


def main() -> None:
    """Runs the function that the parent sends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    parent = int(sys.argv[2])
    connection = socket.socket(fileno=int(sys.argv[1]))
    link = Link(Channel(connection, lambda: os.getppid() == parent))
    import cloudpickle  # type: ignore[import-untyped]

    try:
        function = cloudpickle.loads(link.inbox.get())
    except Exception as error:
        link.send(("failed", portable_error(error)))
        link.wait_for_end()
    else:
        try:
            function(link)
        except BaseException as error:  # else the exit code is all that is told of it
            link.send((EXITED, f"raised {error_text(error)}"))
            raise


if __name__ == "__main__":
    main()
