"""Command lines without their secrets."""

import re

MASK = "***"
_SECRET_NAME = re.compile(
    r"(^|[-_.])((api|access|secret|private)[-_]?key|token|secret|password|passwd|credentials?)$", re.I
)
_SECRET = re.compile(
    r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abpr]-[\w-]{10,}|AKIA\w{16}|AIza[\w-]{30,})"
)
_BEARER = re.compile(r"(?<=\bbearer )\S+|(?<=\bbasic )\S+", re.I)
_COUNTED = re.compile(r"token$", re.I)
_NUMBER = re.compile(r"[-+.\d]+")


def mask(argv: list[str]) -> list[str]:
    """Returns `argv` without what looks like a secret: by the option's name, by its own form, or a password in a URL.

    >>> mask(["train.py", "--token", "abc", "hub.api_key=abc", "--max_tokens=9", "https://me:abc@host/x"])
    ['train.py', '--token', '***', 'hub.api_key=***', '--max_tokens=9', 'https://***@host/x']
    """
    masked: list[str] = []
    hides_next: str | None = None
    for one in argv:
        name, equals, value = one.partition("=")
        if hides_next is not None and not one.startswith("-") and _is_secret(hides_next, one):
            one = MASK
        elif equals and _is_secret(name, value):
            one = f"{name}={MASK}"
        hides_next = one if not equals and one.startswith("-") else None
        masked.append(re.sub(r"(?<=://)[^/@\s]+(?=@)", MASK, _BEARER.sub(MASK, _SECRET.sub(MASK, one))))
    return masked


def _is_secret(name: str, value: str) -> bool:
    """Whether an option's name says that its value is secret; of tokens that are numbers there are many kinds."""
    return bool(_SECRET_NAME.search(name.lstrip("-"))) and not (_COUNTED.search(name) and _NUMBER.fullmatch(value))
