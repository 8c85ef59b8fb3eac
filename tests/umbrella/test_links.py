"""Links within the documentation lead to files that are there, and to headings that they have."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "docs/**/*.ipynb", "packages/*/README.md", "examples/**/*.md")
    for page in ROOT.glob(pattern)
    if "_build" not in page.parts
)
LINK = re.compile(r"\]\(<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\)|<(?:img|a|source)\b[^>]*\b(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"\.\. auto(?:class|function|exception|data):: ([\w.]+)")


def prose(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return CODE.sub("``", text)


def anchors(page: Path) -> set[str]:
    """What a page can be entered at: its headings as GitHub and MyST name them, its labels and its entries."""
    text = page.read_text(encoding="utf-8")
    plain = re.sub(r"^(`{3,}|~{3,})(?!\{).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+\s+(.+?)\s*$", plain, re.MULTILINE):
        told = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).lower()
        slug = re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", told))
        found.add(slug if slug not in found else next(s for i in range(1, 99) if (s := f"{slug}-{i}") not in found))
    return found | set(re.findall(r"^\(([\w-]+)\)=\s*$", plain, re.MULTILINE)) | set(ENTRY.findall(text))


def broken(page: Path) -> list[str]:
    wrong = []
    for match in LINK.finditer(prose(page)):
        link = match[1] or match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:", link):  # elsewhere
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(f"{link}: there is no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert not broken(page)


def test_a_link_that_leads_nowhere_is_told(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`, three\n\n## Again\n## Again\n(here)=\n"
        "[a](#one-two-three) [b](#again-1) [c](page.md#here) [d](x.md)\n"
        '`[e](y.md)` [f](#no) <img src="z.png"> [g](https://example.org/x.md)\n```text\n[h](v.md)\n# no\n```\n'
    )
    assert [told.partition(":")[0] for told in broken(page)] == ["x.md", "#no", "z.png"]


def test_what_the_landing_page_says_was_reached_stands_so_in_the_results():
    reached = (
        (ROOT / "docs/index.md").read_text(encoding="utf-8").partition("## What it reaches")[2].partition("\n## ")[0]
    )
    rows = [[cell.strip() for cell in row.split("|")[1:3]] for row in reached.splitlines() if row.startswith("| [")]
    results = (ROOT / "docs/results/index.md").read_text(encoding="utf-8")
    assert len(rows) > 3
    for what, figure in rows:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", what)
        row = next(
            row
            for row in re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", results).splitlines()
            if row.startswith(f"| {plain} |")
        )
        assert figure in row
