"""Who loads an application's models: its own process, or the one that started it as one front end of several."""

import asyncio
import logging
from collections.abc import Callable
from typing import Literal, Protocol

from ai.infer.errors import InferError
from ai.infer.http.formats.messages import RefusedError, first_line
from ai.infer.http.metrics import Metrics
from ai.infer.http.models.repository import Repository, UnknownModelError
from ai.infer.http.models.user_threads import UserThreads

Action = Literal["load", "unload"]
_log = logging.getLogger("ai.infer")


class Owner(Protocol):
    """Whoever loads an application's models."""

    repository: Repository

    async def start(self) -> None:
        """Loads the models, once; raises what the first failure was when the others are loaded."""

    async def change(self, action: Action, name: str) -> None:
        """Loads a model anew, or unloads it.

        Raises:
            UnknownModelError: there is none such.
            RefusedError: it could not be done.
        """

    async def write_metrics(self, own: Metrics) -> bytes:
        """Returns the text that Prometheus reads, of all processes that answer at the address; `own` is of this one."""

    def close(self) -> None:
        """Stops the models' workers at once, if they are this process's."""


class LocalOwner:
    """Loads the models in this process.

    Args:
        repository: the models.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._changing = asyncio.Lock()  # one load or unload at a time
        self._threads = UserThreads()  # a factory that takes long does not hold up the server's end
        self._started = False

    async def start(self) -> None:
        """Loads the models; what fails is not tried again, but by a load that somebody asks for."""
        if self._started:
            return
        async with self._changing:
            if not self._started:
                loads = [self._run(self.repository.start, name) for name in self.repository.models]
                ends = await asyncio.gather(*loads, return_exceptions=True)
                self._started = True
                for end in ends:
                    if end is not None:
                        raise end

    async def change(self, action: Action, name: str) -> None:
        """See `Owner`."""
        do: Callable[[str], None] = self.repository.load if action == "load" else self.repository.unload
        async with self._changing:
            try:
                await self._run(do, name)
            except UnknownModelError:
                raise
            except Exception as error:  # a factory, or torch that finds the weights unfit, raises whatever it likes
                _log.warning("model %r could not be %sed", name, action, exc_info=error)
                raise RefusedError(500, f"model {name!r} could not be {action}ed: {_why(error)}") from error

    async def _run(self, do: Callable[[str], None], name: str) -> None:
        _, error = await self._threads.run(lambda: do(name))
        if error is not None:
            raise error

    async def write_metrics(self, own: Metrics) -> bytes:
        """See `Owner`."""
        return own.write()

    def close(self) -> None:
        """See `Owner`."""
        for name in self.repository.models:
            self.repository.unload(name, drain=False)


def _why(error: Exception) -> str:
    """Returns an error's first line, and the next one as well if that is what the first announces."""
    if isinstance(error, InferError):
        return first_line(error)  # a worker's traceback follows
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2] if len(lines) > 1 and lines[0].endswith(":") else lines[:1])
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
