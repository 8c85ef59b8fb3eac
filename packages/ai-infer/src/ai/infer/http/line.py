"""The line between the process that owns the models and one of its front ends: questions and answers of JSON."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from ai.infer.http.formats.messages import RefusedError
from ai.infer.http.models.repository import UnknownModelError

_MAX_BYTES = 1 << 24  # of one message
Answer = Callable[[str, dict[str, Any]], Awaitable[Any]]


class LineClosedError(ConnectionError):
    """The other side is gone."""


class Line:
    """One end of the line. Either side asks, and answers while it waits itself.

    Args:
        connection: a connected socket, which the line owns.
        answer: what answers the other side's questions; called with what is asked and what is said about it.
    """

    def __init__(self, connection: socket.socket, answer: Answer) -> None:
        self._connection = connection
        self._answer = answer
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._opened = asyncio.Event()
        self._closed = False

    async def serve(self) -> None:
        """Answers until the other side is gone."""
        reader, self._writer = await asyncio.open_connection(sock=self._connection, limit=_MAX_BYTES)
        self._opened.set()
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if "ask" in message:
                    task = asyncio.create_task(self._reply(message))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
                    continue
                future = self._waiting.get(message["id"])
                if future is None or future.done():
                    continue
                if "refused" in message:
                    future.set_exception(RefusedError(*message["refused"]))
                else:
                    future.set_result(message["answer"])
        except (OSError, ValueError):  # it went away in the middle of something
            pass
        finally:
            self._closed = True
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(LineClosedError("the other process is gone"))

    async def ask(self, what: str, timeout_s: float, **about: Any) -> Any:
        """Returns the other side's answer.

        Raises:
            LineClosedError: it is gone.
            TimeoutError: it did not answer in time.
            RefusedError: it says that it cannot be.
        """
        async with asyncio.timeout(timeout_s):
            await self._opened.wait()
        if self._closed:
            raise LineClosedError("the other process is gone")
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"ask": what, "id": number, "about": about})
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            del self._waiting[number]

    async def _reply(self, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"id": message["id"]}
        try:
            reply["answer"] = await self._answer(message["ask"], message["about"])
        except RefusedError as error:
            reply["refused"] = [error.status, str(error)]
        except UnknownModelError as error:
            reply["refused"] = [404, str(error.args[0])]
        except Exception as error:
            reply["refused"] = [500, f"{type(error).__name__}: {error}"]
        self._send(reply)

    def _send(self, message: dict[str, Any]) -> None:
        if not self._closed:
            with contextlib.suppress(OSError):
                self._writer.write(json.dumps(message).encode() + b"\n")
