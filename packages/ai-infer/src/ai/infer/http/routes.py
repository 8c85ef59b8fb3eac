"""The application, from a request's path to its reply.

It is plain ASGI, since a framework's routing and validation cost several times what the rest of a request costs. Any
ASGI server runs it (`ai.infer.http.serve`: uvicorn), and other applications can mount it.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import sys
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

from ai.infer.arguments import check_counts, check_seconds, check_switches
from ai.infer.http.formats.accept import ReplyForm, accept_of, reply_form
from ai.infer.http.formats.bodies import BodyReader, Receive
from ai.infer.http.formats.messages import JSON, RETRY, RefusedError, Reply, Request
from ai.infer.http.formats.tensors import BadInputError, read_json
from ai.infer.http.inference import RequestContext, infer, refuse
from ai.infer.http.metrics import Metrics
from ai.infer.http.models.model_sources import ModelSource
from ai.infer.http.models.repository import Repository, UnknownModelError
from ai.infer.http.openapi import describe
from ai.infer.http.owner import LocalOwner, Owner
from ai.infer.http.streaming import Send, stream
from ai.infer.inferencer import Inferencer

SERVER_VERSION = "0.1.0"

_log = logging.getLogger("ai.infer")

Scope = MutableMapping[str, Any]
_LIVE_PATH = "/v2/health/live"
_LIVE = b'{"live":true}'
_METRICS = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
_READY, _NOT_READY = b'{"ready":true}', b'{"ready":false}'


class App:
    """Serves models over HTTP: Open Inference Protocol v2, `POST /models/NAME`, metrics and an OpenAPI document.

    Args:
        models: see `ai.infer.http.app`; or whoever loads them in this process's stead.
        tokens: one of which a request must carry (`Authorization: Bearer …`); empty: nobody is asked. Health is free.
        max_body_bytes: of a request, also when it is unpacked.
        max_unfinished_bytes: of all bodies together that are still being sent.
        max_json_bytes: of what is JSON in it: nobody else is answered while it is parsed, in a thread or not.
        max_pending: requests that may be on their way at once; further ones are refused with 429.
        timeout_s: how long a request may take to arrive, and to be answered.
        stall_timeout_s: after so long in one call of it a model counts as not ready; None: as long as `timeout_s`.
        trust: whether a folder may say what code makes its model: by value, or by the name of a function.

    Raises:
        TypeError: an option is of another kind.
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        models: Mapping[str, Inferencer] | Sequence[str | ModelSource] | Owner,
        *,
        tokens: list[str] | None = None,
        max_body_bytes: int = 1 << 26,
        max_unfinished_bytes: int = 1 << 28,
        max_json_bytes: int = 1 << 23,
        max_pending: int = 1024,
        timeout_s: float = 30.0,
        stall_timeout_s: float | None = None,
        trust: bool = False,
    ) -> None:
        if sys.byteorder != "little":
            raise ValueError("the server must run on a little-endian machine, as the protocol's bytes are")
        check_counts(max_body_bytes=max_body_bytes, max_unfinished_bytes=max_unfinished_bytes)
        check_counts(max_json_bytes=max_json_bytes, max_pending=max_pending)
        check_seconds(timeout_s=timeout_s, none=False, endless=False)
        check_seconds(stall_timeout_s=stall_timeout_s)
        check_switches(trust=trust)
        if tokens is not None:
            # An iterator would be at its end here, and leave a server that everybody may use; so would an empty list.
            kind = isinstance(tokens, Collection) and not isinstance(tokens, str)
            if not kind or not all(isinstance(token, str) for token in tokens):
                raise TypeError("tokens must be a list of strings, each of which opens the door")
            if not tokens:
                raise ValueError("tokens must hold at least one; None lets everybody in")
            if not all(tokens):
                raise ValueError("tokens must not be empty strings")
        stall_timeout_s = timeout_s if stall_timeout_s is None else stall_timeout_s
        if isinstance(models, (Mapping, Sequence)):
            models = LocalOwner(Repository(models, timeout_s, stall_timeout_s, trust=trust))
        elif not hasattr(models, "repository"):
            raise TypeError(f"models must be a dict of inferencers or a list of sources, not {models!r:.80}")
        self._owner: Owner = models
        self.repository = models.repository
        self.metrics = Metrics(self.repository)
        self.context = RequestContext(self.metrics, max_pending, max_json_bytes)
        self.bodies = BodyReader(max_body_bytes, max_unfinished_bytes, timeout_s)
        self._tokens = [token.encode() for token in tokens or []]
        self._timeout_s = timeout_s
        self._started = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serves one request, or the server's start and end, as ASGI wants it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        path: str = scope["path"]
        root = scope.get("root_path", "")
        if (
            root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/")
        ):  # where another application has mounted this one
            path = path[len(root) :]
        request = Request(scope["method"], path, dict(scope["headers"]))
        try:
            if self._tokens and not _is_free(request):
                self._check_token(request.headers)
            request.body = await self.bodies.read(request, receive)
            if not self._started and path != _LIVE_PATH:
                with contextlib.suppress(Exception):  # it is logged, and the reason why a model is not ready
                    await self.start()
            # A path that is long is of a client that would fill the cache.
            asked = (_inference_path if len(path) <= 256 else _inference_path.__wrapped__)(path)
            if asked is None:
                reply: Reply | None = await self._route(request)
            else:
                name, version, plain = asked
                if plain:
                    _only("POST", request)
                model = self.repository.find(name, version)
                _only("POST", request)
                if plain and b"accept" in request.headers and _wants_parts(request, scope["headers"]):
                    reply = await stream(self.context, model, request, receive, send, self._timeout_s)
                else:
                    reply = await infer(self.context, model, request, receive, plain=plain)
            if reply is None:  # it was sent in parts
                return
            status, headers, body = reply
        except ConnectionResetError:  # whoever asked is gone
            return
        except Exception as error:
            status, headers, body = refuse(error)
            self._count_refused(path, status)
        fields = [*headers, (b"content-length", b"%d" % len(body))]
        try:
            await send({"type": "http.response.start", "status": status, "headers": fields})
            await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else body})
        except (OSError, RuntimeError) as error:  # by which servers say that nobody is there any more
            _log.debug("a reply could not be sent: %s", error)

    def _count_refused(self, path: str, status: int) -> None:
        """Counts what got no further (no token, no method, no body) if it was asked of a model that there is."""
        asked = _inference_path.__wrapped__(path)
        if asked is not None:
            with contextlib.suppress(UnknownModelError):
                source = self.repository.find(asked[0], asked[1]).source
                self.metrics.count_refused(source.name, source.version, status)

    async def start(self) -> None:
        """Loads the models; a server does so at its start, and an application that is mounted before its first answer.

        It is done once: what fails is not tried again by every request, but by a load that somebody asks for.

        Raises:
            Exception: whatever a model's source raises, once the others are loaded.
        """
        try:
            await self._owner.start()
        except Exception:
            self._started = True
            raise
        self._started = True

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except asyncio.CancelledError:  # told to end while models load: nobody waits for an answer
                    return
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
        """Stops all workers at once that are its own."""
        self._owner.close()

    # From a request to an answer --------------------------------------------------------------------------------

    async def _route(self, request: Request) -> Reply:
        path = request.path
        if path == _LIVE_PATH:
            _only("GET", request)
            return 200, JSON, _LIVE
        if path == "/v2/health/ready":
            _only("GET", request)
            if self.repository.ready:
                return 200, JSON, _READY
            return 503, (*JSON, *RETRY), _NOT_READY
        parts = path.split("/")[1:]
        if parts[:2] == ["v2", "models"] and len(parts) >= 3:
            return self._answer_model(parts[2:], request)
        if parts[:2] == ["v2", "repository"]:
            return await self._answer_repository(parts[2:], request)
        if path in ("/v2", "/v2/"):
            _only("GET", request)
            extensions = ["binary_tensor_data", "classification", "model_repository"]
            return 200, JSON, _json({"name": "ai-infer", "version": SERVER_VERSION, "extensions": extensions})
        if path == "/metrics":
            _only("GET", request)
            return 200, _METRICS, await self._owner.write_metrics(self.metrics)
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
            body = _json({"name": name, "ready": model.ready})
            return (200, JSON, body) if model.ready else (503, (*JSON, *RETRY), body)
        if rest == ["config"]:
            sides = {
                side: [{"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": list(s.shape)} for s in specs]
                for side, specs in (("input", model.inputs), ("output", model.outputs))
            }
            return 200, JSON, _json({"name": name, "platform": "pytorch_libtorch", **sides})
        raise RefusedError(404, f"a model has no {'/'.join(rest)!r:.80}")

    async def _answer_repository(self, parts: list[str], request: Request) -> Reply:
        _only("POST", request)
        self.context.check_json(len(request.body))
        if parts == ["index"]:
            ready = _fields(request.body, {"ready"}).get("ready", False)
            if not isinstance(ready, bool):
                raise BadInputError(f"'ready' must be true or false, not {ready!r:.40}")
            return 200, JSON, _json([x for x in self.repository.index() if x["state"] == "READY" or not ready])
        if len(parts) == 3 and parts[0] == "models" and parts[2] in ("load", "unload"):
            parameters = _fields(request.body, {"parameters"}).get("parameters", {})
            if parts[2] == "load" and parameters != {}:
                raise BadInputError("a load must come without parameters: only what was named at start can be loaded")
            if not isinstance(parameters, dict) or parameters.keys() - {"unload_dependents"}:  # there are none here
                raise BadInputError(f"an unload has no parameters but unload_dependents, not {parameters!r:.80}")
            await self._owner.change("load" if parts[2] == "load" else "unload", parts[1])
            return 200, JSON, b"{}"
        raise RefusedError(404, f"the repository has no {'/'.join(parts)!r:.80}")

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # All are compared, each in constant time: how long it takes says nothing of how near a guess was.
        right = sum(hmac.compare_digest(given.strip(), token) for token in self._tokens)
        if scheme.lower() != b"bearer" or right == 0:
            raise RefusedError(401, "a valid token must be sent", ((b"www-authenticate", b"Bearer"),))


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


def _wants_parts(request: Request, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Returns whether a reply is to come in parts; puts together what several lines of `headers` accept."""
    if len(headers) != len(request.headers):
        request.headers[b"accept"] = accept_of(headers)
    accept = request.headers[b"accept"]
    return accept != b"*/*" and reply_form(accept) is ReplyForm.PARTS


def _is_free(request: Request) -> bool:
    """Returns whether a request needs no token."""
    return request.method in ("GET", "HEAD") and request.path in (_LIVE_PATH, "/v2/health/ready")


def _only(allowed: str, request: Request) -> None:
    if (method := request.method) != allowed and not (allowed == "GET" and method == "HEAD"):
        raise RefusedError(405, f"the method must be {allowed}, not {method!r:.20}", ((b"allow", allowed.encode()),))


def _fields(body: bytes, known: set[str]) -> dict[str, Any]:
    """Returns what a body asks for, null as if left out; raises for what nobody here would heed."""
    document = read_json(body or b"{}")
    if not isinstance(document, dict):
        raise BadInputError(f"the body must be an object, not {type(document).__name__}")
    fields = {name: x for name, x in document.items() if x is not None}
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise BadInputError(f"the body has no field {unknown[0]!r:.80}; it has {sorted(known)}")
    return fields


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
