"""What a trial may be told besides its path: the one place with names, types and defaults."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from ai.train import Interval, Snapshots
    from ai.train.engine.run import Stateful

    Every = Interval | int | str | None

Stopper = Callable[[int, dict[str, float]], bool]


class HookOptions(TypedDict, total=False):
    """What `Trial`, `Trial.hook` and `Experiment` take of what happens beside training.

    An interval is an int (every n steps), text (`'30s'`, `'5m'`), an `ai.train.Interval`, or None for never.

    Attributes:
        val_data: Iterated whole at each validation.
        sampler: `(model, step) -> images`, kept as a PNG page; see `ai.lab.media.image_page.save_page`.
        task: `(model, step) -> dict of numbers`, logged as they are.
        save_snapshots: Whether to save what resuming needs; or an `ai.train.Snapshots` that says how.
        stopper: `(step, metrics) -> bool`, asked after each evaluation, such as `ai.train.EarlyStopping`.
        log_interval: When numbers are logged; every 100 steps.
        val_interval: When to validate; every 1000 steps, as all the others.
        sample_interval: When to sample.
        task_interval: When to run the task.
        save_interval: When to save; also at the end and after SIGTERM or Ctrl-C.
        stateful: Objects of the user's own that go into the snapshots, in this order.
        progress: Whether to show a progress bar where there is a terminal or notebook.
    """

    val_data: Iterable[Any] | None
    sampler: Callable[[Any, int], Any] | None
    task: Callable[[Any, int], Mapping[str, float]] | None
    save_snapshots: "bool | Snapshots"
    stopper: Stopper | None
    log_interval: "Every"
    val_interval: "Every"
    sample_interval: "Every"
    task_interval: "Every"
    save_interval: "Every"
    stateful: "Sequence[Stateful]"
    progress: bool


class SessionOptions(TypedDict, total=False):
    """How a trial is recorded.

    Attributes:
        system_interval_s: Seconds between two rows of system metrics, 10 by default; None for none.
        capture: Whether what the process prints during training is copied to `log.txt`.
    """

    system_interval_s: float | None
    capture: bool


class TrialOptions(HookOptions, SessionOptions, total=False):
    """All that `Trial` may be told.

    Attributes:
        keep_last: How many of the newest snapshots are kept, 3 by default; None keeps all.
    """

    keep_last: int | None


HOOK_DEFAULTS: HookOptions = {
    "val_data": None,
    "sampler": None,
    "task": None,
    "save_snapshots": False,
    "stopper": None,
    "log_interval": 100,
    "val_interval": 1000,
    "sample_interval": 1000,
    "task_interval": 1000,
    "save_interval": 1000,
    "stateful": (),
    "progress": True,
}
SESSION_DEFAULTS: SessionOptions = {"system_interval_s": 10.0, "capture": True}


def check_options(given: Mapping[str, object], known: type[HookOptions] | type[TrialOptions], what: str) -> None:
    """Raises where an option is none: `what` says of what.

    Raises:
        TypeError: it names them all.
    """
    if unknown := given.keys() - known.__annotations__.keys():
        options = ", ".join(known.__annotations__)
        raise TypeError(f"{what} options must be of {options}; got {', '.join(sorted(unknown))}")
