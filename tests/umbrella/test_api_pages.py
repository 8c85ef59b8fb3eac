"""The API reference names what people write: each public name has its entry, under the shortest name it has."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import ai

PAGES = Path(__file__).resolve().parents[2] / "docs" / "api"
ENTRY = re.compile(r"\.\. auto(?:class|function|exception|data):: ([\w.]+)")
PARTS = ["model", "data", "train", "infer", "game", "lab"]


def entries(page: Path) -> list[str]:
    return ENTRY.findall(page.read_text(encoding="utf-8"))


def shortest(part: str, name: str) -> str:
    value = getattr(importlib.import_module(f"ai.{part}"), name)
    return f"ai.{name}" if name in ai.__all__ and getattr(ai, name) is value else f"ai.{part}.{name}"


@pytest.mark.parametrize("part", PARTS)
def test_every_public_name_has_an_entry_under_the_name_that_people_write(part):
    module = importlib.import_module(f"ai.{part}")
    public = {shortest(part, name) for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)}
    named = entries(PAGES / f"{part}.md")
    assert public
    assert public <= set(named)
    assert len(named) == len(set(named))


@pytest.mark.parametrize("part", PARTS)
def test_no_entry_goes_round_a_public_name(part):
    public = set(importlib.import_module(f"ai.{part}").__all__)
    for path in entries(PAGES / f"{part}.md"):
        name = path.rsplit(".", 1)[1]
        if name in public and importlib.import_module(f"ai.{part}").__name__ + f".{name}" != path:
            shown = importlib.import_module(path.rpartition(".")[0])
            same = getattr(shown, name) is getattr(importlib.import_module(f"ai.{part}"), name)
            assert not same or path == shortest(part, name), path
