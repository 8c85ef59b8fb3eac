"""Which of our forms of a plain reply a request asks for: bytes, JSON, or JSON in parts.

Source: RFC 9110, sections 5.3 (several lines of one header) and 12.5.1 (Accept). Parameters beside `q` are passed
over, as that of `application/json; charset=utf-8`.
"""

import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache


class ReplyForm(Enum):
    """A form, by its media type."""

    BYTES = b"application/octet-stream"
    JSON = b"application/json"
    PARTS = b"text/event-stream"


_EXACT, _TYPE, _ANY = 2, 1, 0  # how closely a range names a form
_RANGES: dict[bytes, tuple[tuple[ReplyForm, int], ...]] = {
    **{form.value: ((form, _EXACT),) for form in ReplyForm},
    # Whoever takes any text does not reckon with events: parts are for those who name them.
    **dict.fromkeys([b"application/*"], ((ReplyForm.BYTES, _TYPE), (ReplyForm.JSON, _TYPE))),
    **dict.fromkeys([b"*/*", b"*"], ((ReplyForm.BYTES, _ANY), (ReplyForm.JSON, _ANY))),  # the latter is Java's
}
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)  # in which a comma ends nothing
_WEIGHT = re.compile(rb"[01]|[01]?\.[0-9]+|[01]\.")
_MAX_BYTES = 4096  # of all lines together; more are of nobody who means them


def accept_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns what all lines of the header say together."""
    return b",".join(value for name, value in headers if name == b"accept")


def reply_form(accept: bytes) -> ReplyForm | None:
    """Returns the form that a client likes best, of equal ones that which it names most closely.

    None: it likes several alike, or none at all, so that it gets what it would get without the header.

    >>> reply_form(b"application/json, text/plain, */*"), reply_form(b"application/json;q=0.1, */*")
    (<ReplyForm.JSON: b'application/json'>, <ReplyForm.BYTES: b'application/octet-stream'>)
    >>> reply_form(b"text/html, */*;q=0.8")
    """
    return _read(accept) if len(accept) <= _MAX_BYTES else None


@lru_cache(maxsize=256)
def _read(accept: bytes) -> ReplyForm | None:
    found: dict[ReplyForm, tuple[int, float]] = {}  # by the range that names it most closely
    for piece in _QUOTED.sub(b"", accept).lower().split(b","):
        name, *parameters = (part.strip() for part in piece.split(b";"))
        for form, closeness in _RANGES.get(name, ()):
            found[form] = max(found.get(form, (-1, 0.0)), (closeness, _weight(parameters)))
    best = max(((weight, closeness) for closeness, weight in found.values() if weight > 0), default=None)
    if best is None:
        return None
    forms = [form for form, (closeness, weight) in found.items() if (weight, closeness) == best]
    return ReplyForm.PARTS if ReplyForm.PARTS in forms else forms[0] if len(forms) == 1 else None


def _weight(parameters: list[bytes]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"q":
            value = value.strip()
            return min(float(value), 1.0) if _WEIGHT.fullmatch(value) else 1.0
    return 1.0
