"""Who began a source or an environment last: what two act in at once is neither one's."""

import contextlib
from typing import Any
from weakref import ref

# By identity, since equal ones are not the same; an entry goes with what it is of.
_LAST: dict[int, tuple["ref[Any]", object]] = {}


def began(thing: Any) -> object:
    """Notes that the caller begins it anew, and returns the mark to show later."""
    mark, key = object(), id(thing)
    with contextlib.suppress(TypeError):  # it cannot be referred to weakly
        _LAST[key] = ref(thing, lambda _: _LAST.pop(key, None)), mark
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
    of, last = _LAST.get(id(thing), (None, mark))
    if of is not None and of() is thing and last is not mark:
        raise RuntimeError(f"{what} was begun anew by another who acts in it: give each one of its own")
