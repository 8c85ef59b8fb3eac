"""A reply in parts as server-sent events: one event a part, while the model makes the next ones.

Source: WHATWG, HTML, section "Server-sent events".
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

from ai.infer.connection.async_session import AsyncParts
from ai.infer.errors import RequestCancelledError
from ai.infer.http.formats.bodies import Receive
from ai.infer.http.formats.messages import Headers, Reply, Request
from ai.infer.http.formats.outputs import named_outputs
from ai.infer.http.formats.plain import PlainRequest, answer_plain, read_plain
from ai.infer.http.inference import RequestContext, refuse
from ai.infer.http.models.repository import ServedModel

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_HEADERS: Headers = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # by which proxies pass on each event as it comes
)
_LOOK_S = 0.05
_END = b"event: end\ndata: {}\n\n"
_log = logging.getLogger("ai.infer")


async def stream(
    context: RequestContext, model: ServedModel, request: Request, receive: Receive, send: Send, timeout_s: float
) -> Reply | None:
    """Answers a plain request in parts; a client that hangs up ends it, and the model makes no more of them.

    Args:
        context: of the server.
        model: that is asked.
        request: to be read as one that is answered whole.
        receive: of ASGI.
        send: of ASGI.
        timeout_s: how long a client may take to take a part.

    Returns:
        None; or what is to be sent instead, where it failed before the first part.
    """
    start = time.perf_counter()
    status = 499  # as others write that the client was gone before the end
    context.n_pending += 1
    events = _events(context, model, request, receive)
    begun = done = False
    try:
        while not done:
            try:
                event = await anext(events)
                done = event is _END
            except Exception as error:
                reply = refuse(error) if not isinstance(error, ConnectionResetError) else None
                if reply is None:
                    return None
                status = reply[0]
                if not begun:
                    return reply
                event, done = b"event: error\ndata: " + reply[2] + b"\n\n", True
            async with asyncio.timeout(timeout_s):
                if not begun:
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                    begun = True
                await send({"type": "http.response.body", "body": event, "more_body": not done})
        if status == 499:
            status = 200
    except (OSError, RuntimeError) as error:  # nobody is there any more, or nobody takes what is sent
        _log.debug("a reply in parts ended early: %s", error)
    finally:
        await events.aclose()
        context.n_pending -= 1
        context.metrics.count(model.source.name, model.source.version, status, time.perf_counter() - start)
    return None


async def _events(
    context: RequestContext, model: ServedModel, request: Request, receive: Receive
) -> AsyncGenerator[bytes, None]:
    """Yields an event for each part, and one that says that there are no more."""
    context.admit()
    client = model.client()
    body, request.body = request.body, b""
    asked = PlainRequest(read_plain(body, request.headers, model.inputs, context.check_json).x, as_json=True)
    del body
    processing = model.processing
    parts = await client.stream_raw([asked.x] if processing is None else await processing.prepare([asked.x]))
    watch = asyncio.create_task(_watch(receive, parts))
    try:
        async for part in parts:
            _, text = answer_plain(asked, named_outputs(part if processing is None else await processing.finish(part)))
            yield b"data: " + text + b"\n\n"
        yield _END
    except RequestCancelledError:
        raise ConnectionResetError("the client hung up") from None
    finally:
        watch.cancel()
        parts.cancel()


async def _watch(receive: Receive, parts: AsyncParts) -> None:
    """Ends the reply when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":  # where there is an end, some say so again and again
        await asyncio.sleep(_LOOK_S)
    parts.cancel()
