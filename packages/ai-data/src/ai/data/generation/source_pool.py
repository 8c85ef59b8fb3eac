"""The worker processes of a `Datagen` loader: seeded, paced by credits, given parameters, replaced when they die."""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ai.data.batch.seeds import derive_seed
from ai.data.episodes.packing import Packed
from ai.data.generation.source import Source
from ai.data.generation.source_worker import serve_source
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.worker import Child, WorkerFailedError

_MAX_DEATHS_IN_A_ROW = 3
# One chunk on its way while the next one is made.
_N_CREDITS = 2


class Fleet:
    """Runs a copy of a source in each of `n_workers` processes.

    Args:
        source: pickled by cloudpickle, each copy started with a seed of its own.
        n_workers: at least 1.
        seed: of all workers' seeds.
        generation: counts the earlier fleets of a resumed run, so that no seed comes twice.
        on_episodes: receives episodes, in some thread.
        on_change: called in some thread when a worker ended or failed.
        wants_more: whether the sender of a chunk may go on at once; else it goes on at `pay`.
        params: (version, state_dict) that every source takes before its first episode.
    """

    def __init__(
        self,
        source: Source,
        n_workers: int,
        seed: int,
        generation: int,
        on_episodes: Callable[[Packed], None],
        on_change: Callable[[], None],
        wants_more: Callable[[], bool],
        params: tuple[int, Mapping[str, Any]] | None = None,
    ) -> None:
        self.n_deaths = 0
        self.error: BaseException | None = None
        self._source = source
        self._seed = seed
        self._generation = generation
        self._on_episodes = on_episodes
        self._on_change = on_change
        self._wants_more = wants_more
        self._lock = threading.RLock()
        self._new_params = threading.Condition(self._lock)
        self._params = params
        self._sent_version: dict[Child, int] = {}
        self._on_their_way: set[Child] = set()
        self._owed: list[Child] = []
        self._deaths_in_a_row = 0
        self._n_started = 0
        self._ended: set[int] = set()
        self._closed = False
        self._workers: dict[Child, int] = {}
        self._n_workers = n_workers
        try:
            for worker in range(n_workers):
                self._start(worker)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._push_params, name="ai.data.Fleet", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [child.pid for child in list(self._workers)]

    @property
    def ended(self) -> bool:
        """Whether every source has ended."""
        return self._ended >= set(range(self._n_workers))

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Sends parameters to every worker in the background; newer ones replace those that wait."""
        with self._new_params:
            self._params = version, state_dict
            self._new_params.notify_all()

    def pay(self) -> None:
        """Lets the workers that were held back go on, if more is wanted now."""
        if self._owed and self._wants_more():
            with self._lock:
                owed, self._owed = self._owed, []
            for child in owed:
                child.send(("credit", 1))

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        with self._new_params:
            self._closed = True
            children, self._workers = list(self._workers), {}
            self._new_params.notify_all()
        for child in children:
            child.close()

    def _start(self, worker: int) -> None:
        """Starts a worker; without the lock, since sending the source and parameters may take as long as it likes."""
        with self._lock:
            seed = derive_seed(self._seed, self._generation, self._n_started)
            self._n_started += 1
        known = threading.Event()  # a worker that dies at once is looked for among the workers

        def on_exit(child: Child, how: str) -> None:
            known.wait()
            self._on_exit(child, how)

        child = Child(ship(partial(serve_source, self._source, seed, worker)), self._on_message, on_exit)
        with self._lock:
            closed, params = self._closed, self._params
            if not closed:
                self._workers[child] = worker
                self._sent_version[child] = 0 if params is None else params[0]
                self._on_their_way.add(child)  # newer parameters wait for these
        known.set()
        if closed:
            child.close()
            return
        if params is not None:  # before its first episode
            child.send(("params", *params))
        else:
            with self._new_params:
                self._on_their_way.discard(child)
                self._new_params.notify_all()
        child.send(("credit", _N_CREDITS))

    def _on_message(self, child: Child, message: Any) -> None:
        kind, *content = message
        if self._closed:  # what was on its way must not reach a buffer that has since been restored
            return
        if kind == "episodes":
            self._deaths_in_a_row = 0
            try:
                self._on_episodes(content[0])
            except Exception as error:  # episodes that the buffer refuses
                self._fail(error)
                return
            with self._lock:
                self._owed.append(child)
            self.pay()
        elif kind == "taken":
            with self._new_params:
                self._on_their_way.discard(child)
                self._new_params.notify_all()
        elif kind == "ended":
            self._ended.add(self._workers.get(child, -1))
            self._on_change()
        else:
            self._fail(content[0])

    def _on_exit(self, child: Child, how: str) -> None:
        with self._lock:
            if self._closed or child not in self._workers:
                return
            worker = self._workers.pop(child)
            self._owed = [other for other in self._owed if other is not child]
            self._on_their_way.discard(child)
            self._sent_version.pop(child, None)
            self.n_deaths += 1
            self._deaths_in_a_row += 1
            if self.error is None and self._deaths_in_a_row > _MAX_DEATHS_IN_A_ROW + self._n_workers:
                self.error = WorkerFailedError(
                    f"generating workers died {self._deaths_in_a_row} times in a row, the last {how}"
                )
            goes_on = self.error is None and worker not in self._ended
        if goes_on:
            try:
                self._start(worker)
            except OSError as error:
                failure = WorkerFailedError(f"a generating worker {how}, and no other could be started: {error}")
                self.error = self.error or failure
        self._on_change()

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self._on_change()

    def _push_params(self) -> None:
        while True:
            with self._new_params:
                while not self._closed and not self._behind():
                    self._new_params.wait()
                if self._closed:
                    return
                behind = self._behind()
            for child in behind:
                self._send_params(child)

    def _behind(self) -> list[Child]:
        """Returns the workers to send parameters to; one that has not yet taken its last ones waits."""
        if self._params is None:
            return []
        return [
            child
            for child in self._workers
            if child not in self._on_their_way and self._sent_version[child] < self._params[0]
        ]

    def _send_params(self, child: Child) -> None:
        with self._lock:
            if self._params is None or child not in self._workers:
                return
            version, state_dict = self._params
            self._sent_version[child] = version
            self._on_their_way.add(child)
        child.send(("params", version, state_dict))
