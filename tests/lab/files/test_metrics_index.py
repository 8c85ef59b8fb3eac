import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai.lab.files import metrics_index, metrics_writer
from ai.lab.files.metrics_columns import read_columns, read_table
from ai.lab.files.metrics_file import each_row, read_rows
from ai.lab.files.metrics_index import Index, index_of, last_values, load_index, read_indexed
from ai.lab.files.metrics_writer import MetricsWriter


@pytest.fixture
def path(tmp_path, monkeypatch):
    for module in (metrics_index, metrics_writer):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(metrics_writer, "time", SimpleNamespace(time=lambda: 1e9 + 0.125))  # as many bytes each time
    path = tmp_path / "metrics.jsonl"
    append(path, range(50))
    return path


def append(path, steps) -> None:
    writer = MetricsWriter(path)
    for step in steps:
        writer.write(step, {"loss": step / 3, **({"val": 1.0} if step % 10 == 0 else {})})
    writer.close()


def same(left, right) -> None:
    assert left.keys() == right.keys()
    for key in left:
        for a, b in zip(left[key], right[key], strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_index_is_written_with_the_file_and_tells_what_the_lines_do(path):
    covered = load_index(path)[1]
    assert path.stat().st_size - 1000 < covered <= path.stat().st_size
    same(read_indexed(path), read_columns(path))
    assert read_columns(path)["loss"][0].tolist() == list(range(50))
    assert read_columns(path)["val"][0].tolist() == [0, 10, 20, 30, 40]


def test_rows_appended_later_extend_it(path):
    before = load_index(path)[1]
    append(path, range(50, 100))
    assert load_index(path)[1] > before
    same(read_indexed(path), read_columns(path))


def test_a_file_cut_and_written_anew_keeps_the_blocks_that_still_hold(path):
    writer = MetricsWriter(path)
    writer.drop_from(30)
    writer.close()
    kept = load_index(path)[1]
    assert 0 < kept < path.stat().st_size + 1
    append(path, range(1000, 1100))
    assert load_index(path)[1] > kept
    same(read_indexed(path), read_columns(path))
    assert read_columns(path)["loss"][0].tolist() == [*range(30), *range(1000, 1100)]


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xff" * 64, None])
def test_a_damaged_or_missing_index_is_left_aside_and_written_anew(path, damage):
    index = index_of(path)
    if damage is None:
        index.unlink()
    else:
        index.write_bytes(damage)
    assert load_index(path)[1] == 0
    same(read_indexed(path), read_columns(path))
    append(path, range(50, 100))
    assert load_index(path)[1] > 0
    same(read_indexed(path), read_columns(path))


def test_every_cut_of_the_index_is_survived(path):
    index = index_of(path)
    whole = index.read_bytes()
    for length in range(0, len(whole), 97):
        index.write_bytes(whole[:length])
        same(read_indexed(path), read_columns(path))


def test_a_short_file_gets_no_index(tmp_path):
    append(tmp_path / "metrics.jsonl", range(3))
    Index(tmp_path / "metrics.jsonl").extend()
    assert not index_of(tmp_path / "metrics.jsonl").exists()
    assert load_index(tmp_path / "missing.jsonl")[1] == 0


def write_rows(path, rows) -> None:
    writer = MetricsWriter(path)
    for step, row in enumerate(rows):
        writer.write(step, row)
    writer.close()


def test_of_a_killed_run_only_what_its_index_lacks_is_read(path, monkeypatch):
    path = path.with_name("long.jsonl")
    monkeypatch.setattr(metrics_index, "_END_BYTES", 200)
    write_rows(path, [{"loss": 0.5}] * 95)
    read, read_lines = [], metrics_index.read_lines
    monkeypatch.setattr(metrics_index, "read_lines", lambda *how: read.append(read_lines(*how)) or read[-1])
    last = last_values(path)
    assert (last["step"], last["loss"]) == (94, 0.5)
    assert 0 < sum(map(len, read)) < 1000 < path.stat().st_size / 3


@pytest.mark.parametrize("at", [0, 40, 85, 89])
def test_a_key_of_long_ago_is_found_in_the_index_or_after_it(path, monkeypatch, at):
    path = path.with_name("long.jsonl")
    monkeypatch.setattr(metrics_index, "_END_BYTES", 200)
    write_rows(path, [{"loss": 0.5, **({"rare": 3.0} if step == at else {})} for step in range(90)])
    last = last_values(path)
    assert {key: last[key] for key in ("step", "loss", "rare")} == {"step": 89, "loss": 0.5, "rare": 3.0}


def test_of_a_column_in_the_index_the_end_alone_is_read(path, monkeypatch):
    path = path.with_name("long.jsonl")
    monkeypatch.setattr(metrics_index, "_END_BYTES", 200)
    rows = [{"loss": step / 3, **({"val": step / 7} if step % 30 == 0 else {})} for step in range(3000)]
    write_rows(path, [{"first": 5.0}, *rows])
    size = path.stat().st_size
    reads = []
    monkeypatch.setattr(metrics_index, "read_indexed_table", lambda path: pytest.fail("the whole was read"))
    monkeypatch.setattr(metrics_index, "each_row", lambda path, start: reads.append(start) or each_row(path, start))
    writer = MetricsWriter(path)
    last = writer.last()
    writer.close()
    assert {key: last[key] for key in ("step", "loss", "val", "first")} == {
        "step": 3000,
        "loss": 2999 / 3,
        "val": 2970 / 7,
        "first": 5.0,
    }
    assert last == read_table(path).last()
    assert reads[0] > size - 2000


VALUES = st.floats() | st.none()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", 'c"', "d, "]), VALUES, min_size=1), max_size=6))
def test_the_last_line_tells_the_last_values_only_where_no_other_key_is(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "time": 0.0, **row}) + "\n" for i, row in enumerate(rows)))
    expected = {}
    for row in read_rows(path):
        expected |= row
    for few in (metrics_index._FEW, 0):  # looked for by a pattern, and listed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics_index, "_FEW", few)
            assert repr(sorted(last_values(path).items())) == repr(sorted(expected.items()))


def test_the_last_values_are_known_without_reading_the_file(path):
    writer = MetricsWriter(path)  # of an earlier session: read once
    assert writer.last()["step"] == 49
    assert (writer.last()["loss"], writer.last()["val"]) == (49 / 3, 1.0)
    writer.write(50, {"other": 2})
    assert (writer.last()["step"], writer.last()["other"], writer.last()["val"]) == (50, 2, 1.0)
    writer.drop_from(20)
    assert writer.last()["step"] == 19
    assert "other" not in writer.last()
    writer.close()
