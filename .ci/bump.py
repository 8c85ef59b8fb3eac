"""Gives all distributions their next version at once: `hatch run bump 0.2.0`.

The versions and pins of every `pyproject.toml`, the places that repeat the version, and the changelog, whose entries
under "Unreleased" become those of the new version, of today. Everything is worked out before anything is written.
"""

import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LABEL = "+ws"  # of no public index: see CONTRIBUTING.md
WITH_LABEL = [
    "packages/*/pyproject.toml",
    "examples/pyproject.toml",
    "packages/ai/src/ai/__init__.py",
    "docs/install.md",
]
WITH_LABEL += [".ci/run", ".ci/install_server"]
PLAIN = ["docs/conf.py", "docs/faq.md", "packages/ai-infer/src/ai/infer/http/routes.py"]


def bump(root: Path, version: str, today: str) -> list[Path]:
    """Writes the new version everywhere and returns the files that changed.

    Args:
        root: of the checkout.
        version: three numbers, larger than the present ones.
        today: for the changelog, as `2026-01-31`.

    Raises:
        SystemExit: the version is no such, or a file does not hold the present one.
    """
    present = re.search(r'__version__ = "([\d.]+)', (root / "packages/ai/src/ai/__init__.py").read_text())
    assert present is not None
    old = present[1]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or _numbers(version) <= _numbers(old):
        sys.exit(f"version must be three numbers, larger than {old}, got {version}")
    texts: dict[Path, str] = {}
    for pattern in [*WITH_LABEL, *PLAIN]:
        before = re.escape(old + LABEL) if pattern in WITH_LABEL else rf"(?<=[\"{{]){re.escape(old)}(?=[\"}}])"
        after = version + LABEL if pattern in WITH_LABEL else version
        for path in sorted(root.glob(pattern)) or [root / pattern]:
            text, n = re.subn(before, after, path.read_text(encoding="utf-8")) if path.exists() else ("", 0)
            if n == 0:
                sys.exit(f"{path} must hold the version {old}, and does not")
            texts[path] = text
    changelog = root / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    if "## [Unreleased]\n\n### " not in text:
        sys.exit(f"{changelog} must have entries under Unreleased, and has none")
    texts[changelog] = text.replace("## [Unreleased]\n", f"## [Unreleased]\n\n## [{version}] - {today}\n", 1)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: hatch run bump VERSION, such as 0.2.0")
    for changed in bump(ROOT, sys.argv[1], datetime.date.today().isoformat()):
        print(changed.relative_to(ROOT))
