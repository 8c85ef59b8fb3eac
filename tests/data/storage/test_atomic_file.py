"""Files are whole or as they were, whatever happens while they are written."""

import os

import pytest

from ai.data.storage.atomic_file import write_atomic, write_beside


def test_a_file_is_replaced_whole_with_the_mode_of_the_users_other_files(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / "plain").touch()
    write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["file", "plain"]


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fill(file):
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_atomic(path, fill)
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path, lambda file: file.write(b"new"), prefix="x")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    assert [name for name in os.listdir(tmp_path.parent) if name.startswith("x")] == []


def test_a_temporary_file_lies_beside_its_place_under_the_prefix(tmp_path):
    made = write_beside(tmp_path / "file", lambda file: file.write(b"data"), prefix=".write-")
    assert made.parent == tmp_path
    assert made.name.startswith(".write-")
    assert made.read_bytes() == b"data"
