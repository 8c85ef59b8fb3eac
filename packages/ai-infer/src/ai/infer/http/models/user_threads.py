"""Threads for functions of the user's: one that never returns holds up neither the server's own work nor its end."""

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

_IDLE_S = 10.0  # after which a thread ends


class UserThreads:
    """Runs functions in a few threads that end with the process, whatever they are in.

    Args:
        most: how many run at once.
    """

    def __init__(self, most: int = min(32, (os.cpu_count() or 1) + 4)) -> None:
        self._most = most
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._n_threads = self._n_idle = 0

    async def run(self, function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """Returns what a function returns, and what it raised: some errors cannot be raised in a coroutine.

        One that has not begun when its caller gives up never does.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

        def settle(outcome: tuple[Any, BaseException | None]) -> None:
            if not done.done():
                done.set_result(outcome)

        def job() -> None:
            if done.cancelled():
                return
            try:
                outcome: tuple[Any, BaseException | None] = function(), None
            except BaseException as error:
                outcome = None, error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, outcome)

        with self._changed:
            self._jobs.append(job)
            if len(self._jobs) > self._n_idle and self._n_threads < self._most:
                threading.Thread(target=self._serve, daemon=True).start()
                self._n_threads += 1
            self._changed.notify()
        return await done

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._n_idle += 1
                there = self._changed.wait_for(lambda: self._jobs, _IDLE_S)
                self._n_idle -= 1
                if not there:
                    self._n_threads -= 1
                    return
                job = self._jobs.popleft()
            job()
            del job
