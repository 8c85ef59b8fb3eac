"""A search whose trials run on other machines: study, journal and folders are written here, and here alone.

Each of `n_jobs` threads is a process of a search as ever, whose objectives are evaluated by a worker of an engine. A
trial is given to a worker that is there and free, never to one that may wait for room. If that is lost, the trial goes
to another, with the copy of its folder.
"""

import dataclasses
import pickle
import queue
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import optuna

from ai.data.workers.engine import Engine
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.supervisor import Post, Supervisor
from ai.data.workers.worker import portable_error
from ai.lab.files.folder import mark, read_marker
from ai.lab.files.ownership import Owner
from ai.lab.files.removal import remove_unowned
from ai.lab.provenance.description import describe_origin
from ai.lab.record import Record
from ai.lab.search.elsewhere.meeting import invite, met
from ai.lab.search.elsewhere.trial_copy import Copy, NotSeenError
from ai.lab.search.elsewhere.trials import CALLS, FACTS, FILE, MEET, Given, serve_trials
from ai.lab.search.evaluation import Outcome
from ai.lab.search.loop import Left, Report, Run, Search
from ai.lab.search.losses import ELSEWHERE
from ai.lab.search.optuna_storage import quiet

_LOOK_S = 0.2


def run_elsewhere(search: Search, run: Run, n_jobs: int, engine: Engine, report: Report) -> None:
    """Runs trials on `n_jobs` workers of an engine until the experiment has enough; see `Experiment.run`."""
    workers = Workers(search, run, min(n_jobs, run.n), engine)
    stopping = threading.Event()
    errors: list[BaseException] = []

    def drive(mine: SearchElsewhere) -> None:
        try:
            if not mine.work(run, report, stopping.is_set):
                stopping.set()
        except BaseException as error:
            errors.append(error)
            workers.close()

    searches = [_copied(search, workers) for _ in range(workers.n)]
    threads = [threading.Thread(target=drive, args=(one,), name="ai-lab search", daemon=True) for one in searches]
    with quiet():
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(_LOOK_S)
        finally:
            workers.close()
            for thread in threads:
                thread.join()
    if errors:
        raise errors[0]


def _copied(search: Search, workers: "Workers") -> "SearchElsewhere":
    """Returns a search with a study and a sampler of its own, as a process would have."""
    copied = pickle.loads(cloudpickle.dumps(search))
    mine = SearchElsewhere(**{one.name: getattr(copied, one.name) for one in dataclasses.fields(Search)})
    mine.workers = workers
    mine._is_copy = workers.n > 1
    mine.study  # noqa: B018  (opened now)
    return mine


class SearchElsewhere(Search):
    """A search that gives its trials to workers.

    Attributes:
        workers: Who runs them.
    """

    workers: "Workers"

    def note(self, asked: optuna.Trial) -> None:
        """Notes also that a death of this process is none that the trial brought about."""
        super().note(asked)
        asked.set_user_attr(ELSEWHERE, True)

    def run_one(self, asked: optuna.Trial, seed: int, run: Run, begun: Callable[[], None]) -> list[float]:
        """Has a trial, or one of its runs, evaluated elsewhere; its folder here is taken before `begun` is called."""
        path = self.run_path(asked.number, seed)
        if not self.goes_on(asked, path) and read_marker(path) is not None:
            remove_unowned(path)
        mark(path, "trial")
        self._held.append(Owner(path))
        begun()
        copy, losses, newest = Copy(path), 0, -1
        fields = {"experiment": self.identity, **({"seed": seed} if self.seeds > 1 else {})}
        while True:
            copy.forget_unfinished()
            reached = max(Record(path).snapshots(), default=-1)
            if reached < 0:
                copy.clear()
            losses, newest = (losses if reached <= newest else 0), reached
            told = self.reported(asked), fields, self.workers.started_by, invite(path)
            given = Given(asked.number, seed, reached >= 0, *told)
            ended = self.workers.evaluate(given, copy, asked)
            if isinstance(ended, Outcome):
                return self.tell(asked, ended)
            losses += 1
            if losses > self.workers.max_losses:
                raise Left(
                    RuntimeError(
                        f"trial {asked.number} of {self.path} was lost {losses} times in a row, the last time with a "
                        f"worker that {ended}"
                    )
                )
            asked.set_user_attr("taken_up", True)


