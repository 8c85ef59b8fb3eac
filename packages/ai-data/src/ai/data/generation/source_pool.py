"""The worker processes of a `Datagen` loader: seeded, paced by credits, given parameters, replaced when they die."""

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ai.data.batch.seeds import derive_seed
from ai.data.episodes.packing import Packed
from ai.data.generation.source import Source
from ai.data.generation.source_worker import serve_source
from ai.data.workers.engine import Engine, Processes
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.supervisor import Supervisor

# One chunk on its way while the next one is made.
_N_CREDITS = 2


class Fleet:
    """Runs a copy of a source in each of `n_workers` workers.

    Args:
        source: pickled by cloudpickle, each copy started with a seed of its own.
        n_workers: at least 1.
        seed: of all workers' seeds.
        generation: counts the earlier fleets of a resumed run, so that no seed comes twice.
        on_episodes: receives episodes, in some thread.
        on_change: called in some thread when a worker ended or failed.
        wants_more: whether the sender of a chunk may go on at once; else it goes on at `pay`.
        params: (version, state_dict) that every source takes before its first episode.
        engine: starts the workers; None means processes of this machine.
        n_steps: tells how many steps all sources have made so far.
        stall_timeout_s: a worker that was asked for episodes and gives none for so long counts as dead; None: never.
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
        engine: Engine | None = None,
        n_steps: Callable[[], int] = int,
        stall_timeout_s: float | None = None,
    ) -> None:
        self._source = source
        self._n_steps = n_steps
        self._stall_timeout_s = stall_timeout_s
        self._seed = seed
        self._training = secrets.token_hex(8)
        self._generation = generation
        self._on_episodes = on_episodes
        self._on_change = on_change
        self._wants_more = wants_more
        self._engine = engine or Processes()
        self._params = params
        self._shared = params and (params[0], self._engine.share(params[1]))  # what workers are sent of it
        self._sent_version = [0] * n_workers
        self._on_their_way: set[int] = set()  # places whose worker has not yet taken its last parameters
        self._owed: list[int] = []
        self._under_way = [0] * n_workers  # chunks that were asked for and have not come
        self._n_lost = 0
        self._n_started = 0
        self._ended: set[int] = set()
        self._n_workers = n_workers
        self._workers = Supervisor(
            "generating", self._payload, n_workers, self, self._engine, stall_timeout_s, self._is_busy
        )
        self._changed = self._workers.changed
        self._workers.start()
        threading.Thread(target=self._push_params, name="ai.data.Fleet", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._workers.pids

    @property
    def n_deaths(self) -> int:
        """How many workers died."""
        return self._workers.n_deaths

    @property
    def n_dropped(self) -> int:
        """How many chunks of episodes were asked for and never came: their worker died, or all were closed."""
        with self._changed:
            return self._n_lost + (sum(self._under_way) if self._workers.closed else 0)

    @property
    def error(self) -> BaseException | None:
        """Why no more episodes come, if a source or worker failed."""
        return self._workers.broken

    @property
    def ended(self) -> bool:
        """Whether every source has ended."""
        return self._ended >= set(range(self._n_workers))

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Sends parameters to every worker in the background; newer ones replace those that wait."""
        with self._changed:
            self._params = version, state_dict
            self._changed.notify_all()

    def pay(self) -> None:
        """Lets the workers that were held back go on, if more is wanted now."""
        if self._owed and self._wants_more():
            with self._changed:
                owed, self._owed = self._owed, []
                posts = [self._workers.post(place) for place in owed]
                for place, post in zip(owed, posts, strict=True):
                    self._under_way[place] += post is not None
            for post in posts:
                if post is not None:
                    post.send(("credit", 1))

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        self._workers.close()

    def send_again(self, place: int) -> Iterable[Any]:
        """Returns the parameters and the first credits of a new worker."""
        self._sent_version[place] = 0 if self._shared is None else self._shared[0]
        self._under_way[place] = _N_CREDITS
        if self._shared is None:
            return [("credit", _N_CREDITS)]
        self._on_their_way.add(place)  # newer parameters wait for these
        return [("params", *self._shared), ("credit", _N_CREDITS)]

    def on_message(self, place: int, message: Any) -> bool:
        """Hands on episodes, and notes parameters that were taken and sources that ended."""
        kind, *content = message
        if kind == "episodes":
            with self._changed:
                if self._workers.closed:  # then it counts as dropped
                    return False
                self._under_way[place] -= 1
            try:
                self._on_episodes(content[0])
            except Exception as error:  # episodes that the buffer refuses
                self._workers.fail(error)
                return True
            with self._changed:
                self._owed.append(place)
            self.pay()
            return True
        with self._changed:
            if kind == "taken":
                self._on_their_way.discard(place)
                self._changed.notify_all()
            else:
                self._ended.add(place)
                self._under_way[place] = 0
        if kind == "ended":
            self._on_change()
        return False

    def on_death(self, place: int, how: str) -> bool:
        """Forgets what the worker was owed and on its way to; one whose source has ended is not replaced."""
        self._owed = [other for other in self._owed if other != place]
        self._n_lost, self._under_way[place] = self._n_lost + self._under_way[place], 0
        self._on_their_way.discard(place)
        return place not in self._ended

    def on_change(self) -> None:
        """Tells the loader."""
        self._on_change()

    def _is_busy(self, place: int) -> bool:
        return place not in self._ended and (self._under_way[place] > 0 or place in self._on_their_way)

    def _payload(self, place: int) -> bytes:
        with self._changed:
            seed = derive_seed(self._seed, self._generation, self._n_started)
            self._n_started += 1
        share = self._n_steps() // self._n_workers
        bounds = self._stall_timeout_s, getattr(self._engine, "message_bytes", None)
        return ship(partial(serve_source, self._source, seed, place, share, self._training, *bounds))

    def _push_params(self) -> None:
        while True:
            with self._changed:
                while not self._workers.closed and not self._unshared() and not self._behind():
                    self._changed.wait()
                if self._workers.closed:
                    return
                params = self._params if self._unshared() else None
            if params is not None:
                self._share(*params)
            with self._changed:
                behind = self._behind()
            for place in behind:
                self._send_params(place)

    def _unshared(self) -> bool:
        return self._params is not None and (self._shared is None or self._shared[0] < self._params[0])

    def _share(self, version: int, state_dict: Mapping[str, Any]) -> None:
        """Brings parameters to where workers receive them from; without the lock, since that may take a while."""
        try:
            shared = self._engine.share(state_dict)
        except Exception as error:  # parameters that cannot be pickled, or that there is no room for
            self._workers.fail(error)
            shared = None
        with self._changed:
            self._shared = version, shared

    def _behind(self) -> list[int]:
        """Returns the places to send parameters to; a worker that has not yet taken its last ones waits."""
        if self._shared is None or self._workers.broken is not None:
            return []
        return [
            place
            for place in range(self._n_workers)
            if self._workers.post(place) is not None
            and place not in self._on_their_way
            and self._sent_version[place] < self._shared[0]
        ]

    def _send_params(self, place: int) -> None:
        with self._changed:
            post = self._workers.post(place)
            if self._shared is None or post is None:
                return
            version, shared = self._shared
            self._sent_version[place] = version
            self._on_their_way.add(place)
        try:
            post.send(("params", version, shared))
        except Exception as error:  # parameters that cannot be pickled
            self._workers.fail(error)
