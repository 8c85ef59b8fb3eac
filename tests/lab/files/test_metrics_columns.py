import itertools
import json
import time

import numpy as np
import pytest

from ai.lab.files.metrics_columns import Growing, Table, read_columns


def table_of(*rows: object) -> Table:
    table = Table()
    table.add(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return table


GOOD = {"step": 3, "time": 1.0, "loss": 0.5}


@pytest.mark.parametrize(
    "bad",
    [
        None, [], 7, "x", {}, {"step": 1}, {"step": "1", "time": 1.0, "loss": 1}, {"step": 2**63, "time": 1, "loss": 1},
        {"step": 1.5, "time": 1.0, "loss": 1}, {"step": True, "time": 1.0}, {"step": 1, "time": [], "loss": 1},
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_costs_no_other(bad):
    table = table_of(GOOD, bad, {**GOOD, "step": 4})
    assert table.columns()["loss"][0].tolist() == [3, 4]
    assert table.damaged == 1


@pytest.mark.parametrize("bad", [10**400, [1], {"a": 1}, "0.5", None, True])
def test_a_value_that_is_no_number_is_left_out(bad):
    table = table_of(GOOD, {"step": 4, "time": 2.0, "loss": bad, "other": 7}, {**GOOD, "step": 5})
    assert table.columns()["loss"][0].tolist() == [3, 5]
    assert table.columns()["other"][2].tolist() == [7]
    assert table.damaged == 1


def test_rows_with_their_keys_in_another_order_are_rows():
    table = table_of({"loss": 1, "time": 1.0, "step": 2}, GOOD)
    assert table.columns()["loss"][0].tolist() == [2, 3]
    assert table.columns()["loss"][2].tolist() == [1, 0.5]


def test_a_key_of_several_kinds_of_row_comes_in_the_order_of_writing():
    rng = np.random.default_rng(0)
    rows = [{"step": i, "time": 0.0, **{k: float(i) for k in "abc" if rng.random() < 0.5}} for i in range(200)]
    table = Table()
    for row in rows:  # one by one, as a live file is followed
        table.add(json.dumps(row).encode() + b"\n")
    for key in "abc":
        expected = [row["step"] for row in rows if key in row]
        assert table.columns()[key][0].tolist() == expected
        assert table.columns()[key][2].tolist() == expected
        assert table.last()[key] == expected[-1]
    assert table.last()["step"] == 199


def test_what_was_given_out_stays_as_it_was_and_is_not_copied():
    growing = Growing(np.int64)
    growing.append(np.arange(5))
    views = [growing.view]
    for start in range(5, 2000):
        growing.append(np.array([start]))
        views.append(growing.view)
    assert views[0].tolist() == [0, 1, 2, 3, 4]
    assert views[-1].tolist() == list(range(2000))
    assert sum(a.base is b.base for a, b in itertools.pairwise(views)) > 1900


def test_a_large_file_needs_less_memory_than_disk(tmp_path):
    path = tmp_path / "metrics.jsonl"
    keys = [f"metric_{index}" for index in range(10)]
    with open(path, "w") as file:
        for step in range(3000):
            file.write(json.dumps({"step": step, "time": 1.7e9 + step, **{key: step / 7 for key in keys}}) + "\n")
    table = Table()
    table.add(path.read_bytes())
    assert table.nbytes < path.stat().st_size
    assert read_columns(path)["metric_9"][2][-1] == 2999 / 7


def test_a_row_of_very_many_keys_is_read_in_time_that_grows_with_it_alone():
    row = {"step": 1, "time": 1.0, **{f"norm/{index}": float(index) for index in range(30_000)}}
    began = time.process_time()
    table = table_of(row)
    assert table.last() == row
    assert table.columns()["norm/29999"][2].tolist() == [29999.0]
    assert time.process_time() - began < 3  # a fifth of a second; looking for each among all took half a minute
