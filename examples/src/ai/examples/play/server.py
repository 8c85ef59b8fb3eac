"""The page's server: the inference server's application, with a page and one endpoint before it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from ai.examples.play.table import Table

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_PAGE = Path(__file__).with_name("page.html")
_MOST_BYTES = 1 << 16


class PlayApp:
    """An ASGI application: `GET /` is the page, `POST /play` answers it, and all else goes to `behind`.

    Args:
        table: plays.
        behind: such as `ai.infer.http.app`, which serves the network by the Open Inference Protocol; None: nothing.
    """

    def __init__(self, table: Table, behind: Application | None = None) -> None:
        self.table, self._behind = table, behind

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        what = (scope.get("method"), scope.get("path")) if scope["type"] == "http" else None
        if what in (("GET", "/"), ("HEAD", "/")):
            await _reply(send, 200, b"text/html; charset=utf-8", _PAGE.read_bytes() if what[0] == "GET" else b"")
        elif what == ("GET", "/game"):
            await _reply(send, 200, b"application/json", _json(self.table.describe()))
        elif what == ("POST", "/play"):
            await self._play(receive, send)
        elif self._behind is not None:
            await self._behind(scope, receive, send)
        elif scope["type"] == "http":
            await _reply(send, 404, b"application/json", _json({"error": "there is no such path"}))

    async def _play(self, receive: Receive, send: Send) -> None:
        try:
            moves, level = _question(await _body(receive))
            answer = await asyncio.to_thread(self.table.ask, moves, level)
        except ValueError as error:
            await _reply(send, 400, b"application/json", _json({"error": str(error)}))
        except (TimeoutError, ConnectionError, RuntimeError) as error:
            await _reply(send, 503, b"application/json", _json({"error": f"the network does not answer: {error}"}))
        else:
            await _reply(send, 200, b"application/json", _json(answer))


def _question(body: bytes) -> tuple[list[int], int]:
    """Returns the moves and the level that a body asks for.

    Raises:
        ValueError: it is no such question.
    """
    try:
        asked = json.loads(body)
        moves, level = asked["moves"], asked["level"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError('the body must be JSON such as {"moves": [3, 3], "level": 100}') from error
    numbers = [level, *moves] if isinstance(moves, list) else [None]
    if not all(type(number) is int for number in numbers):
        raise ValueError("moves must be a list of whole numbers, and level a whole number")
    return moves, level


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ValueError("the request must arrive whole")
        body += message.get("body", b"")
        if len(body) > _MOST_BYTES:
            raise ValueError(f"the body must hold at most {_MOST_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


async def _reply(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
