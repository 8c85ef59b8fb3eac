"""Command lines without their secrets."""

import re

MASK = "***"
_SECRET_NAME = re.compile(
    r"(^|[-_.])((api|access|secret|private)[-_]?key|token|secret|password|passwd|credentials?)$", re.I
)
_SECRET = re.compile(
    r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abpr]-[\w-]{10,}|AKIA\w{16}|AIza[\w-]{30,})"
)
_NUMBER = re.compile(r"[-+.\d]+")


def mask(argv: list[str]) -> list[str]:
    """Returns `argv` without what looks like a secret: by the option's name, by its own form, or a password in a URL.

    >>> mask(["train.py", "--token", "abc", "hub.api_key=abc", "--max_tokens=9", "https://me:abc@host/x"])
    ['train.py', '--token', '***', 'hub.api_key=***', '--max_tokens=9', 'https://***@host/x']
    """
    masked: list[str] = []
    hides_next = False
    for one in argv:
        name, equals, value = one.partition("=")
        if hides_next and not one.startswith("-") and not _NUMBER.fullmatch(one):
            one = MASK
        elif equals and _SECRET_NAME.search(name.lstrip("-")) and not _NUMBER.fullmatch(value):
            one = f"{name}={MASK}"
        hides_next = not equals and one.startswith("-") and bool(_SECRET_NAME.search(one.lstrip("-")))
        masked.append(re.sub(r"(?<=://)[^/@\s]+(?=@)", MASK, _SECRET.sub(MASK, one)))
    return masked
