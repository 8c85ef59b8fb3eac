"""The server itself: one raw ASGI application, from a request's path to its reply.

Raw ASGI, since a framework's routing and validation cost several times what the rest of a request costs; uvicorn with
uvloop and httptools runs it (`ai.infer.http.serve`).
"""

import asyncio
import contextlib
import hmac
import json
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ai.infer.errors import InferError, RequestError, WorkerDiedError
from ai.infer.http.metrics import Metrics
from ai.infer.http.models import ModelSource
from ai.infer.http.openapi import describe
from ai.infer.http.plain import answer_plain, read_plain
from ai.infer.http.protocol import Headers, read_request, write_response
from ai.infer.http.repository import NotReadyError, Repository, ServedModel, UnknownModelError
from ai.infer.http.tensors import BadInputError

SERVER_VERSION = "0.1.0"
_JSON: Headers = [(b"content-type", b"application/json")]
_RETRY: Headers = [(b"retry-after", b"1")]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Reply = tuple[int, Headers, bytes]


class RefusedError(Exception):
    """A request that gets no further; carries the reply's status and further headers."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or []


class App:
    """Serves models over HTTP: Open Inference Protocol v2, `POST /models/NAME`, metrics and an OpenAPI document.

    Args:
        sources: of the models, which are loaded when the server starts.
        tokens: one of which a request must carry (`Authorization: Bearer …`); empty: nobody is asked. Health is free.
        max_body_bytes: of a request.
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
        max_pending: int = 1024,
        timeout_s: float = 30.0,
    ) -> None:
        if sys.byteorder != "little":
            raise ValueError("the server must run on a little-endian machine, as the protocol's bytes are")
        if max_body_bytes < 1 or max_pending < 1 or not timeout_s > 0:
            raise ValueError(
                f"max_body_bytes ({max_body_bytes}), max_pending ({max_pending}) and timeout_s ({timeout_s}) must be "
                f"positive"
            )
        if tokens is not None and not all(tokens):
            raise ValueError("tokens must not be empty strings")
        self.repository = Repository(sources, timeout_s)
        self.metrics = Metrics(self.repository)
        self._tokens = [f"Bearer {token}".encode() for token in tokens or []]
        self._max_body_bytes = max_body_bytes
        self._max_pending = max_pending
        self._n_pending = 0
        self._changing = asyncio.Lock()  # one load or unload at a time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or the server's start and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except RefusedError as refusal:
            status, headers, body = refusal.status, [*_JSON, *refusal.headers], _error(str(refusal))
        except BadInputError as error:
            status, headers, body = 400, _JSON, _error(str(error))
        except UnknownModelError as error:
            status, headers, body = 404, _JSON, _error(str(error.args[0]))
        except ConnectionResetError:  # whoever asked is gone
            return
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

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
        """Stops all workers."""
        for name in self.repository.models:
            self.repository.unload(name)

    # From a path to an answer -----------------------------------------------------------------------------------

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        path: str = scope["path"]
        method: str = scope["method"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if path == "/v2/health/live" and method == "GET":
            return 200, [], b""
        if path == "/v2/health/ready" and method == "GET":
            return (200 if all(model.ready for model in self.repository.all()) else 503), _RETRY, b""
        self._check_token(headers)
        parts = path.split("/")[1:]
        if len(parts) == 2 and parts[0] == "models":
            _only("POST", method)
            return await self._infer(self.repository.find(parts[1]), headers, receive, plain=True)
        if parts[:2] == ["v2", "models"] and len(parts) >= 3:
            return await self._answer_model(parts[2:], method, headers, receive)
        if parts[:2] == ["v2", "repository"]:
            return await self._answer_repository(parts[2:], method, headers, receive)
        if path in ("/v2", "/v2/"):
            _only("GET", method)
            extensions = ["binary_tensor_data", "model_repository"]
            return 200, _JSON, _json({"name": "ai-infer", "version": SERVER_VERSION, "extensions": extensions})
        if path == "/metrics":
            _only("GET", method)
            text = await asyncio.to_thread(self.metrics.write)
            return 200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], text
        if path == "/openapi.json":
            _only("GET", method)
            return 200, _JSON, _json(describe(self.repository, SERVER_VERSION, bool(self._tokens)))
        raise RefusedError(404, f"there is nothing at {path!r:.80}")

    async def _answer_model(
        self, parts: list[str], method: str, headers: dict[bytes, bytes], receive: Receive
    ) -> Reply:
        name, version, rest = parts[0], None, parts[1:]
        if rest[:1] == ["versions"] and len(rest) >= 2:
            version, rest = rest[1], rest[2:]
        model = self.repository.find(name, version)
        if rest == ["infer"]:
            _only("POST", method)
            return await self._infer(model, headers, receive, plain=False)
        _only("GET", method)
        if not rest:
            return 200, _JSON, _json(model.metadata(sorted(self.repository.models[name])))
        if rest == ["ready"]:
            return (200, [], b"") if model.ready else (503, [*_JSON, *_RETRY], _error(f"model {name!r} is not ready"))
        if rest == ["config"]:
            spec = [
                {"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": list(s.shape[1:])} for s in model.inputs
            ]
            return 200, _JSON, _json({"name": name, "platform": "pytorch_libtorch", "input": spec, "output": []})
        raise RefusedError(404, f"a model has no {'/'.join(rest)!r:.80}")

    async def _answer_repository(
        self, parts: list[str], method: str, headers: dict[bytes, bytes], receive: Receive
    ) -> Reply:
        _only("POST", method)
        body = await self._read_body(headers, receive)
        if parts == ["index"]:
            return 200, _JSON, _json(self.repository.index())
        if len(parts) == 3 and parts[0] == "models" and parts[2] in ("load", "unload"):
            if parts[2] == "load" and body and _load_parameters(body):
                raise BadInputError("a load must come without parameters: only what was named at start can be loaded")
            action = self.repository.load if parts[2] == "load" else self.repository.unload
            async with self._changing:
                try:
                    await asyncio.to_thread(action, parts[1])
                except (ValueError, InferError, TimeoutError, OSError) as error:
                    raise BadInputError(f"model {parts[1]!r} could not be loaded: {_first_line(error)}") from error
            return 200, _JSON, b"{}"
        raise RefusedError(404, f"the repository has no {'/'.join(parts)!r:.80}")

    # Inference --------------------------------------------------------------------------------------------------

    async def _infer(self, model: ServedModel, headers: dict[bytes, bytes], receive: Receive, *, plain: bool) -> Reply:
        start = time.perf_counter()
        name, version = model.source.name, model.source.version
        code = 500
        try:
            reply = await self._infer_counted(model, headers, receive, plain=plain)
            code = reply[0]
            return reply
        except RefusedError as refusal:
            code = refusal.status
            raise
        except BadInputError:
            code = 400
            raise
        finally:
            self.metrics.count(name, version, code, time.perf_counter() - start)

    async def _infer_counted(
        self, model: ServedModel, headers: dict[bytes, bytes], receive: Receive, *, plain: bool
    ) -> Reply:
        if self._n_pending >= self._max_pending:
            raise RefusedError(429, f"{self._n_pending} requests are on their way; try again soon", _RETRY)
        self._n_pending += 1
        try:
            body = await self._read_body(headers, receive)
            if plain:
                asked = read_plain(body, headers, model.inputs)
                outputs = await model.infer([asked.x])
                return 200, *answer_plain(asked, outputs)
            request = read_request(body, headers.get(b"inference-header-content-length"), model.inputs)
            outputs = await model.infer(request.tensors)
            return 200, *write_response(request, outputs, model.source.name, model.source.version)
        except RequestError as error:
            raise BadInputError(f"the model failed on this request: {_first_line(error)}") from error
        except (WorkerDiedError, NotReadyError, TimeoutError) as error:
            raise RefusedError(503, _first_line(error), _RETRY) from error
        finally:
            self._n_pending -= 1

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytearray:
        """Returns a request's body, and refuses one that is too large as soon as that shows."""
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RefusedError(415, "the body must not be compressed")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise RefusedError(413, f"the body must have at most {self._max_body_bytes} bytes, not {int(length)}")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise RefusedError(413, f"the body must have at most {self._max_body_bytes} bytes")
            if not message.get("more_body", False):
                return body

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        if not self._tokens:
            return
        given = headers.get(b"authorization", b"")
        # All are compared, each in constant time: how long it takes says nothing of how near a guess was.
        if sum(hmac.compare_digest(given, token) for token in self._tokens) == 0:
            raise RefusedError(401, "a valid token must be sent", [(b"www-authenticate", b"Bearer")])


def _only(allowed: str, method: str) -> None:
    if method != allowed:
        raise RefusedError(405, f"the method must be {allowed}, not {method!r:.20}", [(b"allow", allowed.encode())])


def _load_parameters(body: bytearray) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(bytes(body))
        return not isinstance(document, dict) or bool(document.get("parameters"))
    raise BadInputError("the body must be JSON")


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _error(message: str) -> bytes:
    return _json({"error": message})


def _first_line(error: BaseException) -> str:
    """Returns an error without its traceback: what the worker's files are called is nobody's business outside."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
