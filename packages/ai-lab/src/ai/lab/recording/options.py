"""What a trial may be told besides its path: the one place with names, types and defaults."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from ai.lab.arguments import check_callable, check_seconds, check_switch, check_whole

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
        sampler: `(model, step) -> images`, kept as a PNG page; see `ai.lab.media.image_page.to_page`.
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
        TypeError: it names them all; or an option's value is of a wrong type.
        ValueError: a number is out of bounds.
    """
    if unknown := given.keys() - known.__annotations__.keys():
        options = ", ".join(known.__annotations__)
        raise TypeError(f"{what} options must be of {options}; got {', '.join(sorted(unknown))}")
    for name, value in given.items():
        _check(name, value)


def _check(name: str, value: Any) -> None:
    """Raises where an option has a value that is none."""
    if name.endswith("_interval"):
        _check_interval(name, value)
    elif name in ("sampler", "task", "stopper"):
        check_callable(or_none=True, **{name: value})
    elif name in ("capture", "progress"):
        check_switch(**{name: value})
    elif name == "keep_last":
        check_whole(1, or_none=True, keep_last=value)
    elif name == "system_interval_s":
        check_seconds(threading.TIMEOUT_MAX, system_interval_s=value)
    elif name == "save_snapshots" and not isinstance(value, bool):
        if isinstance(value, type) or not callable(getattr(value, "save", None)):
            raise TypeError(f"save_snapshots must be True, False or an ai.train.Snapshots, got {value!r}")
    elif name == "stateful":
        if not isinstance(value, list | tuple):
            raise TypeError(f"stateful must be a list of objects with a state_dict, got {value!r}")
        for index, one in enumerate(value):
            if not hasattr(one, "state_dict") or isinstance(one, type):
                raise TypeError(f"stateful[{index}] must have a state_dict, got {one!r}")
    elif name == "val_data" and value is not None:
        if isinstance(value, type) or not (hasattr(value, "__iter__") or hasattr(value, "__getitem__")):
            raise TypeError(f"val_data must be iterable, such as a loader, or None, got {value!r}")


def _check_interval(name: str, value: Any) -> None:
    if value is None or (type(value) is int and value >= 1):
        return
    from ai.train.hooks.interval import as_interval

    try:
        as_interval(value)
    except (TypeError, ValueError) as error:
        rule = "must be a number of steps from 1, text such as '30s', an ai.train.Interval or None"
        raise type(error)(f"{name} {rule}, got {value!r}") from None
