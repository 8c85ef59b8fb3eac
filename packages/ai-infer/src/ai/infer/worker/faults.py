"""What an exception means, said in one place: whose fault it is, and so who hears of it and what goes on.

The model's, on one request       that request is answered with it; everything else goes on
A client's                        its connection is closed; everything else goes on
The worker's own                  nothing can be trusted any more: everybody is told, and the process ends
"""

import errno
import traceback

import torch

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class WorkerFaultError(Exception):
    """The worker cannot go on; the message says why."""


def answer_for(error: BaseException) -> str:
    """Returns what to answer to a request that ended so, with its traceback.

    `SystemExit`, `KeyboardInterrupt`, `RecursionError` and running out of memory in a model are of its request as well.

    Raises:
        WorkerFaultError: the device is lost, so that no later request can succeed.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, _DEVICE_LOST) or (isinstance(error, RuntimeError) and "CUDA error: " in str(error)):
        raise WorkerFaultError(f"the device failed: {text}") from error
    lines = "".join(traceback.format_exception(error))
    return f"{text}\n\nIn the worker:\n{lines}"


_DEVICE_LOST: tuple[type[BaseException], ...] = tuple(
    each for each in [getattr(torch, "AcceleratorError", None)] if isinstance(each, type)
)


def is_out_of_descriptors(error: OSError) -> bool:
    """Returns whether the process, or the system, has no descriptor left for a newcomer."""
    return error.errno in _OUT_OF_DESCRIPTORS
