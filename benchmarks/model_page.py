"""Writes docs/results/model.md: `python benchmarks/model_page.py`, about ten minutes on one thread.

What each block agrees with, what torch's tools make of each, how many parameters models have, and what layers cost
beside plain torch (`--seconds` a line, 0 leaves the table as it stands).
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch
from model_parts import counts, matrix, references

PAGE = Path(__file__).parents[1] / "docs" / "results" / "model.md"
HEADS = {
    "references": ["block", "reference", "largest difference", "tolerance"],
    "tools": ["block", *matrix.CHECKS, "FSDP2"],
    "parameters": ["model", "ours", "theirs", "by"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*HEADS, "speed"], help="one of the tables")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in HEADS if options.only is None else {options.only} & set(HEADS):
        put(
            name, table(HEADS[name], {"references": references.rows, "tools": tools, "parameters": counts.rows}[name]())
        )
    if options.only in (None, "speed") and options.seconds > 0:
        command = [sys.executable, Path(__file__).with_name("model.py"), "--seconds", str(options.seconds)]
        put("speed", f"```text\n{subprocess.run(command, check=True, capture_output=True, text=True).stdout}```")


def tools() -> list[list[str]]:
    sharded = matrix.sharded()
    return [[*row, sharded[row[0]]] for row in matrix.rows(list(matrix.BLOCKS))]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put(name: str, text: str) -> None:
    """Writes a table between its two comments of the page."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    page = PAGE.read_text(encoding="utf-8")
    found, n = re.subn(
        f"({re.escape(begin)}).*?({re.escape(end)})", lambda m: m[1] + text + m[2], page, flags=re.DOTALL
    )
    if n != 1:
        raise ValueError(f"{PAGE} must hold {begin.strip()} and {end.strip()} once")
    PAGE.write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
