"""The worker's side of the Ray engine: an actor that runs a function of a link."""

import os
import queue
import socket
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ai.data.workers.error_text import error_text
from ai.data.workers.message import joined
from ai.data.workers.on_ray.pieces import MAX_BYTES, Block, cut
from ai.data.workers.versions import installed, mismatch, other_code
from ai.data.workers.worker import EXITED

# Messages that wait for the trainer; who sends more waits.
_MAX_WAITING = 8
# So often a worker says that it lives, if it has nothing else to say.
_BEAT_S = 5.0
# What the actor says itself, and not its payload.
RUNNING = "ai.data.running"
WARNED = "ai.data.warned"


class Slot:
    """Stands in a message for a shared value, which travels beside it."""

    def __init__(self, number: int) -> None:
        self.number = number


class Actor:
    """Runs the payload in a thread, and is the link that the payload talks through.

    `put` and `get` run in a thread each (Ray's concurrency groups), so messages of one direction keep their order and a
    waiting `get` holds up no `put`.

    Args:
        payload: as of `Engine.start`.
        versions: of the trainer's side; a worker of others says so, and runs nothing; one of other code says so too.

    Attributes:
        inbox: messages to the payload, in order.
    """

    def __init__(self, payload: bytes, versions: Mapping[str, str]) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.Queue[Block] = queue.Queue(_MAX_WAITING)
        self._next: Block | None = None  # taken out of it, and too large for the reply before
        threading.Thread(target=self._run, args=(payload, versions), name="ai.data.Actor", daemon=True).start()

    def send(self, message: Any) -> None:
        """Of the link: sends a message to the trainer; waits while it has not taken earlier ones."""
        self._outbox.put(Block(message))  # a copy: the payload may write to its arrays again while it waits here

    def wait_for_end(self) -> None:
        """Of the link: does nothing until the trainer ends this worker."""
        threading.Event().wait()

    def put(self, body: bytes, buffers: list[np.ndarray], *shared: tuple[bytes, list[np.ndarray]]) -> None:
        """Hands a message to the payload; Ray has fetched what is shared."""
        try:
            message = received(body, buffers)
            if shared:
                message = tuple(received(*shared[p.number]) if isinstance(p, Slot) else p for p in message)
        except Exception as error:  # nobody looks at what a call of `put` raises
            self._fail(error, "a message was read")
        else:
            self.inbox.put(message)

    def get(self, n: int) -> list[Any]:
        """Waits for a message of the payload and returns in `n` pieces all that wait, as far as a reply holds them.

        One is returned whatever its size; none come for a while: empty.
        """
        blocks: list[Block] = []
        try:
            block = self._next or self._outbox.get(timeout=_BEAT_S)
            self._next, n_bytes = None, block.n_bytes
            blocks.append(block)
            while len(blocks) < _MAX_WAITING:
                block = self._outbox.get_nowait()
                n_bytes += block.n_bytes
                if n_bytes > MAX_BYTES:
                    self._next = block
                    break
                blocks.append(block)
        except queue.Empty:
            pass
        return cut(blocks, n)

    def _run(self, payload: bytes, versions: Mapping[str, str]) -> None:
        import cloudpickle  # type: ignore[import-untyped]
        import ray  # type: ignore[import-not-found,import-untyped,unused-ignore]

        # Who keeps one of something for all workers of a machine asks for it.
        os.environ.setdefault("AI_NODE", ray.get_runtime_context().get_node_id())
        self.send((RUNNING, socket.gethostname(), os.getpid()))
        try:
            if problem := mismatch(installed(), versions):
                self.send(("failed", RuntimeError(f"on the node {socket.gethostname()}, {problem}")))
                return
            if difference := other_code(installed(), versions):
                self.send((WARNED, f"on the node {socket.gethostname()}, {difference}"))
            function = cloudpickle.loads(payload)
        except Exception as error:
            self._fail(error, "a worker was started")
            return
        try:
            function(self)
        except BaseException as error:
            self.send((EXITED, f"raised {error_text(error)}"))
        else:
            self.send((EXITED, "returned"))

    def _fail(self, error: Exception, while_what: str) -> None:
        from ai.data.workers.worker import portable_error

        error.add_note(f"while {while_what} on the node {socket.gethostname()}")
        self.send(("failed", portable_error(error)))


def received(body: bytes, buffers: list[np.ndarray]) -> Any:
    """Returns a message whose arrays are copies: what Ray hands out is read-only, and keeps its store from freeing."""
    return joined(body, [buffer.copy() for buffer in buffers])
