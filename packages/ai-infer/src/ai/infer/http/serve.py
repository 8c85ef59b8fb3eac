"""`ai-infer serve`: the application under uvicorn with uvloop, on connections of its own that httptools parses."""

import argparse
import gc
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ai.infer.http.models import ModelSource

if TYPE_CHECKING:
    import uvicorn

_MISSING = (
    "ai-infer serve needs {name}, which is not installed; install the extra from a checkout "
    "(pip install 'packages/ai-infer[http]' beside its siblings) or from your folder of wheels"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `serve`."""
    parser.add_argument("models", nargs="+", metavar="NAME[@VERSION]=SOURCE[?OPTION=VALUE&…]", help=_SOURCE_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one, which is printed")
    parser.add_argument("--token-file", type=Path, help="a file with one valid token a line")
    parser.add_argument("--max-body-bytes", type=int, default=1 << 26)
    parser.add_argument("--max-json-bytes", type=int, default=1 << 23, help="others wait while it is parsed")
    parser.add_argument("--max-pending", type=int, default=1024, help="requests on their way at once; more get 429")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds a request may take before it gets 503")
    parser.add_argument("--drain", type=int, default=30, help="seconds that SIGTERM leaves to requests on their way")


_SOURCE_HELP = (
    "SOURCE: package.module:factory, a .pt2 file, or the folder of a trial or a snapshot. Options: weights, args, "
    "input (NAME:DATATYPE:SIZES, repeatable), device, batch_size, replicas, ema"
)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit code."""
    try:
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise SystemExit(_MISSING.format(name=error.name)) from error
    from ai.infer.http.app import App
    from ai.infer.http.connection import HttpConnection

    tokens = None
    if arguments.token_file is not None:
        tokens = [line.strip() for line in arguments.token_file.read_text().splitlines() if line.strip()]
        if not tokens:
            raise SystemExit(f"--token-file must hold at least one token, and {arguments.token_file} has none")
    elif arguments.host not in ("127.0.0.1", "localhost", "::1"):
        print("warning: everyone who reaches this address can use the models; see --token-file", file=sys.stderr)
    try:
        app = App(
            [ModelSource.parse(text) for text in arguments.models],
            tokens=tokens,
            max_body_bytes=arguments.max_body_bytes,
            max_json_bytes=arguments.max_json_bytes,
            max_pending=arguments.max_pending,
            timeout_s=arguments.timeout,
        )
    except ValueError as error:
        raise SystemExit(f"ai-infer serve: {error}") from error

    def connect(server_state: object, **_: object) -> HttpConnection:
        return HttpConnection(app, server_state)

    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        loop="uvloop" if os.name == "posix" else "asyncio",
        http=connect,  # type: ignore[arg-type]  # a class or, as here, whatever makes a protocol
        access_log=False,
        log_level="warning",
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=arguments.drain,
        proxy_headers=False,  # nothing here looks at who asks
        server_header=False,
        date_header=False,
    )
    server = _make_server(config)
    try:
        server.run()
    finally:
        app.close()
    return 0 if server.started else 1


def _make_server(config: "uvicorn.Config") -> "uvicorn.Server":
    import uvicorn

    class Server(uvicorn.Server):
        """Says where it listens, once it does."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                gc.freeze()  # torch alone makes half a million objects; to look at them takes longer than a request may
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                print(f"serving at http://{host}:{port}", flush=True)

    return Server(config)
