"""The server itself, from a request's path to its reply.

It is a raw ASGI application, since a framework's routing and validation cost several times what the rest of a request
costs. `ai.infer.http.serve` runs it under uvicorn with uvloop, with connections of its own (`ai.infer.http.connection`)
that hand it whole requests.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any, Protocol

from ai.infer.errors import InferError
from ai.infer.http.inference import Inference, RequestContext, error_body, first_line, refuse
from ai.infer.http.messages import JSON, RETRY, RefusedError, Reply, Request
from ai.infer.http.metrics import Metrics
from ai.infer.http.models import ModelSource
from ai.infer.http.openapi import describe
from ai.infer.http.repository import Repository, ServedModel, UnknownModelError
from ai.infer.http.tensors import BadInputError

SERVER_VERSION = "0.1.0"

_log = logging.getLogger("ai.infer")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Running(Protocol):
    """A request on its way to its reply."""

    def cancel(self) -> object:
        """Drops it."""


class App:
    """Serves models over HTTP: Open Inference Protocol v2, `POST /models/NAME`, metrics and an OpenAPI document.

    Args:
        sources: of the models, which are loaded when the server starts.
        tokens: one of which a request must carry (`Authorization: Bearer …`); empty: nobody is asked. Health is free.
        max_body_bytes: of a request.
        max_json_bytes: of what is JSON in it: nobody else is answered while it is parsed, in a thread or not.
        max_pending: requests that may be on their way at once; further ones are refused with 429.
        timeout_s: how long a request may take before it is answered with 503.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        sources: list[ModelSource],
        *,
        tokens: list[str] | None = None,
        max_body_bytes: int = 1 << 26,
        max_json_bytes: int = 1 << 23,
        max_pending: int = 1024,
        timeout_s: float = 30.0,
    ) -> None:
        if sys.byteorder != "little":
            raise ValueError("the server must run on a little-endian machine, as the protocol's bytes are")
        if max_body_bytes < 1 or max_json_bytes < 1 or max_pending < 1 or not timeout_s > 0:
            raise ValueError(
                f"max_body_bytes ({max_body_bytes}), max_json_bytes ({max_json_bytes}), max_pending ({max_pending}) "
                f"and timeout_s ({timeout_s}) must be positive"
            )
        if tokens is not None and not all(tokens):
            raise ValueError("tokens must not be empty strings")
        self.repository = Repository(sources, timeout_s)
        self.metrics = Metrics(self.repository)
        self.context = RequestContext(self.metrics, max_pending, max_json_bytes)
        self.max_body_bytes = max_body_bytes
        self.timeout_s = timeout_s
        self._tokens = [f"Bearer {token}".encode() for token in tokens or []]
        self._changing = asyncio.Lock()  # one load or unload at a time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or the server's start and end, as ASGI wants it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope["method"], scope["path"], dict(scope["headers"]))
        refusal = self.check(request)
        try:
            if refusal is None:
                request.body = await self._read_body(receive)
            status, headers, body = refusal or await self._answer(request)
        except RefusedError as error:
            status, headers, body = refuse(error)
        except ConnectionResetError:  # whoever asked is gone
            return
        fields = [*headers, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, request: Request) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        running = self.begin(request, future.set_result)
        try:
            return await future
        except asyncio.CancelledError:
            running.cancel()
            raise

    async def _read_body(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            body += message.get("body", b"")
            if len(body) > self.max_body_bytes:
                raise self.too_large()
            if not message.get("more_body", False):
                return bytes(body)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    loads = [asyncio.to_thread(self.repository.load, name) for name in self.repository.models]
                    await asyncio.gather(*loads)
                except Exception as error:
                    await asyncio.to_thread(self.close)
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await asyncio.to_thread(self.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    def close(self) -> None:
        """Stops all workers at once."""
        for name in self.repository.models:
            self.repository.unload(name, drain=False)

    # From a request to an answer --------------------------------------------------------------------------------

    def check(self, request: Request) -> Reply | None:
        """Returns why a request is refused before its body is read; None: it is not."""
        headers = request.headers
        try:
            if self._tokens and not _is_free(request):
                self._check_token(headers)
            if headers.get(b"content-encoding", b"identity") != b"identity":
                raise RefusedError(415, "the body must not be compressed")
            length = headers.get(b"content-length", b"")
            if length.isdigit() and int(length) > self.max_body_bytes:
                raise self.too_large(int(length))
        except RefusedError as error:
            return refuse(error)
        return None

    def too_large(self, n_bytes: int | None = None) -> RefusedError:
        """Returns the refusal of a body that is over the limit."""
        what = f"the body must have at most {self.max_body_bytes} bytes"
        return RefusedError(413, what if n_bytes is None else f"{what}, not {n_bytes}")

    def begin(self, request: Request, done: Callable[[Reply], object]) -> Running:
        """Answers a request that `check` let pass; `done` gets the reply, at once or later, in the running loop."""
        try:
            found = self._find_inference(request)
        except Exception as error:
            done(refuse(error))
            return _DONE
        if found is not None:
            model, plain = found
            inference = Inference(self.context, model, done)
            inference.start(request, plain=plain)
            return inference
        task = asyncio.get_running_loop().create_task(self._answer_other(request))
        task.add_done_callback(lambda task: task.cancelled() or done(task.result()))
        return task

    def _find_inference(self, request: Request) -> tuple[ServedModel, bool] | None:
        """Returns which model a request is for, and whether it is a plain one; None: it is none for a model."""
        path = request.path  # one that is long is of a client that would fill the cache
        asked = (_inference_path if len(path) <= 256 else _inference_path.__wrapped__)(path)
        if asked is None:
            return None
        name, version, plain = asked
        if plain:
            _only("POST", request)
        model = self.repository.find(name, version)
        _only("POST", request)
        return model, plain

    async def _answer_other(self, request: Request) -> Reply:
        try:
            return await self._route(request)
        except Exception as error:
            return refuse(error)

    async def _route(self, request: Request) -> Reply:
        path = request.path
        if path == "/v2/health/live":
            _only("GET", request)
            return 200, (), b""
        if path == "/v2/health/ready":
            _only("GET", request)
            return (200, (), b"") if all(model.ready for model in self.repository.all()) else (503, RETRY, b"")
        parts = path.split("/")[1:]
        if parts[:2] == ["v2", "models"] and len(parts) >= 3:
            return self._answer_model(parts[2:], request)
        if parts[:2] == ["v2", "repository"]:
            return await self._answer_repository(parts[2:], request)
        if path in ("/v2", "/v2/"):
            _only("GET", request)
            extensions = ["binary_tensor_data", "model_repository"]
            return 200, JSON, _json({"name": "ai-infer", "version": SERVER_VERSION, "extensions": extensions})
        if path == "/metrics":
            _only("GET", request)
            text = await asyncio.to_thread(self.metrics.write)
            return 200, ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),), text
        if path == "/openapi.json":
            _only("GET", request)
            return 200, JSON, _json(describe(self.repository, SERVER_VERSION, bool(self._tokens)))
        raise RefusedError(404, f"there is nothing at {path!r:.80}")

    def _answer_model(self, parts: list[str], request: Request) -> Reply:
        name, version, rest = parts[0], None, parts[1:]
        if rest[:1] == ["versions"] and len(rest) >= 2:
            version, rest = rest[1], rest[2:]
        model = self.repository.find(name, version)
        _only("GET", request)
        if not rest:
            return 200, JSON, _json(model.metadata(sorted(self.repository.models[name])))
        if rest == ["ready"]:
            if model.ready:
                return 200, (), b""
            return 503, (*JSON, *RETRY), error_body(f"model {name!r} is not ready")
        if rest == ["config"]:
            spec = [
                {"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": list(s.shape[1:])} for s in model.inputs
            ]
            return 200, JSON, _json({"name": name, "platform": "pytorch_libtorch", "input": spec, "output": []})
        raise RefusedError(404, f"a model has no {'/'.join(rest)!r:.80}")

    async def _answer_repository(self, parts: list[str], request: Request) -> Reply:
        _only("POST", request)
        if parts == ["index"]:
            return 200, JSON, _json(self.repository.index())
        if len(parts) == 3 and parts[0] == "models" and parts[2] in ("load", "unload"):
            self.context.check_json(len(request.body))
            if parts[2] == "load" and request.body and _load_parameters(request.body):
                raise BadInputError("a load must come without parameters: only what was named at start can be loaded")
            action = self.repository.load if parts[2] == "load" else self.repository.unload
            async with self._changing:
                try:
                    await asyncio.to_thread(action, parts[1])
                except UnknownModelError:
                    raise
                except Exception as error:  # a factory, or torch that finds the weights unfit, raises whatever it likes
                    _log.warning("model %r could not be %sed", parts[1], parts[2], exc_info=error)
                    reason = f"model {parts[1]!r} could not be {parts[2]}ed: {_why(error)}"
                    raise BadInputError(reason) from error
            return 200, JSON, b"{}"
        raise RefusedError(404, f"the repository has no {'/'.join(parts)!r:.80}")

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        given = headers.get(b"authorization", b"")
        # All are compared, each in constant time: how long it takes says nothing of how near a guess was.
        if sum(hmac.compare_digest(given, token) for token in self._tokens) == 0:
            raise RefusedError(401, "a valid token must be sent", ((b"www-authenticate", b"Bearer"),))


