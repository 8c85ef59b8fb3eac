"""Keeps workers alive: one place for starting, replacing, giving up and closing, whatever the workers do."""

import threading
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from ai.data.workers.areas import Parcel
from ai.data.workers.engine import Engine, Processes, Worker
from ai.data.workers.whereabouts import DOING
from ai.data.workers.worker import WorkerFailedError

# Workers that die more often in a row than this beyond their number, without work done in between, are given up, unless
# the engine has a `max_deaths` of its own.
MAX_DEATHS = 3
# So often it is looked whether workers go on, at least and at most.
_LOOK_S, _SHORTEST_LOOK_S = 5.0, 0.05
# So long `close` waits for workers that hung: theirs to end takes 5 s where they are deaf.
_END_S = 10.0
# What a worker imports and compiles before its first sign may take so long.
_START_S = 120.0


class Job(Protocol):
    """What workers are kept alive for. A place is one of the n workers, and whoever replaces it."""

    def send_again(self, place: int) -> Iterable[Any]:
        """Returns what a new worker at `place` is to be told first; called with the supervisor's lock."""

    def on_message(self, place: int, message: Any) -> bool:
        """Takes a message, in some thread and without the lock; returns whether it is work done."""

    def on_death(self, place: int, how: str) -> bool:
        """Hears of a death, with the lock; returns whether the worker is to be replaced."""

    def on_change(self) -> None:
        """Hears that a death or a failure was dealt with; in some thread, without the lock."""


