"""One inference request, from its body to its reply: one future, and a task only where it takes long."""

import asyncio
import logging
import time

from ai.infer.client import InferencerClient
from ai.infer.connection.raw_request import RawRequest
from ai.infer.errors import InferError, InPartsError, RequestError
from ai.infer.http.formats.bodies import Receive
from ai.infer.http.formats.messages import JSON, RETRY, RefusedError, Reply, Request, error_body, first_line
from ai.infer.http.formats.outputs import named_outputs
from ai.infer.http.formats.plain import answer_plain, read_plain
from ai.infer.http.formats.protocol import read_request, write_response
from ai.infer.http.formats.tensors import BadInputError, json_length
from ai.infer.http.hang_ups import HangUps
from ai.infer.http.metrics import Metrics
from ai.infer.http.models.processing import Processing
from ai.infer.http.models.repository import NotReadyError, ServedModel, UnknownModelError
from ai.infer.transport.errors import WireError
from ai.infer.transport.trees import RawInput, Tree


class RequestContext:
    """What all inference requests of a server share.

    Args:
        metrics: where they are counted.
        max_pending: how many may be on their way at once.
        max_json_bytes: of the JSON in one of them.
    """

    def __init__(self, metrics: Metrics, max_pending: int, max_json_bytes: int) -> None:
        self.metrics = metrics
        self.max_pending = max_pending
        self.max_json_bytes = max_json_bytes
        self.n_pending = 0
        self.hang_ups = HangUps()

    def admit(self) -> None:
        """Raises `RefusedError` if too many requests are on their way, this one among them."""
        if self.n_pending > self.max_pending:
            raise RefusedError(429, f"{self.max_pending} requests are on their way; try again soon", RETRY)

    def check_json(self, n_bytes: int) -> None:
        """Raises `RefusedError` if JSON is too long: its parser holds up the event loop, in a thread of its own too."""
        if n_bytes > self.max_json_bytes:
            what = f"JSON must have at most {self.max_json_bytes} bytes, not {n_bytes}: send tensors as bytes"
            raise RefusedError(413, what)


async def infer(
    context: RequestContext, model: ServedModel, request: Request, receive: Receive, *, plain: bool
) -> Reply:
    """Answers a request to a model, plain or of the Open Inference Protocol.

    Raises:
        ConnectionResetError: the client hung up, and its request was taken out of the queue.
    """
    start = time.perf_counter()
    status = 499  # as others write that the client was gone before there was an answer
    context.n_pending += 1
    try:
        context.admit()
        client = model.client()  # first: what a model takes is known once it is loaded
        body, request.body = request.body, b""  # which is free once its bytes are on their way
        if plain:
            asked = read_plain(body, request.headers, model.inputs, context.check_json)
            del body
            tree = await _ask(context.hang_ups, client, model.processing, [asked.x], receive, None)
            reply = 200, *answer_plain(asked, named_outputs(tree))
        else:
            header = request.headers.get(b"inference-header-content-length")
            context.check_json(json_length(header, len(body)))
            plan, inputs = read_request(body, header, model.inputs, model.plans)
            del body
            tree = await _ask(context.hang_ups, client, model.processing, inputs, receive, plan.timeout_s)
            reply = 200, *write_response(plan, named_outputs(tree), model.source.name, model.source.version)
        status = 200
    except (ConnectionResetError, asyncio.CancelledError):
        raise
    except Exception as error:
        reply = refuse(error)
        status = reply[0]
    finally:
        context.n_pending -= 1
        context.metrics.count(model.source.name, model.source.version, status, time.perf_counter() - start)
    return reply


async def _ask(
    hang_ups: HangUps,
    client: InferencerClient,
    processing: Processing | None,
    inputs: list[RawInput],
    receive: Receive,
    timeout_s: float | None,
) -> Tree:
    """Returns what goes out for these inputs; drops the request if the client hangs up meanwhile."""
    if processing is not None:
        prepared = await processing.prepare(inputs)
        inputs.clear()
        return await processing.finish(await _ask(hang_ups, client, None, prepared, receive, timeout_s))
    waiting = hang_ups.begin(receive)
    call: RawRequest | asyncio.Task[Tree] | None = None
    try:
        call = client.start_raw(inputs, waiting.finish, timeout_s)
        if call is None:  # no room, or no connection yet
            call = asyncio.create_task(_ask_patiently(client, list(inputs), timeout_s))
            call.add_done_callback(waiting.finish)
        inputs.clear()  # the bytes of the body with them, while the worker has its own
        await waiting.done
    except BaseException:
        if call is not None:
            call.cancel()
        raise
    finally:
        hang_ups.end(waiting)
    return call.result()


async def _ask_patiently(client: InferencerClient, inputs: list[RawInput], timeout_s: float | None) -> Tree:
    async with asyncio.timeout(timeout_s):
        return await client.ainfer_raw(*inputs)


def refuse(error: Exception) -> Reply:
    """Returns the reply that says what is wrong, and whose fault it is: 4xx the client's, 500 the model's or ours.

    503 means that there is no room or no worker just now, 504 that it took too long.
    """
    if isinstance(error, RefusedError):
        return error.status, (*JSON, *error.headers), error_body(str(error))
    if isinstance(error, (BadInputError, WireError)):
        return 400, JSON, error_body(str(error))
    if isinstance(error, UnknownModelError):
        return 404, JSON, error_body(str(error.args[0]))
    if isinstance(error, InPartsError):
        where = "send the plain form, POST /models/NAME, with accept: text/event-stream"
        return 400, JSON, error_body(f"the model returns its reply in parts: {where}")
    if isinstance(error, RequestError):
        _log.error("the model failed on a request: %s", error)
        return 500, JSON, error_body(f"the model failed on this request: {first_line(error)}")
    if isinstance(error, TimeoutError):
        return 504, JSON, error_body(str(error) or "the worker did not answer in time")
    if isinstance(error, (InferError, NotReadyError)):
        return 503, (*JSON, *RETRY), error_body(first_line(error))
    _log.error("the server failed on a request", exc_info=error)
    return 500, JSON, error_body("the server failed on this request")


_log = logging.getLogger("ai.infer")
