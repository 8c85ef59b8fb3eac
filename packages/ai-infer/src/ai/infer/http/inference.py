"""One inference request, from its body to its reply, without a task or a future of its own where that is possible."""

import asyncio
import json
import logging
import time
from collections.abc import Callable

from ai.infer.client import InferencerClient
from ai.infer.connection.raw_request import RawRequest
from ai.infer.errors import InferError, RequestError
from ai.infer.http.messages import JSON, RETRY, RefusedError, Reply, Request
from ai.infer.http.metrics import Metrics
from ai.infer.http.plain import PlainRequest, answer_plain, is_json, read_plain
from ai.infer.http.protocol import Plan, read_request, write_response
from ai.infer.http.repository import NotReadyError, ServedModel, UnknownModelError, named_outputs
from ai.infer.http.tensors import BadInputError, json_length
from ai.infer.transport.errors import WireError
from ai.infer.transport.trees import RawTensor, Tree


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

    def admit(self) -> None:
        """Raises `RefusedError` if too many requests are on their way."""
        if self.n_pending >= self.max_pending:
            raise RefusedError(429, f"{self.n_pending} requests are on their way; try again soon", RETRY)

    def check_json(self, n_bytes: int) -> None:
        """Raises `RefusedError` if JSON is too long: its parser holds up the event loop, in a thread of its own too."""
        if n_bytes > self.max_json_bytes:
            what = f"JSON must have at most {self.max_json_bytes} bytes, not {n_bytes}: send tensors as bytes"
            raise RefusedError(413, what)


class Inference:
    """A request to a model.

    Args:
        context: of the server.
        model: which is asked.
        done: gets the reply, at once or later.
    """

    __slots__ = ("_asked", "_call", "_context", "_done", "_model", "_over", "_start", "_task")

    def __init__(self, context: RequestContext, model: ServedModel, done: Callable[[Reply], object]) -> None:
        self._context = context
        self._model = model
        self._done = done
        self._start = time.perf_counter()
        self._over = False
        self._asked: PlainRequest | Plan | None = None
        self._call: RawRequest | None = None
        self._task: asyncio.Task[Tree] | None = None

    def start(self, request: Request, *, plain: bool) -> None:
        """Reads the request, plain or of the Open Inference Protocol, and sends it to the worker."""
        context, model = self._context, self._model
        try:
            context.admit()
        except RefusedError as error:
            self._reply(refuse(error))
            return
        context.n_pending += 1
        try:
            if plain:
                if is_json(request.headers):
                    context.check_json(len(request.body))
                self._asked = asked = read_plain(request.body, request.headers, model.inputs)
                tensors = [asked.x]
            else:
                header = request.headers.get(b"inference-header-content-length")
                context.check_json(json_length(header, len(request.body)))
                self._asked, tensors = read_request(request.body, header, model.inputs, model.plans)
            client = model.client()
            self._call = client.start_raw(tensors, self._finish_call)
            if self._call is None:  # no room, or no connection yet
                self._task = asyncio.get_running_loop().create_task(_ask(client, tensors))
                self._task.add_done_callback(self._finish_task)
        except Exception as error:
            self._end(refuse(error))

    def _finish_call(self, call: RawRequest) -> None:
        try:
            reply = self._write(call.result())
        except Exception as error:
            reply = refuse(error)
        self._end(reply)

    def _finish_task(self, task: "asyncio.Task[Tree]") -> None:
        if task.cancelled():
            return
        try:
            reply = self._write(task.result())
        except Exception as error:
            reply = refuse(error)
        self._end(reply)

    def _write(self, tree: Tree) -> Reply:
        outputs: list[tuple[str, RawTensor]] = named_outputs(tree)
        asked = self._asked
        if isinstance(asked, PlainRequest):
            headers, body = answer_plain(asked, outputs)
        else:
            assert asked is not None
            headers, body = write_response(asked, outputs, self._model.source.name, self._model.source.version)
        return 200, headers, body

    def _end(self, reply: Reply) -> None:
        if not self._over:
            self._over = True
            self._context.n_pending -= 1
            self._call = self._task = None  # which lead back here: nothing is left for the collector of cycles
            self._reply(reply)

    def _reply(self, reply: Reply) -> None:
        source = self._model.source
        self._context.metrics.count(source.name, source.version, reply[0], time.perf_counter() - self._start)
        self._done(reply)

    def cancel(self) -> None:
        """Drops the request: whoever asked is gone."""
        if self._over:
            return
        self._over = True
        self._context.n_pending -= 1
        if self._call is not None:
            self._call.cancel()
        elif self._task is not None:
            self._task.cancel()


async def _ask(client: InferencerClient, tensors: list[RawTensor]) -> Tree:
    return await client.ainfer_raw(*tensors)


def refuse(error: Exception) -> Reply:
    """Returns the reply that says what is wrong; what no request and no worker can cause is logged, a fault here."""
    if isinstance(error, RefusedError):
        return error.status, (*JSON, *error.headers), error_body(str(error))
    if isinstance(error, (BadInputError, WireError)):
        return 400, JSON, error_body(str(error))
    if isinstance(error, RequestError):
        return 400, JSON, error_body(f"the model failed on this request: {first_line(error)}")
    if isinstance(error, UnknownModelError):
        return 404, JSON, error_body(str(error.args[0]))
    if isinstance(error, (InferError, NotReadyError, TimeoutError)):
        return 503, (*JSON, *RETRY), error_body(first_line(error))
    logging.getLogger("ai.infer").error("the server failed on a request", exc_info=error)
    return 500, JSON, error_body("the server failed on this request")


def error_body(message: str) -> bytes:
    """Returns what the protocol wants in the body of a reply that is an error."""
    return json.dumps({"error": message}, separators=(",", ":")).encode()


def first_line(error: BaseException) -> str:
    """Returns an error without its traceback: what the worker's files are called is nobody's business outside."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
