"""An error in words, also one whose own words raise."""

import traceback

LONGEST = 10_000
"""Of longer words the beginning is told: they go into small files, messages and lists."""


def error_text(error: BaseException) -> str:
    """Returns an error's name and words, at most `LONGEST` characters of them; its name alone where telling it raises.

    Example:
        >>> error_text(ValueError("no such key"))
        'ValueError: no such key'
    """
    try:
        words = str(error)
    except Exception:
        return f"{type(error).__name__}, which cannot be told"
    cut = f"… ({len(words):,} characters)" if len(words) > LONGEST else ""
    return f"{type(error).__name__}: {words[:LONGEST]}{cut}"


def traceback_text(error: BaseException) -> str:
    """Returns the lines that Python prints of an error; `error_text` where they cannot be made."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return error_text(error) + "\n"
