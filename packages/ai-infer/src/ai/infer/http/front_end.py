"""One front end of several: `python -m ai.infer.http.front_end CONTROL LISTENER`, started by `http/front_ends.py`.

It answers HTTP as a lone server does, and asks workers that belong to the process that started it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from argparse import Namespace
from typing import Any

from ai.infer.client import InferencerClient
from ai.infer.http.formats.messages import RefusedError
from ai.infer.http.line import Line
from ai.infer.http.metrics import Metrics
from ai.infer.http.models.repository import Repository
from ai.infer.http.owner import Action
from ai.infer.http.serve import make_app, make_server, set_up_log

_LOOK_INTERVAL_S = 0.02
_CHANGE_TIMEOUT_S = 3600.0  # that loading a model may take
_METRICS_TIMEOUT_S = 5.0


class DistantOwner:
    """The process that started this one, which loads the models; see `Owner`.

    Args:
        control: the line to it, connected.
    """

    repository: Repository

    def __init__(self, control: socket.socket) -> None:
        self._line = Line(control, self._answer)
        self._options: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.metrics: Metrics | None = None
        self._timeout_s = 0.0
        self._leaving: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Serves until the owner is gone or says so by SIGTERM; returns the exit code."""
        listening = asyncio.create_task(self._line.serve())
        listening.add_done_callback(lambda _: os.kill(os.getpid(), signal.SIGTERM))  # without its owner it is no use
        options = await self._options
        sys.path[:0] = options["path"]
        arguments = Namespace(**{**options["arguments"], "token_file": None})
        set_up_log(arguments)
        self._timeout_s = arguments.timeout
        states = options["models"]
        self.repository = Repository(arguments.models, arguments.timeout, arguments.timeout)
        self.repository.adopt(states)
        app = make_app(arguments, self, options["tokens"])
        self.metrics = app.metrics
        listener = socket.socket(fileno=int(sys.argv[2]))
        server = make_server(app, arguments, self._say_that_it_listens)
        await server.serve(sockets=[listener])
        return 0 if server.started else 1

    def _say_that_it_listens(self, _: str) -> None:
        self._ready = asyncio.ensure_future(self._line.ask("ready", _METRICS_TIMEOUT_S))
        self._ready.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _answer(self, what: str, about: dict[str, Any]) -> Any:
        if what == "serve":
            self._options.set_result(about)
        elif what == "models":
            for client in self.repository.adopt(about["models"]):
                task = asyncio.create_task(self._let_go(client))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
            # Whoever tells us so waits for all that we let go, though another message may have told us first.
            await asyncio.gather(*self._leaving)
        elif what == "counts":
            return None if self.metrics is None else self.metrics.counts()
        else:
            raise RefusedError(400, f"a front end is not asked for {what!r}")
        return None

    async def _let_go(self, client: InferencerClient) -> None:
        """Hangs up on workers that get no more requests, once they have answered those that they have."""
        deadline = time.monotonic() + self._timeout_s
        await asyncio.sleep(_LOOK_INTERVAL_S)  # a request that has found its model asks it at once
        while client.n_pending and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_INTERVAL_S)
        client.close()

    # As an owner ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See `Owner`; the models are there before a front end begins."""

    async def change(self, action: Action, name: str) -> None:
        """See `Owner`."""
        await self._line.ask("change", _CHANGE_TIMEOUT_S, action=action, name=name)

    async def write_metrics(self, own: Metrics) -> bytes:
        """See `Owner`."""
        text: str = await self._line.ask("metrics", _METRICS_TIMEOUT_S)
        return text.encode()

    def close(self) -> None:
        """See `Owner`; the workers go on."""


async def _main() -> int:
    owner = DistantOwner(socket.socket(fileno=int(sys.argv[1])))
    return await owner.serve()


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):  # the group hears Ctrl-C, and the owner ends us
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(_main()))
