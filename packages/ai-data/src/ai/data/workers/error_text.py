"""An error in words, also one whose own words raise."""

import traceback


def error_text(error: BaseException) -> str:
    """Returns an error's name and words; its name alone where telling it raises.

    Example:
        >>> error_text(ValueError("no such key"))
        'ValueError: no such key'
    """
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, which cannot be told"


def traceback_text(error: BaseException) -> str:
    """Returns the lines that Python prints of an error; `error_text` where they cannot be made."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return error_text(error) + "\n"
