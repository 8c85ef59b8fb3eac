"""How a run ended: the one function that turns what ended it into a state."""

import signal
import sys

_BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def outcome_of(error: BaseException | None) -> tuple[str, BaseException | None]:
    """Returns the state of a run that `error` ended (None: nothing did), and the error to record with it, if it is one.

    `SystemExit` counts by its code: none or 0 is a normal end, that of SIGINT or SIGTERM an interruption. Ray's handler
    of SIGTERM, which takes the place of others, leaves with the bare number of the signal.

    >>> outcome_of(None), outcome_of(SystemExit(0)), outcome_of(KeyboardInterrupt()), outcome_of(SystemExit(143))
    (('finished', None), ('finished', None), ('interrupted', None), ('interrupted', None))
    >>> outcome_of(SystemExit(3)), outcome_of(ValueError("x"))[0]
    (('failed', SystemExit(3)), 'failed')
    """
    code = error.code if isinstance(error, SystemExit) else None
    if error is None or (isinstance(error, SystemExit) and code in (None, 0)):
        return "finished", None
    by_ray = code == signal.SIGTERM and "ray" in sys.modules
    if isinstance(error, KeyboardInterrupt) or code in _BY_SIGNAL or by_ray:
        return "interrupted", None
    return "failed", error


_exits: list[SystemExit] = []


def watch_exit() -> None:
    """Remembers what `sys.exit` is called with from now on: the interpreter keeps it from who ends with the script."""
    if getattr(sys.exit, "by_ai_lab", False):
        return
    leave = sys.exit

    def exit_and_remember(code: object = None, /) -> None:
        _exits[:] = [SystemExit(code)]
        leave(code)  # type: ignore[arg-type]

    exit_and_remember.by_ai_lab = True  # type: ignore[attr-defined]
    sys.exit = exit_and_remember  # type: ignore[assignment]


def last_exit() -> SystemExit | None:
    """Returns what `sys.exit` was called with last; a script that `raise SystemExit` ends tells nobody."""
    return _exits[0] if _exits else None
