"""The page `ai-lab serve`: a small HTTP interface over a folder of trials, and the files of the page.

It only reads, but for tags and notes, which whoever has the token may change.

Curves travel as binary: little-endian, an unsigned 32-bit length of a JSON head, the head
(`[{id, key, smooth, n, mark, follows}, …]`), padding to 8 bytes, and for each entry n float64 of x and n float64 of y.
They are smoothed over every recorded point and then decimated; with smoothing each comes twice, as recorded and
smoothed. Whoever asks again with `have`, the marks of what it has, separated by commas and in the order of ids, then
keys, gets what was logged since, where an entry `follows`; a curve that was cut or written anew comes whole.
"""

import hashlib
import hmac
import ipaddress
import json
import struct
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ai.lab.arguments import check_text, check_whole
from ai.lab.files.load import is_list_of, is_text
from ai.lab.files.marks import change_marks
from ai.lab.page.catalog import Catalog, plain, short
from ai.lab.page.decimate import decimate
from ai.lab.page.importance import Importances
from ai.lab.record import MEDIA_TYPES, METRICS, SYSTEM, Column, Record

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.datastructures import QueryParams
    from starlette.requests import Request
    from starlette.responses import Response

    Handler = Callable[[Request], Awaitable[Response]]

MAX_MARKS_BYTES = 1 << 16
"""A note is no book."""
MAX_CURVES = 400
"""More curves than this are not answered in one request."""
MAX_POINTS = 1 << 24
"""More points than this, of all its curves, no answer has."""

# Nothing but the page's own files may be loaded or run, whatever a trial is called or holds.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self'; media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


