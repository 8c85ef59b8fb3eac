"""One command gives all distributions their next version."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

import ai

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("bump", ROOT / ".ci/bump.py")
bump = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bump)


@pytest.fixture
def checkout(tmp_path):
    for pattern in [*bump.WITH_LABEL, *bump.PLAIN, "CHANGELOG.md"]:
        for path in ROOT.glob(pattern):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return tmp_path


def test_every_place_takes_the_new_version_and_the_changelog_its_entries(checkout):
    changed = bump.bump(checkout, "7.8.9", "2026-12-31")
    assert len(changed) == len([path for path in checkout.rglob("*") if path.is_file()])
    old = ai.__version__.partition("+")[0]
    for path in changed:
        text = path.read_text(encoding="utf-8")
        assert "7.8.9" in text
        if path.name != "CHANGELOG.md":
            assert f"{old}+ws" not in text
            assert f'"{old}"' not in text
            assert f"{{{old}}}" not in text
    changelog = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"## \[Unreleased\]\n\n## \[7\.8\.9\] - 2026-12-31\n\n###", changelog)
    with pytest.raises(SystemExit, match="must have entries under Unreleased"):
        bump.bump(checkout, "7.9.0", "2026-12-31")


def test_the_version_is_repeated_nowhere_else():
    old = re.escape(ai.__version__.partition("+")[0])
    known = {path for pattern in [*bump.WITH_LABEL, *bump.PLAIN] for path in ROOT.glob(pattern)}
    places = [".ci/*", "*", "docs/*", "docs/guide/*", "examples/*", "packages/*/*", "packages/*/src/ai/**/*.py"]
    for path in {path for pattern in places for path in ROOT.glob(pattern) if path.is_file()} - known:
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not re.search(rf"(?<![\d.]){old}(\+ws|[\"'}}])", text) or path.name == "CHANGELOG.md", path


def test_a_place_that_is_gone_is_said_before_anything_is_written(checkout):
    (checkout / "docs/faq.md").unlink()
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"faq\.md must hold the version"):
        bump.bump(checkout, "7.8.9", "2026-12-31")
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("version", ["0.0.1", "1.2", "1.2.3rc1", ai.__version__.partition("+")[0]])
def test_what_is_no_next_version_changes_nothing(checkout, version):
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"version must be three numbers, larger than"):
        bump.bump(checkout, version, "2026-12-31")
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == before