class _Done:
    """A request that is answered."""

    def cancel(self) -> None:
        """Comes too late."""


_DONE = _Done()


def _why(error: Exception) -> str:
    """Returns an error's first line, and the next one as well if that is what the first announces."""
    if isinstance(error, InferError):
        return first_line(error)  # a worker's traceback follows
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2] if len(lines) > 1 and lines[0].endswith(":") else lines[:1])
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


@lru_cache(maxsize=1024)
def _inference_path(path: str) -> tuple[str, str | None, bool] | None:
    """Returns the model and version that a path of inference names, and whether it is the plain one; None: it is none.

    >>> _inference_path("/models/m"), _inference_path("/v2/models/m/versions/1/infer"), _inference_path("/v2")
    (('m', None, True), ('m', '1', False), None)
    """
    parts = path.split("/")
    if len(parts) == 3 and parts[1] == "models":
        return parts[2], None, True
    if len(parts) < 5 or parts[-1] != "infer" or parts[1:3] != ["v2", "models"]:
        return None
    if len(parts) == 5:
        return parts[3], None, False
    return (parts[3], parts[5], False) if len(parts) == 7 and parts[4] == "versions" else None


def _is_free(request: Request) -> bool:
    """Returns whether a request needs no token."""
    return request.method == "GET" and request.path in ("/v2/health/live", "/v2/health/ready")


def _only(allowed: str, request: Request) -> None:
    method = request.method
    if method != allowed:
        raise RefusedError(405, f"the method must be {allowed}, not {method!r:.20}", ((b"allow", allowed.encode()),))


def _load_parameters(body: bytes) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(body)
        return not isinstance(document, dict) or bool(document.get("parameters"))
    raise BadInputError("the body must be JSON")


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
