import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ai.lab.files.metrics_columns import read_columns
from ai.lab.files.metrics_file import parse_rows, read_rows
from ai.lab.files.metrics_index import last_values
from ai.lab.files.metrics_writer import MetricsWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(path: Path, rows: dict[int, dict[str, float]]) -> None:
    writer = MetricsWriter(path)
    for step, values in rows.items():
        writer.write(step, values)
    writer.close()


def test_each_row_is_one_json_object_a_line_with_step_and_time_first(path):
    write(path, {3: {"loss": 0.5, "n": 7}})
    (line,) = path.read_text().splitlines()
    row = json.loads(line)
    assert list(row) == ["step", "time", "loss", "n"]
    assert (row["step"], row["loss"], row["n"]) == (3, 0.5, 7)


def test_values_come_back_exactly(path):
    values = np.random.default_rng(0).standard_normal(100)
    write(path, {i: {"x": float(v)} for i, v in enumerate(values)})
    steps, _times, read = read_columns(path)["x"]
    assert (read == values).all()
    assert (steps == np.arange(100)).all()


def test_a_key_that_comes_and_goes_keeps_its_steps(path):
    write(path, {0: {"a": 1}, 1: {"a": 2, "b": 5}, 2: {"b": 6}})
    columns = read_columns(path)
    assert columns["a"][0].tolist() == [0, 1]
    assert columns["b"][0].tolist() == [1, 2]
    assert columns["b"][2].tolist() == [5, 6]


def test_nan_and_infinities_come_back(path):
    write(path, {0: {"a": math.nan, "b": math.inf, "c": -math.inf}})
    last = last_values(path)
    assert math.isnan(last["a"])
    assert (last["b"], last["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("value", [torch.tensor(0.5), torch.tensor([0.5]).sum(), np.float32(0.5), np.array(0.5)])
def test_tensors_and_arrays_of_one_number_are_taken(path, value):
    write(path, {0: {"x": value}})
    assert read_rows(path)[0]["x"] == 0.5


def test_int64_steps_of_numpy_stay_whole_numbers(path):
    write(path, {0: {"x": np.int64(7), "y": True}})
    assert '"x":7' in path.read_text()
    assert read_rows(path)[0]["y"] == 1


@pytest.mark.parametrize(
    ("step", "values", "error", "message"),
    [
        (0, {"x": torch.zeros(3)}, TypeError, r"metric 'x' must be one number, got a Tensor of shape \(3,\)"),
        (0, {"x": "fast"}, TypeError, "metric 'x' must be one number, got 'fast'|got a str"),
        (0, {"x": "0.5"}, TypeError, "metric 'x' must be one number"),
        (0, {"x": None}, TypeError, "metric 'x' must be one number, got a NoneType"),
        (0, {"x": [1, 2]}, TypeError, "metric 'x' must be one number, got a list"),
        (0, {"step": 1.0}, ValueError, "metric key 'step' is reserved"),
        (0, {"time": 1.0}, ValueError, "metric key 'time' is reserved"),
        (0, {"": 1.0}, ValueError, "metric keys must not be empty"),
        (0, {3: 1.0}, TypeError, "metric keys must be text, got 3"),
        (0.5, {"x": 1.0}, TypeError, "step must be an int, got 0.5"),
    ],
)
def test_what_is_no_number_is_refused_before_anything_is_written(path, step, values, error, message):
    writer = MetricsWriter(path)
    with pytest.raises(error, match=message):
        writer.write(step, values)
    assert path.read_bytes() == b""
    writer.close()


def test_a_torn_last_line_is_ignored_by_readers_and_cut_by_the_next_writer(path):
    write(path, {0: {"a": 1}, 1: {"a": 2}})
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[1]) + 1):
        path.write_bytes(whole[:-cut])
        assert [row["step"] for row in read_rows(path)] == [0]
        write(path, {5: {"a": 3}})
        assert [row["step"] for row in read_rows(path)] == [0, 5]


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_damage_in_the_middle_costs_no_other_row(noise):
    good = [json.dumps({"step": i, "time": 0.0, "a": i}).encode() for i in range(len(noise) + 1)]
    data = good[0] + b"\n"
    for line, bad in zip(good[1:], noise, strict=True):
        data += bad.replace(b"\n", b" ") + b"\n" + line + b"\n"
    kept = [row["step"] for row in parse_rows(data) if row.get("a") == row["step"]]
    assert kept == list(range(len(noise) + 1))


def test_cutting_to_an_earlier_length_drops_what_came_later(path):
    writer = MetricsWriter(path)
    writer.write(0, {"a": 1})
    end = writer.end
    writer.write(1, {"a": 2})
    assert writer.cut(end)
    writer.write(2, {"a": 3})
    writer.close()
    assert [row["step"] for row in read_rows(path)] == [0, 2]


def test_a_length_that_is_no_line_end_cuts_nothing(path):
    writer = MetricsWriter(path)
    writer.write(0, {"a": 1})
    assert not writer.cut(3)
    assert not writer.cut(10_000)
    assert len(read_rows(path)) == 1
    assert writer.drop_from(0) == 1
    writer.write(9, {"a": 1})
    writer.close()
    assert [row["step"] for row in read_rows(path)] == [9]


@pytest.mark.parametrize("at", [0, 1500, 2999])
def test_a_last_value_is_told_wherever_in_a_long_file_it_stands(path, at):
    write(path, {i: {"loss": i, **({'ra"re, "x': 1.0} if i == at else {})} for i in range(3000)})
    assert path.stat().st_size > 2 << 16
    last = last_values(path)
    assert (last["step"], last["loss"], last['ra"re, "x']) == (2999, 2999, 1.0)


def test_a_missing_file_has_no_rows(path):
    assert read_rows(path) == []
    assert read_columns(path) == {}
    assert last_values(path) == {}


def test_every_row_acknowledged_before_kill_9_is_there(path):
    script = (
        "import sys; from pathlib import Path; from ai.lab.files.metrics_writer import MetricsWriter\n"
        f"writer = MetricsWriter(Path({str(path)!r}))\n"
        "for step in range(10**9):\n"
        "    writer.write(step, {'loss': step * 0.1})\n"
        "    sys.stdout.write(f'{step}\\n'); sys.stdout.flush()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 500:
            process.kill()
            break
    acknowledged = [int(line), *(int(rest) for rest in process.stdout.read().split("\n")[:-1])][-1]
    process.stdout.close()
    process.wait()
    steps = [row["step"] for row in read_rows(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > acknowledged


def test_a_full_disk_gives_one_clear_error_and_leaves_the_rows_before_intact(path, monkeypatch):
    writer = MetricsWriter(path)
    writer.write(0, {"a": 1})
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 10:  # what still fits is taken, the rest is refused
            return real(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device; rows up to here are intact"):
        writer.write(1, {"a": 2})
    monkeypatch.undo()
    writer.write(2, {"a": 3})
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 2]
