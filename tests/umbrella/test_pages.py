"""Every code block of the READMEs and of the site is run as it stands."""

from pathlib import Path

import pytest

from tests.markdown import blocks, run, script

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")), *sorted(ROOT.glob("docs/**/*.md"))]
    if blocks(page)
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_blocks_run(page, datasets, tmp_path):
    elsewhere = {"AI_DATASETS_PATH": str(datasets), "AI_LAB_PATH": str(tmp_path / "lab")}
    # a Ray cluster that happens to run on this machine is no part of a page
    run(script(page), page.name, tmp_path, **elsewhere, RAY_ADDRESS="127.0.0.1:1")


def test_the_blocks_of_a_page_keep_their_line_numbers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\na = 1\n```\n\ntext\n\n```python\nraise ValueError(a)\n```\n")
    with pytest.raises(AssertionError, match=r"(?s)line 10.*ValueError: 1"):
        run(script(page), "page", tmp_path)


def test_every_distribution_shows_itself_by_a_block_that_runs():
    assert {page.parent.name for page in PAGES if page.parent.parent.name == "packages"} == {
        folder.name for folder in (ROOT / "packages").iterdir() if (folder / "pyproject.toml").exists()
    }
