"""`ai-infer serve`: the application under uvicorn, with uvloop and httptools."""

import argparse
import asyncio
import gc
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ai.infer.arguments import UsageError

if TYPE_CHECKING:
    import uvicorn

    from ai.infer.http.models.repository import Repository
    from ai.infer.http.owner import Owner
    from ai.infer.http.routes import App

_MISSING = (
    "ai-infer serve needs {name}, which is not installed; install the extra from a checkout "
    "(pip install 'packages/ai-infer[http]' beside its siblings) or from your folder of wheels"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `serve`."""
    parser.add_argument("models", nargs="+", metavar="NAME[@VERSION]=SOURCE[?OPTION=VALUE&…]", help=_SOURCE_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one, which is printed")
    parser.add_argument("--workers", type=int, default=1, help="processes that answer HTTP, before the same models")
    parser.add_argument("--token-file", type=Path, help="a file with one valid token a line")
    parser.add_argument("--max-body-bytes", type=int, default=1 << 26, help="a longer body gets 413")
    parser.add_argument("--max-json-bytes", type=int, default=1 << 23, help="others wait while it is parsed")
    parser.add_argument("--max-pending", type=int, default=1024, help="requests on their way at once; more get 429")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds a request may take")
    parser.add_argument("--trust", action="store_true", help="let folders say what code makes their models")
    parser.add_argument("--stall-timeout", type=float, help="seconds in one call of a model until it is not ready")
    parser.add_argument("--uds", help="a Unix socket to listen at, instead of an address")
    parser.add_argument("--ssl-keyfile", help="for HTTPS")
    parser.add_argument("--ssl-certfile", help="for HTTPS")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="and above")
    parser.add_argument("--log-format", default="text", choices=["text", "json"], help="one line each, to stderr")
    parser.add_argument("--drain", type=int, default=30, help="seconds that SIGTERM leaves to requests on their way")


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        about = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            about["traceback"] = self.formatException(record.exc_info)
        return json.dumps(about)


_LOOK_S = 0.2  # between two looks whether a server that starts has been told to end
_SOURCE_HELP = (
    "SOURCE: package.module:factory, a .pt2 or .onnx file, or the folder of a trial or a snapshot. Options: weights, "
    "args, input (NAME:DATATYPE:SIZES, repeatable), before, after, device, batch_size, replicas, share, ema"
)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit code."""
    try:
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise SystemExit(_MISSING.format(name=error.name)) from error

    from ai.infer.http.models.model_sources import ModelSource, check_place

    set_up_log(arguments)
    tokens = None
    if arguments.token_file is not None:
        try:
            text = arguments.token_file.read_text()
        except OSError as error:
            raise UsageError(f"--token-file cannot be read: {error}") from error
        tokens = [line.strip() for line in text.splitlines() if line.strip()]
        if not tokens:
            raise UsageError(f"--token-file must hold at least one token, and {arguments.token_file} has none")
    elif arguments.host not in ("127.0.0.1", "localhost", "::1"):
        print("warning: everyone who reaches this address can use the models; see --token-file", file=sys.stderr)
    try:
        if arguments.workers < 1:
            raise ValueError(f"--workers must be 1 or more, not {arguments.workers}")
        if not 0 <= arguments.port < 1 << 16:
            raise ValueError(f"--port must be from 0 to 65535, not {arguments.port}")
        if arguments.drain < 0:
            raise ValueError(f"--drain must be 0 or more, not {arguments.drain}")
        for text in arguments.models:
            check_place(ModelSource.parse(text))
        app = make_app(arguments, arguments.models, tokens)
    except ValueError as error:
        # Options of the application, as they are written here.
        text = re.sub(
            r"^((?:stall_)?timeout|max_\w+?)(?:_s)? must", lambda x: f"--{x[1]} must".replace("_", "-"), f"{error}"
        )
        raise UsageError(f"ai-infer serve: {text}") from error
    if arguments.workers > 1:
        return _run_front_ends(arguments, app.repository, tokens)
    server = make_server(app, arguments, _say_that_it_listens)
    try:
        server.run()
    finally:
        app.close()
    return 0 if server.started else 1


def _say_that_it_listens(address: str) -> None:
    print(f"serving at {address}", flush=True)


def set_up_log(arguments: argparse.Namespace) -> None:
    """Logs to stderr, one line a record."""
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if arguments.log_format == "json":
        logging.getLogger().handlers[0].setFormatter(JsonFormatter())


def make_app(arguments: argparse.Namespace, models: "list[str] | Owner", tokens: list[str] | None) -> "App":
    """Returns the application that the options describe."""
    from ai.infer.http.routes import App

    return App(
        models,
        tokens=tokens,
        max_body_bytes=arguments.max_body_bytes,
        max_json_bytes=arguments.max_json_bytes,
        max_pending=arguments.max_pending,
        timeout_s=arguments.timeout,
        stall_timeout_s=arguments.stall_timeout,
        trust=arguments.trust,
    )


def make_server(app: "App", arguments: argparse.Namespace, listens: Callable[[str], None]) -> "uvicorn.Server":
    """Returns uvicorn's server of an application; `listens` is told the address once it listens."""
    import uvicorn

    from ai.infer.http.http_protocol import HttpProtocol

    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        loop="uvloop" if os.name == "posix" else "asyncio",
        uds=arguments.uds,
        http=HttpProtocol,
        ssl_keyfile=arguments.ssl_keyfile,
        ssl_certfile=arguments.ssl_certfile,
        timeout_keep_alive=75,
        log_config=None,
        access_log=False,
        log_level="warning",
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=arguments.drain,
        proxy_headers=False,  # nothing here looks at who asks
        server_header=False,
        date_header=False,
    )

    class Server(uvicorn.Server):
        """Says where it listens, once it does."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            starting = asyncio.ensure_future(self._started(super().startup(sockets)))
            while not starting.done() and not self.should_exit:  # told to end while a factory still runs
                await asyncio.wait([starting], timeout=_LOOK_S)
            if not starting.done():
                starting.cancel()
                return
            await starting
            if self.started:
                gc.freeze()  # torch alone makes half a million objects; to look at them takes longer than a request may
                listens(_address(self.servers[0].sockets[0], arguments))

        async def _started(self, startup: Awaitable[None]) -> None:
            try:
                await startup
            except SystemExit:  # uvicorn has said why; it would leave the task with a traceback of its own
                self.should_exit = True

    return Server(config)


def _address(listener: socket.socket, arguments: argparse.Namespace) -> str:
    if arguments.uds is not None:
        return f"unix:{arguments.uds}"
    host, port = listener.getsockname()[:2]
    return f"{'https' if arguments.ssl_certfile else 'http'}://{host}:{port}"


def _run_front_ends(arguments: argparse.Namespace, repository: "Repository", tokens: list[str] | None) -> int:
    """Serves by several processes at one socket."""
    from ai.infer.http.front_ends import FrontEnds

    listener = _bind(arguments)
    address = _address(listener, arguments)

    async def serve() -> int:
        front_ends = FrontEnds(arguments.workers, repository, listener, arguments, tokens)
        return await front_ends.serve(lambda: _say_that_it_listens(address))

    return asyncio.run(serve())


def _bind(arguments: argparse.Namespace) -> socket.socket:
    try:
        if arguments.uds is None:
            listener = socket.socket(socket.AF_INET6 if ":" in arguments.host else socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((arguments.host, arguments.port))
            return listener  # at which nobody listens before there is somebody to answer
        path = Path(arguments.uds)
        if path.is_socket():  # of a server that is no more
            path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(arguments.uds)
        path.chmod(0o666)
        return listener
    except OSError as error:
        where = arguments.uds or f"{arguments.host}:{arguments.port}"
        raise SystemExit(f"ai-infer serve: it cannot listen at {where}: {error}") from error
