"""What a worker on another machine does with trials: runs them in a folder of its own, and asks by messages.

Messages out: `("free",)`, `("got",)` for each `given`, `("call", number, name, arguments, options)`, also for what is
new in its folder, `("ended", Outcome)`, `("failed", error)`. In: `("given", name, at, bytes)` of a folder to go on
from (see `write_given`), `("begin", Given)`, `("answer", number, value, error)`. Each side waits for the other before
it sends more.
"""

import dataclasses
import itertools
import os
import queue
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ai.data.workers.worker import portable_error
from ai.lab.files.ownership import Owner, holder, last_holder
from ai.lab.provenance import description
from ai.lab.search.elsewhere.file_parts import write_part
from ai.lab.search.elsewhere.meeting import meet
from ai.lab.search.elsewhere.mirror import Mirror
from ai.lab.search.evaluation import Outcome, evaluate, record
from ai.lab.search.experiment_trial import ExperimentTrial

if TYPE_CHECKING:
    from ai.data.workers.worker import Link
    from ai.lab.search.loop import Run, Search

_SUGGEST = {"suggest_float", "suggest_int", "suggest_categorical"}
CALLS = _SUGGEST | {"report", "should_prune", "set_user_attr", "set_constraint"}
FACTS = {"params", "distributions", "user_attrs", "system_attrs", "datetime_start"}
"""What an objective may ask of `trial.optuna` where the search is on another machine."""
FILE = "file"
"""What is called with a kind, a name and content of what is new in the trial's folder."""
MEET = "meet"
"""What is called with what was left in `Given.meeting`."""
_LITTER = "ai-lab-work-"


@dataclasses.dataclass(frozen=True)
class Given:
    """A trial to run.

    Attributes:
        number: Its number.
        seed: Which of its runs.
        goes_on: Whether its folder is to be gone on from.
        reported: The steps of which the search knows a score already.
        fields: Of `meta.json`.
        started_by: What describes who runs the search.
        meeting: By which the worker finds out whether it sees the search's folder.
    """

    number: int
    seed: int
    goes_on: bool
    reported: list[int]
    fields: dict[str, Any]
    started_by: dict[str, Any]
    meeting: Path


class Asked:
    """Optuna's trial, which is with the search: what is asked of it is a message.

    Args:
        number: The trial's.
        calls: Carries it.
    """

    def __init__(self, number: int, calls: "Calls") -> None:
        self.number = number
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        if name in CALLS:
            return lambda *arguments, **options: self._calls(name, *arguments, **options)
        if name in FACTS:
            return self._calls(name)
        raise AttributeError(
            f"trial.optuna has no {name!r} on another machine than its search; there are: "
            f"{', '.join(sorted(CALLS | FACTS))}"
        )


class Calls:
    """Calls to the search over a link, from any thread; what is no answer waits to be asked for by `order`.

    Args:
        link: The worker's.
    """

    def __init__(self, link: "Link") -> None:
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._link, self._numbers = link, itertools.count()
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        self._over: BaseException | None = None
        self._listener = threading.Thread(target=self._listen, name="ai-lab calls", daemon=True)
        self._listener.start()

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Returns the answer; who asks ends with the worker if the search does."""
        number = next(self._numbers)
        answer = self._answers[number] = queue.SimpleQueue()
        if self._over is not None:  # nobody listens for an answer any more
            raise self._over
        self._link.send(("call", number, name, arguments, options))
        value, error = answer.get()
        if error is not None:
            raise error
        return value

    def order(self) -> Any:
        """Waits for what is no answer, and returns it; raises what the link ended by."""
        order = self._orders.get()
        if order[0] == "over":
            raise order[1]
        return order

    def wait_for_end(self) -> None:
        """Does nothing until the worker is ended, which is told to the one who listens, and to no second one."""
        self._listener.join()
        assert self._over is not None
        if isinstance(self._over, Exception):  # what was heard could not be read: nobody has listened since
            self._link.wait_for_end()
        raise self._over

    def _listen(self) -> None:
        try:
            while True:
                kind, *content = self._link.inbox.get()
                if kind == "answer":
                    number, value, error = content
                    self._answers.pop(number).put((value, error))
                else:
                    self._orders.put((kind, *content))
        except BaseException as error:  # a worker that is a thread was ended; a process is gone by then
            self._over = error
            self._orders.put(("over", error))
            for answer in list(self._answers.values()):
                answer.put((None, error))


def serve_trials(search: "Search", run: "Run", link: "Link") -> None:
    """Runs trials one after the other, as they are given, for as long as the worker lives."""
    os.environ["AI_TRAINING"] = secrets.token_hex(8)  # as of `ai.data`'s workers
    calls = Calls(link)
    try:
        _remove_litter()
        while True:
            link.send(("free",))
            order = calls.order()  # who is ended while it waits leaves no folder
            with tempfile.TemporaryDirectory(prefix=_LITTER) as scratch, Owner(Path(scratch)):
                outcome = _serve_one(search, run, link, calls, order, Path(scratch, search.path.name))
            error = None if outcome.error is None else portable_error(outcome.error)
            link.send(("ended", dataclasses.replace(outcome, error=error)))
    except Exception as error:
        link.send(("failed", portable_error(error)))
        calls.wait_for_end()


def _serve_one(search: "Search", run: "Run", link: "Link", calls: Calls, order: Any, experiment: Path) -> Outcome:
    folder = experiment / "trial"
    while order[0] == "given":
        write_given(folder, *order[1:])
        link.send(("got",))
        order = calls.order()
    given: Given = order[1]
    description.started_by = given.started_by
    mirror = Mirror(folder, partial(calls, FILE), meet(given.meeting, partial(calls, MEET)))
    try:
        asked: Any = Asked(given.number, calls)
        how: Mapping[str, Any] = {"seed": given.seed, "goes_on": given.goes_on, "reported": given.reported}
        trial = ExperimentTrial(folder, asked, search.prune, search.trial_options, **how)
        trial.begin(**given.fields)
        objectives = list(search.directions)
        outcome = evaluate(trial, run.fn, objectives, run.catch)
        owner = record(trial, outcome, objectives)
        if owner is not None:
            owner.release()
        return outcome
    finally:
        mirror.close()


def write_given(folder: Path, name: str, at: int, data: bytes | None) -> None:
    """Writes a part of a file that the search has given; None takes back one that could not be read to its end."""
    path = folder / name
    if data is None:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_part(path, at, data)


def _remove_litter() -> None:
    """Deletes what killed workers left on this machine: folders whose lock nobody holds any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{_LITTER}*"):
        if last_holder(path) is not None and holder(path) is None:
            shutil.rmtree(path, ignore_errors=True)