def serve(root: Path, *, host: str = "127.0.0.1", port: int = 8765, token: str | None = None) -> None:
    """Serves the page until it is stopped.

    Args:
        root: The folder whose trials are shown.
        host: The address to listen on.
        port: 0 takes a free one.
        token: Asked of everyone; must be given where other machines can reach `host`.

    Raises:
        TypeError: `port` is no whole number, `host` or `token` no text.
        ValueError: `port` is none; or `host` can be reached from other machines and there is no token.
        ModuleNotFoundError: the extra `serve` is not installed.
    """
    check_text(host=host)
    check_text(or_none=True, token=token)
    check_whole(0, port=port)
    if port > 65535:
        raise ValueError(f"port must be at most 65535, got {port}")
    if not is_loopback(host) and not token:
        raise ValueError(f"host {host} can be reached from other machines: pass --token or set AI_LAB_TOKEN")
    uvicorn = _need("uvicorn")
    import socket

    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    shown = f"[{host}]" if ":" in host else host
    query = "?token=…" if token else ""
    print(f"trials of {root} at http://{shown}:{listener.getsockname()[1]}/{query}", flush=True)
    config = uvicorn.Config(make_app(root, token=token), log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


def make_app(root: Path, *, token: str | None = None) -> "Starlette":
    """Returns the ASGI application; see `serve`.

    Routes to GET: `/`, `/api/trials`, `/api/trial/{id}`, `/api/trial/{id}/log`, `/api/trial/{id}/diff`,
    `/api/trial/{id}/sample/{step}`, `/api/trial/{id}/media/{step}/{name}`, `/api/importance/{experiment}`, and
    `/api/curves?id=…&key=…&x=step|time|by:KEY&points=…&file=metrics|system&smooth=…&from=…&to=…&have=…`. To POST, with
    a token only: `/api/trial/{id}/marks`, JSON with any of `add`, `remove` (lists of tags) and `note`.

    Raises:
        ModuleNotFoundError: the extra `serve` is not installed.
    """
    _need("starlette"), _need("scipy")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    catalog, importances = Catalog(root), Importances()

    def trials(catalog: Catalog, request: Request) -> tuple[bytes, str]:
        since = int(np.clip(_number(request.query_params, "since", -1), -1, 2**53))
        return _json({"root": str(catalog.root), "editable": token is not None, **catalog.changes(since)})

    def importance(catalog: Catalog, request: Request) -> tuple[bytes, str]:
        identity = request.path_params["id"]
        return _json(importances.of(catalog.experiment_path(identity), identity))

    async def change(request: Request) -> Response:
        """Changes the marks of a trial. A form of another page's cannot send this type."""
        if token is None:
            said = "tags and notes are changed with a token only: ai-lab serve --token …"
            return Response(said, 403, media_type="text/plain", headers=_HEADERS)
        if request.headers.get("content-type") != "application/json":
            return Response("the body must be application/json", 415, media_type="text/plain", headers=_HEADERS)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_MARKS_BYTES:
                said = f"at most {MAX_MARKS_BYTES} bytes are taken"
                return Response(said, 413, media_type="text/plain", headers=_HEADERS)
        return await answer(lambda catalog, request: _marks(catalog, request, body))(request)

    def answer(make: Callable[[Catalog, Request], tuple[bytes, str]]) -> "Handler":
        async def handle(request: Request) -> Response:
            refusal = _refuse(request, token)
            if refusal is not None:
                return Response(refusal[1], refusal[0], media_type="text/plain", headers=_HEADERS)
            try:
                body, media_type = await run_in_threadpool(make, catalog, request)
            except KeyError as error:
                return Response(f"not found: {error}", 404, media_type="text/plain", headers=_HEADERS)
            except ValueError as error:
                return Response(str(error), 400, media_type="text/plain", headers=_HEADERS)
            except OSError as error:
                return Response(f"cannot be read: {error}", 404, media_type="text/plain", headers=_HEADERS)
            headers = dict(_HEADERS)
            if token and request.query_params.get("token"):
                headers["Set-Cookie"] = f"{_cookie(token)}={_digest(token)}; HttpOnly; SameSite=Strict; Path=/"
            return Response(body, media_type=media_type, headers=headers)

        return handle

    return Starlette(
        routes=[
            Route("/api/trials", answer(trials)),
            Route("/api/curves", answer(_curves)),
            Route("/api/importance/{id}", answer(importance)),
            Route("/api/trial/{id}", answer(_trial)),
            Route("/api/trial/{id}/marks", change, methods=["POST"]),
            Route("/api/trial/{id}/log", answer(_log)),
            Route("/api/trial/{id}/diff", answer(_diff)),
            Route("/api/trial/{id}/sample/{step:int}", answer(_sample)),
            Route("/api/trial/{id}/media/{step:int}/{name}", answer(_media)),
            Route("/{file}", answer(_file)),
            Route("/", answer(_file)),
        ]
    )


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# -- answers: (body, media type)


def _file(catalog: Catalog, request: "Request") -> tuple[bytes, str]:
    name = request.path_params.get("file", "index.html")
    for file in (files("ai.lab.page") / "web").iterdir():  # the name is looked up, never made into a path
        suffix = Path(file.name).suffix
        if file.name == name and suffix in _MEDIA_TYPES:
            return file.read_bytes(), _MEDIA_TYPES[suffix]
    raise KeyError(name[:100])


def _trial(catalog: Catalog, request: "Request") -> tuple[bytes, str]:
    return _json(describe_trial(catalog, request.path_params["id"]))


def describe_trial(catalog: Catalog, identity: str) -> dict[str, Any]:
    """Returns what the page's views need to know of a trial, as JSON can hold it.

    Raises:
        KeyError: there is none.
    """
    record = catalog.record(identity)
    meta, problems = record.meta, record.load_meta()[1]
    for session in meta.get("sessions", []):
        session["torch_seed"] = short(session.get("torch_seed"))
        if git := session.get("git"):
            git["diff"] = len(git.get("diff") or "")  # fetched when it is looked at
    for file in (METRICS, SYSTEM):  # a list of trials reads no rows of what has ended: here they are read anyway
        if damaged := catalog.damaged_lines(identity, file):
            problems = [*problems, f"{file}: {damaged} damaged line{'s' if damaged > 1 else ''}"]
    return {
        "id": record.id,
        "path": str(record.path),
        "state": record.state,
        "meta": plain(meta),
        "problems": problems,
        "config": {key: short(value, 2000) for key, value in catalog.config(record).items()},
        "keys": list(catalog.columns(identity)),
        "system": list(catalog.columns(identity, SYSTEM)),
        "samples": list(record.samples()),
        "media": {name: [[s, path.suffix] for s, path in kept.items()] for name, kept in record.media().items()},
        "snapshots": list(record.snapshots()),
    }


def _marks(catalog: Catalog, request: "Request", body: bytes) -> tuple[bytes, str]:
    record = catalog.record(request.path_params["id"])
    try:
        what = json.loads(body)
    except (ValueError, RecursionError):
        what = None
    texts = is_list_of(is_text)
    fits = {"add": texts, "remove": texts, "note": is_text}
    if not isinstance(what, dict) or not all(name in fits and fits[name](value) for name, value in what.items()):
        raise ValueError("marks must be a JSON object of add and remove, lists of tags, and note, a text")
    return _json(change_marks(record.path, **what))


def _log(catalog: Catalog, request: "Request") -> tuple[bytes, str]:
    return catalog.record(request.path_params["id"]).log_text().encode(), "text/plain"


def _diff(catalog: Catalog, request: "Request") -> tuple[bytes, str]:
    return tell_diff(catalog.record(request.path_params["id"])).encode(), "text/plain"


def tell_diff(record: Record) -> str:
    """Returns the changes that a trial ran with, and the names of the files that git did not know."""
    sessions = record.meta.get("sessions") or [{}]
    git = sessions[-1].get("git") or {}
    untracked = "".join(f"untracked: {name}\n" for name in git.get("untracked", []))
    return (git.get("diff") or "") + untracked


def _sample(catalog: Catalog, request: "Request") -> tuple[bytes, str]:
    # The name is looked up among the folder's pages, never made into a path.
    page = catalog.record(request.path_params["id"]).samples()[request.path_params["step"]]
    return page.read_bytes(), "image/png"


def _media(catalog: Catalog, request: "Request") -> tuple[bytes, str]:
    kept = catalog.record(request.path_params["id"]).media()
    path = kept[request.path_params["name"]][request.path_params["step"]]
    return path.read_bytes(), MEDIA_TYPES[path.suffix]


def _curves(catalog: Catalog, request: "Request") -> tuple[bytes, str]:
    query = request.query_params
    ids, keys = query.getlist("id"), query.getlist("key")
    if len(ids) * len(keys) > MAX_CURVES:
        raise ValueError(f"at most {MAX_CURVES} curves at once, got {len(ids)} trials × {len(keys)} metrics")
    points = int(np.clip(_number(query, "points", 1000), 4, 10_000_000))
    weight, low, high = _number(query, "smooth", 0), _number(query, "from", -np.inf), _number(query, "to", np.inf)
    file = {"metrics": "metrics.jsonl", "system": SYSTEM}[query.get("file", "metrics")]
    axis, zoomed = query.get("x", "step"), "from" in query or "to" in query
    known = iter(query.get("have", "").split(","))
    head: list[dict[str, Any]] = []
    numbers: list[memoryview] = []
    total = 0
    for identity in ids:
        name, columns = catalog.named_columns(identity, file)
        for key in keys:
            have = next(known, "")
            if key not in columns:
                continue
            column, n = columns[key], len(columns[key].values)
            x = _along(column, columns, axis)
            if x is None:
                continue
            order = _ascending(x)
            grows = axis in ("step", "time") and not zoomed and isinstance(order, slice)
            start = _points_known(have, name, n) if grows else 0
            for smoothed in (False, True) if weight else (False,):
                y = catalog.smoothed(identity, file, name, key, column.values, weight) if smoothed else column.values
                mark = f"{name}.{n}" if grows else ""
                x_part, y_part = decimate(*_between(x[order][start:], y[order][start:], low, high), points)
                numbers += [np.ascontiguousarray(x_part, "<f8").data, np.ascontiguousarray(y_part, "<f8").data]
                total += len(x_part)
                if total > MAX_POINTS:
                    raise ValueError(f"at most {MAX_POINTS} points at once: ask for fewer curves, or fewer points")
                told = {"mark": mark, "follows": start > 0, "n": len(x_part)}
                head.append({"id": identity, "key": key, "smooth": smoothed, **told})
    encoded = json.dumps(head).encode()
    encoded += b" " * (-(4 + len(encoded)) % 8)
    return b"".join([struct.pack("<I", len(encoded)), encoded, *numbers]), "application/octet-stream"


def _points_known(have: str, name: str, n: int) -> int:
    """Returns how many of a column's `n` points are known; none, if they are of one that was cut or written anew."""
    known, _, count = have.partition(".")
    return int(count) if known == name and count.isdecimal() and int(count) <= n else 0


def _along(column: Column, columns: Mapping[str, Column], axis: str) -> np.ndarray | None:
    """Returns where a column's points lie: its steps, the seconds since its first, or another metric at those steps."""
    along: np.ndarray
    if axis in ("step", "time"):
        along = column.steps.astype(np.float64) if axis == "step" else column.times - column.times[0]
        return along
    if not axis.startswith("by:"):
        raise ValueError(f"x must be step, time or by:METRIC, got {axis[:60]!r}")
    other = columns.get(axis[3:])
    if other is None:
        return None
    order = _ascending(other.steps)
    along = np.interp(column.steps, other.steps[order], other.values[order], left=np.nan, right=np.nan)
    return along


def _ascending(x: np.ndarray) -> slice | np.ndarray:
    """Returns what puts places in order; those that are none, before the first and after the last, at the end."""
    if (x[1:] >= x[:-1]).all():
        return slice(None)
    order: np.ndarray = np.argsort(x, kind="stable")
    return order


def _number(query: "QueryParams", name: str, default: float) -> float:
    try:
        number = float(query.get(name, default))
    except ValueError:
        number = np.nan
    if np.isnan(number):
        raise ValueError(f"{name} must be a number, got {query[name][:20]!r}")
    return number


def _between(x: np.ndarray, y: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points with `low <= x <= high` and one more to each side, so that lines lead out of the picture."""
    inside = np.flatnonzero((x >= low) & (x <= high))
    if not len(inside):
        return x[:0], y[:0]
    part = slice(max(0, inside[0] - 1), inside[-1] + 2)
    return x[part], y[part]


# -- who may ask


def _refuse(request: "Request", token: str | None) -> tuple[int, str] | None:
    """Returns status and text for who may not ask, else None."""
    if token:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = [_digest(one) for one in (request.query_params.get("token", ""), bearer)]
        given.append(request.cookies.get(_cookie(token), ""))
        if not any(hmac.compare_digest(one.encode(), _digest(token).encode()) for one in given):
            return 401, "a token is needed: open /?token=…"
        return None
    # Without a token only this machine is served; a name that a stranger's page made point here is not us.
    host = request.url.hostname or ""
    if not is_loopback(host):
        return 403, "this page answers to localhost only"
    return None


def _cookie(token: str) -> str:
    """Returns a name for the cookie: browsers tell no ports apart, and two servers have a cookie each."""
    return f"ai-lab-{_digest(token)[:8]}"


def _digest(token: str) -> str:
    """Returns what the browser keeps: a cookie cannot hold every token, and need not tell it."""
    return hashlib.sha256(b"ai-lab " + token.encode(errors="surrogatepass")).hexdigest()


def _json(value: object) -> tuple[bytes, str]:
    return json.dumps(value, allow_nan=False, default=str).encode(), "application/json"


def _need(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ai-lab serve needs the package {name}, which is not installed; install ai-lab's extra, from a checkout: "
            "pip install 'packages/ai-lab[serve]'",
            name=name,
        ) from error
