"""Runs the code blocks of a Markdown page as a reader would: one after the other, in one script, in an empty folder."""

import re
from pathlib import Path

from tests import warm_python

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Lists the Python blocks of a page, each with the line that it begins on."""
    text = page.read_text(encoding="utf-8")
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in BLOCK.finditer(text)]


def script(page: Path) -> str:
    """Joins the blocks at the line numbers of the page, so that a traceback points into it."""
    lines: list[str] = []
    for start, code in blocks(page):
        lines += [""] * (start - 1 - len(lines)) + code.splitlines()
    return "\n".join(lines) + "\n"


def run(code: str, name: str, folder: Path, **environment: str) -> None:
    """Runs a script in a process of its own, warnings as errors, and fails with its output if it fails."""
    path = folder / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.py"
    path.write_text(code, encoding="utf-8")
    environment = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"} | environment
    done = warm_python.run(path, folder=folder, environment=environment, warnings="error", timeout=400, nested=True)
    assert done.returncode == 0, f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
