"""How a run ended: the one function that turns what ended it into a state."""

import signal

_BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def outcome_of(error: BaseException | None) -> tuple[str, BaseException | None]:
    """Returns the state of a run that `error` ended (None: nothing did), and the error to record with it, if it is one.

    `SystemExit` counts by its code: none or 0 is a normal end, that of SIGINT or SIGTERM an interruption.

    >>> outcome_of(None), outcome_of(SystemExit(0)), outcome_of(KeyboardInterrupt()), outcome_of(SystemExit(143))
    (('finished', None), ('finished', None), ('interrupted', None), ('interrupted', None))
    >>> outcome_of(SystemExit(3)), outcome_of(ValueError("x"))[0]
    (('failed', SystemExit(3)), 'failed')
    """
    code = error.code if isinstance(error, SystemExit) else None
    if error is None or (isinstance(error, SystemExit) and code in (None, 0)):
        return "finished", None
    if isinstance(error, KeyboardInterrupt) or code in _BY_SIGNAL:
        return "interrupted", None
    return "failed", error
