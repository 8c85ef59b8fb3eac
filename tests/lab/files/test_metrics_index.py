import numpy as np
import pytest

from ai.lab.files import metrics_index as columns
from ai.lab.files.metrics_file import MetricsWriter, read_columns
from ai.lab.files.metrics_index import load_columns, read_indexed, save_columns


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "MIN_BYTES", 100)
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


def test_the_index_tells_what_the_lines_do(path):
    assert save_columns(path)
    assert load_columns(path)[1] == path.stat().st_size
    same(read_indexed(path), read_columns(path))


def test_rows_appended_later_are_read_from_the_lines(path):
    save_columns(path)
    append(path, range(50, 61))
    same(read_indexed(path), read_columns(path))


def test_a_file_cut_and_written_anew_is_not_taken_for_the_old_one(path):
    save_columns(path)
    writer = MetricsWriter(path)
    writer.drop_from(20)
    writer.close()
    append(path, range(1000, 1100))
    assert load_columns(path) == ({}, 0)
    same(read_indexed(path), read_columns(path))


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xff" * 64, None])
def test_a_damaged_or_missing_index_is_left_aside(path, damage):
    save_columns(path)
    index = path.with_suffix(".columns")
    if damage is None:
        index.unlink()
    else:
        index.write_bytes(damage)
    same(read_indexed(path), read_columns(path))


def test_every_cut_of_the_index_is_survived(path):
    save_columns(path)
    index = path.with_suffix(".columns")
    whole = index.read_bytes()
    for length in range(0, len(whole), 97):
        index.write_bytes(whole[:length])
        same(read_indexed(path), read_columns(path))


def test_a_short_file_gets_no_index(tmp_path):
    append(tmp_path / "metrics.jsonl", range(3))
    assert not save_columns(tmp_path / "metrics.jsonl")
    assert not save_columns(tmp_path / "missing.jsonl")
