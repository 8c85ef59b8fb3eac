"""The map of the rooms in CONTRIBUTING.md shows the tree as it is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PARTS = ["model", "data", "train", "infer", "game", "lab"]
MOST_MODULES = 12


def folder(part):
    return ROOT / f"packages/ai-{part}/src/ai/{part}"


def modules(path):
    return sorted(file.stem for file in path.glob("*.py") if not file.stem.startswith("__"))


def rooms(part):
    return sorted(init.parent for init in folder(part).glob("*/__init__.py"))


def caption(room):
    return (ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or "").splitlines()[0]


def drawn(part):
    """Returns what the map has under a part's heading: the modules at its front, and a line for each room."""
    section = CONTRIBUTING.partition(f"\n### `ai.{part}`")[2].partition("\n##")[0]
    front = re.search(r"^At the front: (.+)\.$", section, re.MULTILINE)
    lines = re.findall(r"^\| `(\w+)/` \| (.+) \|$", section, re.MULTILINE)
    return sorted(re.findall(r"`(\w+)`", front[1])) if front else [], lines


@pytest.mark.parametrize("part", PARTS)
def test_the_map_names_every_room_and_module_and_no_others(part):
    front, lines = drawn(part)
    assert front == modules(folder(part))
    assert lines == [(room.name, caption(room)) for room in rooms(part)]


@pytest.mark.parametrize("part", PARTS)
def test_a_room_holds_a_handful_of_modules_at_any_depth(part):
    for room in (init.parent for init in folder(part).glob("*/**/__init__.py")):
        assert 1 <= len(modules(room)) <= MOST_MODULES or any(room.glob("*/__init__.py")), room


@pytest.mark.parametrize("part", PARTS)
def test_tests_mirror_the_rooms(part):
    places = {room.name for room in rooms(part)}
    folders = {path.parent.name for path in (ROOT / "tests" / part).glob("*/test_*.py")}
    assert folders <= places


def test_every_place_to_change_something_at_is_there():
    section = CONTRIBUTING.partition("## Where do I change")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", section, re.MULTILINE)[2:]
    assert len(rows) >= 10
    for wish, place in rows:
        paths = re.findall(r"`(ai/[\w/.]+)`", place)
        assert paths, wish
        for path in paths:
            assert (ROOT / f"packages/ai-{path.split('/')[1]}/src" / path).exists(), f"{wish}: {path}"