class Post:
    """A worker at its place."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.worker: Worker | None = None
        self._known = threading.Event()  # one that dies at once is looked for among the posts
        self._starting = threading.get_ident()
        self.told = threading.Event()  # what it is told first comes first
        self.silent_s = 0.0  # that it had something to do and said nothing of it
        self.is_heard = False  # just now: it waits for us
        self.doing = ""  # what it said of itself meanwhile
        self.has_begun = False  # something came of it

    def know(self) -> None:
        """Says that it is among the posts, or will never be."""
        self._known.set()

    def wait_known(self) -> None:
        """Waits for `know`.

        Raises:
            RuntimeError: who waits is who would say so.
        """
        if threading.get_ident() == self._starting and not self._known.is_set():
            raise RuntimeError("an engine must call on_message and on_exit in a thread of the worker, not within start")
        self._known.wait()

    def parcel(self) -> Parcel | None:
        """Returns memory for the arrays of one message where its worker shares some."""
        make = getattr(self.worker, "parcel", None)
        return None if make is None else make()

    def send(self, message: Any, parcel: Parcel | None = None) -> None:
        """Sends a message; if the worker is gone, it is lost, and whoever follows is told anew."""
        self.told.wait()
        if self.worker is not None:
            self.worker.send(message, *(() if parcel is None else (parcel,)))


class Supervisor:
    """Keeps `n` workers alive and hands on their messages; gives up after too many deaths in a row.

    Args:
        what: the workers do, for errors: `data`, `reading`, `generating`.
        payload: returns what a new worker at a place runs, as `ship` made it.
        n: how many.
        job: what they do.
        engine: starts them; None means processes of this machine.
        stall_timeout_s: a worker that is `busy` for so long and sends nothing is ended and replaced, as one that died,
            and a warning tells where it was; its first sign may take two minutes in any case. None waits for ever.
        busy: whether the worker at a place has something to do; asked with the lock.

    Attributes:
        changed: the one lock and condition, of this and of the job; notified at every death, failure and end.
        broken: why no more work is done, if so.
        closed: whether somebody ended it.
        n_deaths: how many workers died.
        max_deaths: how many in a row, beyond one each, are no reason to give up.
    """

    def __init__(
        self,
        what: str,
        payload: Callable[[int], bytes],
        n: int,
        job: Job,
        engine: Engine | None = None,
        stall_timeout_s: float | None = None,
        busy: Callable[[int], bool] = lambda place: True,
    ) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.broken: BaseException | None = None
        self.closed = False
        self.n_deaths = 0
        self._what = what
        self._payload = payload
        self._job = job
        self._engine = engine or Processes()
        self.max_deaths: int = getattr(self._engine, "max_deaths", MAX_DEATHS)
        self._posts: list[Post | None] = [None] * n
        self._deaths_in_a_row = 0
        self._stall_timeout_s = stall_timeout_s
        self._busy = busy
        self._over = threading.Event()
        self._ending: list[threading.Thread] = []

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run, on whatever machine."""
        workers = [post.worker for post in list(self._posts) if post is not None]
        return [worker.where[1] for worker in workers if worker is not None and worker.where[1]]

    def start(self) -> None:
        """Starts the workers.

        Raises:
            OSError: one could not be started; then none is left.
        """
        try:
            for place in range(len(self._posts)):
                self._fill(place)
        except BaseException:
            self.close()
            raise
        if self._stall_timeout_s is not None:
            turn_s = max(min(self._stall_timeout_s / 4, _LOOK_S), _SHORTEST_LOOK_S)
            threading.Thread(target=self._watch, args=(turn_s,), name="ai.data.Supervisor", daemon=True).start()

    def post(self, place: int) -> Post | None:
        """Returns the worker at a place, or None between a death and the next one's start.

        Ask with the lock, while noting what `send_again` will say, and send without it: then a message reaches either
        this worker or, by `send_again`, the one that follows.
        """
        return self._posts[place]

    def raise_if_over(self) -> None:
        """Raises where no more work is done."""
        if self.closed:
            raise RuntimeError("this loader is closed: make a new one")
        if self.broken is not None:
            raise self.broken

    def fail(self, error: BaseException) -> None:
        """Gives up for the reason `error`, unless there was one before."""
        with self.changed:
            self.broken = self.broken or error
            self.changed.notify_all()
        self._job.on_change()

    def end(self, place: int) -> None:
        """Ends the worker at a place; it is replaced as after a death."""
        post = self._posts[place]
        if post is not None and post.worker is not None:
            post.worker.close()

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        with self.changed:
            self.closed = True
            self._over.set()
            posts, self._posts = self._posts, [None] * len(self._posts)
            self.changed.notify_all()
            ending = list(self._ending)
        for post in posts:
            if post is not None and post.worker is not None:
                post.worker.close()
        for thread in ending:  # who exits now would leave behind what hangs
            thread.join(_END_S)

    def _fill(self, place: int) -> None:
        """Puts a worker at a place; without the lock, since sending may take as long as it likes."""
        post = Post(place)
        post.worker = self._engine.start(
            self._payload(place), partial(self._on_message, post), partial(self._on_exit, post)
        )
        if post.worker is None:
            post.know()
            raise TypeError(f"the start of an engine must return a worker, and that of {self._engine!r} returned None")
        try:
            with self.changed:
                closed = self.closed
                if not closed:
                    self._posts[place] = post
                messages = [] if closed else list(self._job.send_again(place))
            post.know()
            if closed:
                post.worker.close()
            for message in messages:
                post.worker.send(message)
        except Exception as error:  # a message that cannot be pickled
            self.fail(error)
        finally:
            post.know()
            post.told.set()

    def _on_message(self, post: Post, message: Any) -> None:
        post.wait_known()
        with self.changed:
            # What was on its way must not reach who has since begun anew, nor come after who replaces the sender.
            if self.closed or self._posts[post.place] is not post:
                return
            if message[0] == DOING:
                post.doing = message[1]
                return
            post.is_heard = post.has_begun = True
        try:
            if message[0] == "failed":
                self.fail(message[1])
            elif self._job.on_message(post.place, message):
                self._deaths_in_a_row = 0
        finally:
            post.silent_s, post.doing = 0.0, ""
            post.is_heard = False

    def _on_exit(self, post: Post, how: str) -> None:
        post.wait_known()
        with self.changed:
            if self.closed or self._posts[post.place] is not post:
                return
            goes_on = self._lose(post, how)
        self._replace(post, how, goes_on)

    def _lose(self, post: Post, how: str) -> bool:
        """Notes a death, with the lock; returns whether the worker is to be replaced."""
        self._posts[post.place] = None
        self.n_deaths += 1
        self._deaths_in_a_row += 1
        goes_on = self._job.on_death(post.place, how)
        if self._deaths_in_a_row > self.max_deaths + len(self._posts) and self.broken is None:
            self.broken = WorkerFailedError(
                f"{self._what} workers died {self._deaths_in_a_row} times in a row, the last {how}"
            )
        self.changed.notify_all()
        return goes_on and self.broken is None

    def _replace(self, post: Post, how: str, goes_on: bool) -> None:
        if goes_on:
            try:
                self._fill(post.place)
            except Exception as error:
                self.fail(WorkerFailedError(f"a {self._what} worker {how}, and no other could be started: {error}"))
        self._job.on_change()

    def _watch(self, turn_s: float) -> None:
        while True:
            begun = time.monotonic()
            if self._over.wait(turn_s):
                return
            # A process that was stopped itself has not waited all that time.
            self._look(min(time.monotonic() - begun, 2 * turn_s))

    def _look(self, waited_s: float) -> None:
        """Replaces the workers that have been silent for too long, `waited_s` after the look before."""
        for place in range(len(self._posts)):
            with self.changed:
                post = self._posts[place]
                if post is None or post.worker is None or self.broken is not None:
                    continue
                host, pid = post.worker.where
                if post.is_heard or not pid or not self._busy(place):
                    post.silent_s = 0.0
                    continue
                post.silent_s += waited_s
                limit_s = self._stall_timeout_s or 0.0
                if not post.has_begun:
                    limit_s = max(limit_s, _START_S)
                if post.silent_s <= limit_s:
                    continue
                how = f"on {host} (process {pid}) gave nothing for {limit_s:g} s"
                how += " (stall_timeout_s: raise it if one piece of work may take longer)"
                how += f" and was in {post.doing}" if post.doing else ""
                goes_on = self._lose(post, how)
                # One that hangs in the kernel ends when it likes.
                ending = threading.Thread(target=post.worker.close, name="ai.data.Supervisor", daemon=True)
                ending.start()
                self._ending = [*(thread for thread in self._ending if thread.is_alive()), ending]
            self._replace(post, how, goes_on)
            if self.broken is None:  # which would say it itself
                try:
                    warnings.warn(f"a {self._what} worker {how}: another takes its place", stacklevel=1)
                except Warning as error:  # where warnings are errors
                    self.fail(error)
