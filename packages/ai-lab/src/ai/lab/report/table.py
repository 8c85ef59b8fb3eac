"""Results as a table for a terminal, a page of notes, a paper or a notebook."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ai.lab.arguments import check_directions
from ai.lab.report.text_table import format_table

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


class Spread(NamedTuple):
    """What repeated runs came to: mean and sample standard deviation (NaN of one run) of `n` numbers."""

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Returns the spread of some numbers.

        >>> Spread.of([1.0, 2.0, 3.0])
        Spread(mean=2.0, std=1.0, n=3)
        """
        numbers = [float(value) for value in values]
        mean = _mean(numbers)
        if len(numbers) < 2:
            return cls(mean, math.nan, len(numbers))
        return cls(mean, math.hypot(*(one - mean for one in numbers)) / math.sqrt(len(numbers) - 1), len(numbers))

    def told(self, plus_minus: str = "±") -> str:
        """Returns the mean to the digits that its deviation leaves certain.

        Of the deviation the first digit is told, and the second where the first is 1, which alone would be off by up to
        a half; the mean ends at the same place, both at the units at the latest.

        >>> Spread(0.91234, 0.0042, 3).told(), Spread(1.7, 1.04, 3).told(), Spread(12.5, float("nan"), 1).told()
        ('0.912 ± 0.004', '1.7 ± 1.0', '12.5')
        """
        if not (math.isfinite(self.std) and math.isfinite(self.mean)) or self.std == 0:
            return f"{self.mean:.5g}"
        first, power = f"{self.std:.1e}".split("e")
        further = int(first.startswith("1"))
        digits = max(0, further - int(power))
        if digits > 6 or max(abs(self.mean), self.std) >= 1e7:
            return f"{self.mean:.4g} {plus_minus} {self.std:.{1 + further}g}"
        return f"{self.mean:.{digits}f} {plus_minus} {self.std:.{digits}f}"

    def __str__(self) -> str:
        return self.told()


class Table:
    """Rows under named columns.

    Args:
        columns: The head.
        rows: A list a row; None where there is no value.

    Example:
        >>> table = Table(["loss", "dim"], [[Spread(0.5, 0.02, 3), 8], [0.25, None]])
        >>> print(table.to_markdown(best={"loss": "min"}))
        | loss | dim |
        |---|---|
        | 0.50 ± 0.02 | 8 |
        | **0.25** |  |
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.columns, self.rows = list(columns), [list(row) for row in rows]

    def to_markdown(self, *, best: Mapping[str, str] | None = None) -> str:
        """Returns a Markdown table.

        Args:
            best: `'min'` or `'max'` by column: the best value of each is set in bold.
        """
        winners = self._winners(best)
        lines = [self.columns, ["---"] * len(self.columns)]
        for index, row in enumerate(self.rows):
            cells = [_text(value).replace("|", "\\|").replace("\n", " ") for value in row]
            lines.append([f"**{cell}**" if (index, c) in winners else cell for c, cell in enumerate(cells)])
        head, rule, *body = lines
        return "\n".join([_line(head), "|" + "|".join(rule) + "|", *map(_line, body)])

    def to_latex(self, *, best: Mapping[str, str] | None = None) -> str:
        r"""Returns a LaTeX table in the rules of the package booktabs.

        Args:
            best: `'min'` or `'max'` by column: the best value of each is set in bold.
        """
        winners = self._winners(best)
        kinds = ["r" if self._is_numeric(index) else "l" for index in range(len(self.columns))]
        lines = [" & ".join(map(_escape, self.columns))]
        for index, row in enumerate(self.rows):
            cells = [_latex(value, bold=(index, column) in winners) for column, value in enumerate(row)]
            lines.append(" & ".join(cells))
        head, *body = [f"{line} \\\\" for line in lines]
        begin = f"\\begin{{tabular}}{{{''.join(kinds)}}}"
        return "\n".join([begin, "\\toprule", head, "\\midrule", *body, "\\bottomrule", "\\end{tabular}"])

    def to_pandas(self) -> "pd.DataFrame":
        """Returns a DataFrame; a spread becomes three columns: the mean, `… std` and `… n`.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_pandas needs pandas: pip install pandas", name="pandas") from error
        data: dict[str, list[Any]] = {}
        for index, name in enumerate(self.columns):
            column = [row[index] for row in self.rows]
            if any(isinstance(value, Spread) for value in column):
                spreads = [value if isinstance(value, Spread) else None for value in column]
                data[name] = [one.mean if one else value for one, value in zip(spreads, column, strict=True)]
                data[f"{name} std"] = [one.std if one else None for one in spreads]
                data[f"{name} n"] = [one.n if one else None for one in spreads]
            else:
                data[name] = column
        return pd.DataFrame(data)

    def _winners(self, best: Mapping[str, str] | None) -> set[tuple[int, int]]:
        """Returns row and column of the best values."""
        winners: set[tuple[int, int]] = set()
        for name, direction in check_directions(best={} if best is None else best).items():
            if name not in self.columns:
                raise ValueError(f"best must name columns ({', '.join(self.columns)}), got {name!r}")
            column = self.columns.index(name)
            known = {
                index: number for index, row in enumerate(self.rows) if (number := _number(row[column])) is not None
            }
            if known:
                wanted = (min if direction == "min" else max)(known.values())
                winners |= {(index, column) for index, number in known.items() if number == wanted}
        return winners

    def _is_numeric(self, column: int) -> bool:
        values = [row[column] for row in self.rows if row[column] is not None]
        return bool(values) and all(_number(value) is not None for value in values)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def __repr__(self) -> str:
        return format_table(self.columns, self.rows)


def _mean(numbers: Sequence[float]) -> float:
    try:
        return math.fsum(numbers) / len(numbers)
    except OverflowError:  # of the sum, not of the mean
        return math.fsum(one / len(numbers) for one in numbers)
    except ValueError:  # of both infinities
        return math.nan


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: object) -> float | None:
    if isinstance(value, Spread):
        value = value.mean
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _latex(value: object, *, bold: bool) -> str:
    if isinstance(value, Spread):
        told = value.told(r"\pm")
        return f"$\\mathbf{{{told}}}$" if bold else f"${told}$"
    text = _escape(_text(value))
    return f"\\textbf{{{text}}}" if bold else text


def _escape(text: str) -> str:
    names = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(names.get(one, f"\\{one}" if one in "&%$#_{}" else one) for one in text)
