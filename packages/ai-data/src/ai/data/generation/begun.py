"""Who began a source or an environment last: what two act in at once is neither one's."""

import contextlib
from typing import Any
from weakref import WeakKeyDictionary

_LAST: WeakKeyDictionary[Any, object] = WeakKeyDictionary()


def began(thing: Any) -> object:
    """Notes that the caller begins it anew, and returns the mark to show later."""
    mark = object()
    with contextlib.suppress(TypeError):  # it has no hash, or cannot be referred to weakly
        _LAST[thing] = mark
    return mark


def check_begun(thing: Any, mark: object, what: str) -> None:
    """Does nothing where nobody else has begun it anew since.

    Raises:
        RuntimeError: somebody has.

    >>> class Source: ...
    >>> source = Source()
    >>> mark = began(source)
    >>> check_begun(source, mark, "the source")
    """
    last: object = mark
    with contextlib.suppress(TypeError):
        last = _LAST.get(thing, mark)
    if last is not mark:
        raise RuntimeError(f"{what} was begun anew by another who acts in it: give each one of its own")
