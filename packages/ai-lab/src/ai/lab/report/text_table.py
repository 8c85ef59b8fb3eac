"""Rows as a plain text table."""

from collections.abc import Sequence


def format_table(head: Sequence[str], rows: Sequence[Sequence[object]], *, width: int = 28) -> str:
    """Returns a table with aligned columns; a cell longer than `width` is cut.

    Example:
        >>> print(format_table(["name", "loss"], [["a", 0.5], ["longer", None]]))
        name    loss
        a       0.5
        longer  -
    """
    cells = [[_cell(value, width) for value in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()  # aligned left
        for row in cells
    )
    return "\n".join(lines)


def _cell(value: object, width: int) -> str:
    if value is None:
        return "-"
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    text = "".join(character if character.isprintable() else "·" for character in text)  # no escape codes of a stranger
    return text if len(text) <= width else text[: width - 1] + "…"
