"""Runs every example of every docstring, one test a module, each in a working directory of its own."""

import doctest
import importlib
import inspect
import sys
from pathlib import Path

import pytest
import torch

from tests import warm_python

ROOT = Path(__file__).resolve().parents[2]


def modules() -> list[str]:
    sources = [*sorted(ROOT.glob("packages/*/src")), ROOT / "examples/src"]
    names = []
    for source in sources:
        for path in sorted(source.rglob("*.py")):
            name = ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
            if not name.endswith("__main__") and ">>>" in path.read_text(encoding="utf-8"):
                names.append(name)
    return names


class Finder(doctest.DocTestFinder):
    """Finds examples of decorated functions too, whose own globals are those of the decorator."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object))


@pytest.mark.parametrize("name", modules())
def test_examples_of_the_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path / "lab"))
    torch.manual_seed(0)
    module = importlib.import_module(name)
    if name.startswith("ai.infer"):
        warm_python.start_inferencers_warm(monkeypatch)
    # Functions that a package re-exports are tested where they are defined.
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in Finder().find(module, name):
        runner.run(example)
    sys.stdout.flush()
    assert runner.tries > 0
    assert runner.failures == 0