class Workers:
    """The workers of a search, and which of them are free.

    Args:
        search: What they are told of it.
        run: The objective, and which of its errors count.
        n: How many.
        engine: Starts them.
    """

    def __init__(self, search: Search, run: Run, n: int, engine: Engine) -> None:
        self.n = n
        self.started_by = describe_origin()
        told = dataclasses.replace(search, storage=None, search="random", pruner=None)
        self._payload = ship(partial(serve_trials, told, dataclasses.replace(run, callbacks=())))
        self._supervisor = Supervisor("searching", lambda place: self._payload, n, self, engine)
        self.max_losses = self._supervisor.max_deaths
        self._changed = self._supervisor.changed
        self._free: list[int] = []
        self._heard: dict[int, queue.SimpleQueue[Any]] = {}
        self._started = False

    def evaluate(self, given: Given, copy: Copy, asked: optuna.Trial) -> Outcome | str:
        """Has a free worker run a trial, answers what it asks and keeps what it writes.

        Returns how it ended, or what became of the worker if that is lost.
        """
        post, heard = self._take_free()
        for part in copy.parts():
            post.send(("given", *part))
            if (message := heard.get())[0] != "got":
                self._raise_if_over()
                return str(message[1])
        post.send(("begin", given))
        while True:
            kind, *content = heard.get()
            if kind == "call":
                number, name, arguments, options = content
                answer: Any = None
                problem: BaseException | None = None
                if name == FILE:
                    try:
                        copy.take(*arguments)
                    except NotSeenError as error:  # then it is sent
                        problem = error
                    except OSError as error:  # this disk's: what is computed from here on would be lost
                        raise Left(error) from error
                elif name == MEET:
                    answer = met(given.meeting, *arguments)
                else:
                    try:
                        answer = _answer(asked, name, arguments, options)
                    except Exception as error:
                        problem = portable_error(error)
                post.send(("answer", number, answer, problem))
            elif kind == "ended":
                return content[0]  # type: ignore[no-any-return]
            elif kind == "lost":
                return str(content[0])
            else:
                self._raise_if_over()

    def _raise_if_over(self) -> None:
        if self._supervisor.broken is not None or self._supervisor.closed:
            raise Left(self._supervisor.broken)  # the trial is taken up again, here or by the next run

    def close(self) -> None:
        """Ends the workers, and whoever waits for one."""
        self._supervisor.close()
        self.on_change()

    def _take_free(self) -> tuple[Post, queue.SimpleQueue[Any]]:
        with self._changed:
            if not self._started:
                self._started = True
                starter = threading.Thread(target=self._start, name="ai-lab start", daemon=True)
                starter.start()
            while not self._free:
                self._raise_if_over()
                self._changed.wait()
            self._raise_if_over()
            place = self._free.pop(0)
            heard = self._heard[place] = queue.SimpleQueue()
            post = self._supervisor.post(place)
            assert post is not None  # it would not be free
            return post, heard

    def _start(self) -> None:
        try:
            self._supervisor.start()
        except BaseException as error:
            self._supervisor.fail(error)

    # -- as `Job` of ai-data's supervisor

    def send_again(self, place: int) -> Iterable[Any]:
        """Returns nothing: a new worker says that it is free."""
        return []

    def on_message(self, place: int, message: Any) -> bool:
        """Hands on what a worker says; a trial that ended, and a snapshot that came, is work done."""
        with self._changed:
            if message[0] == "free":
                self._heard.pop(place, None)
                self._free.append(place)
                self._changed.notify_all()
                return False
            heard = self._heard.get(place)
        if heard is not None:
            heard.put(message)
        return bool(
            message[0] == "ended" or (message[0] == "call" and message[2] == FILE and message[3][0] == "commit")
        )

    def on_death(self, place: int, how: str) -> bool:
        """Tells whoever has given the worker a trial."""
        self._free = [other for other in self._free if other != place]
        heard = self._heard.pop(place, None)
        if heard is not None:
            heard.put(("lost", how))
        return True

    def on_change(self) -> None:
        """Wakes all who wait if no more work is done."""
        with self._changed:
            if self._supervisor.closed or self._supervisor.broken is not None:
                for heard in self._heard.values():
                    heard.put(("over", ""))
            self._changed.notify_all()


def _answer(asked: optuna.Trial, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if name in FACTS:
        return getattr(asked, name)
    if name not in CALLS:
        raise AttributeError(f"a trial elsewhere asked for {name!r}")
    return getattr(asked, name)(*arguments, **options)
