"""Checks that every distribution imports only what it declares.

Siblings by import-linter, the world outside by deptry, and the umbrella, which library code never imports, here.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = [*sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml")), ROOT / "examples"]

# The linter wants `ai` as a plain namespace, so it runs without the umbrella's `ai/__init__.py` on the path.
LINT = """
import sys
sys.path[:] = [path for path in sys.path if not path.replace("\\\\", "/").endswith("packages/ai/src")]
from importlinter.cli import lint_imports_command
lint_imports_command(["--no-cache"])
"""


def umbrella_imports(folder: Path) -> list[str]:
    """Lists the places in a distribution that import the umbrella: `import ai` or anything of `ai.util`."""
    found = []
    for path in sorted(folder.glob("src/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                parent = node.module or ""
                names = [parent if parent != "ai" else f"ai.{alias.name}" for alias in node.names]
            if any(name == "ai" or name == "ai.util" or name.startswith("ai.util.") for name in names):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def main() -> int:
    """Returns 0 if every import is declared."""
    failed = subprocess.run([sys.executable, "-c", LINT], cwd=ROOT).returncode
    for folder in DISTRIBUTIONS:
        for place in umbrella_imports(folder) if folder.name != "ai" else []:
            print(f"{place}: library code imports its part (from ai.model import …), never the umbrella")
            failed = 1
    for folder in DISTRIBUTIONS:
        print(f"declared dependencies of {folder.name}:", flush=True)
        command = [
            sys.executable,
            "-m",
            "deptry",
            "src",
            "--no-ansi",
            "--ignore",
            "DEP002",
            "--known-first-party",
            "ai",
        ]
        failed |= subprocess.run(command, cwd=folder, env=os.environ | {"NO_COLOR": "1"}).returncode
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
