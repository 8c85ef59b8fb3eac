"""The page of what blocks agree with: a light part of its command, and that no block is missing from it."""

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results" / "model.md").read_text(encoding="utf-8")


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    from model_parts import counts, matrix, references

    return counts, matrix, references


def cells(name: str) -> list[list[str]]:
    text = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", PAGE, re.DOTALL)[1]
    return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


def test_every_block_is_on_the_page_and_none_failed(parts):
    _, matrix, _ = parts
    rows = cells("tools")
    assert [row[0] for row in rows] == list(matrix.BLOCKS), "run python benchmarks/model_page.py --only tools"
    assert {cell for row in rows for cell in row[1:]} == {"yes", "drawn", "by its batch", "no weights"}


@pytest.mark.parametrize("name", ["fc equalised", "tx_dec_blk", "noise"])
def test_a_block_is_as_the_page_says(parts, name):
    _, matrix, _ = parts
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (said,) = [row for row in cells("tools") if row[0] == name]
    assert matrix.rows([name]) == [said[:-1]]


def test_a_check_that_fails_is_said(parts, monkeypatch):
    _, matrix, _ = parts
    monkeypatch.setitem(matrix.CHECKS, "autocast", lambda name: torch.ones(2) @ torch.ones(3))
    (row,) = matrix.rows(["null"])
    assert row[2].startswith("**no**: RuntimeError: inconsistent tensor size")


def test_every_comparison_is_on_the_page(parts):
    _, _, references = parts
    assert [tuple(row[:2]) for row in cells("references")] == references.labels(), (
        "run python benchmarks/model_page.py --only references"
    )
    assert all(float(row[2]) <= max(1e-11, float(row[3])) for row in cells("references"))


def test_the_largest_difference_is_noted(parts):
    _, _, references = parts
    found = {}
    compare = torch.testing.assert_close
    with references.Differences()._noting(found):
        wide = torch.ones(2, dtype=torch.float64)
        torch.testing.assert_close(wide, wide + 1e-14, rtol=1e-12, atol=0)
        torch.testing.assert_close(wide, wide + 1e-15, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.ones(1), torch.ones(1) + 1e-6, rtol=1e-5, atol=1e-5)
    assert torch.testing.assert_close is compare
    assert found == {1e-12: pytest.approx(1e-14, rel=0.1), 1e-5: pytest.approx(1e-6, rel=0.1)}


def test_our_models_have_as_many_parameters_as_theirs(parts):
    counts, _, _ = parts
    rows = cells("parameters")
    assert len(rows) > 8
    assert all(ours == theirs for _, ours, theirs, _ in rows)
    guide = counts.written_in_the_guide()
    with torch.device("meta"):
        assert f"{guide['ConvNeXt']().n_params:,}" == next(row[1] for row in rows if row[0] == "ConvNeXt-T")
