import math

import pytest

from ai.lab.report.table import Spread, Table

TABLE = Table(
    ["run", "accuracy", "loss", "n_50%"],
    [["a|b", Spread(0.9123, 0.0042, 3), 0.25, 1], ["c_d", Spread(0.95, math.nan, 1), math.nan, None]],
)


def test_a_spread_is_told_to_the_digits_that_are_certain():
    assert str(Spread.of([0.5, 0.52, 0.54])) == "0.52 ± 0.02"
    assert str(Spread.of([150.0, 170.0])) == "160 ± 14"
    assert str(Spread.of([0.5, 0.5])) == "0.5"
    assert str(Spread.of([1.0, 1.5, 2.9])) == "1.8 ± 1.0"  # a deviation of 1 alone would be off by up to a half
    assert str(Spread(0.5, 0.0996, 3)) == "0.50 ± 0.10"
    assert str(Spread(0.5, 0.2, 3)) == "0.5 ± 0.2"
    assert str(Spread.of([1e-9, 3e-9])) == "2e-09 ± 1.4e-09"
    assert math.isnan(Spread.of([math.nan, 1.0]).mean)
    assert Spread.of([2.0, 4.0]).std == math.sqrt(2)


def test_a_run_that_went_astray_has_a_spread_too():
    """One of them would hide the table, or end the search, for all others."""
    assert Spread.of([1e200, -1e200]) == (0.0, pytest.approx(math.sqrt(2) * 1e200), 2)
    assert str(Spread.of([1e200, -1e200])) == "0 ± 1.4e+200"
    assert Spread.of([1e308, 1e308]) == (1e308, 0.0, 2)
    assert math.isnan(Spread.of([math.inf, -math.inf]).mean)
    assert Spread.of([math.inf, 1.0]).mean == math.inf
    assert str(Spread.of([math.inf, 1.0])) == "inf"


def test_markdown_keeps_its_columns_whatever_a_cell_holds():
    assert TABLE.to_markdown(best={"accuracy": "max", "loss": "min"}).split("\n") == [
        "| run | accuracy | loss | n_50% |",
        "|---|---|---|---|",
        "| a\\|b | 0.912 ± 0.004 | **0.25** | 1 |",
        "| c_d | **0.95** | nan |  |",
    ]


def test_latex_escapes_what_it_must_and_sets_the_best_in_bold():
    assert TABLE.to_latex(best={"accuracy": "max"}).split("\n") == [
        "\\begin{tabular}{lrlr}",
        "\\toprule",
        "run & accuracy & loss & n\\_50\\% \\\\",
        "\\midrule",
        "a|b & $0.912 \\pm 0.004$ & 0.25 & 1 \\\\",
        "c\\_d & $\\mathbf{0.95}$ & nan &  \\\\",
        "\\bottomrule",
        "\\end{tabular}",
    ]


def test_pandas_has_mean_deviation_and_count_as_columns():
    frame = TABLE.to_pandas()
    assert list(frame) == ["run", "accuracy", "accuracy std", "accuracy n", "loss", "n_50%"]
    assert frame["accuracy n"].tolist() == [3, 1]


def test_a_wrong_best_is_named():
    with pytest.raises(ValueError, match=r"best must name columns \(run, accuracy, loss, n_50%\), got 'acc'"):
        TABLE.to_markdown(best={"acc": "max"})
    with pytest.raises(ValueError, match="best of 'loss' must be 'min' or 'max', got 'low'"):
        TABLE.to_latex(best={"loss": "low"})
