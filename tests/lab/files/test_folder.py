import errno
import json
import threading
from pathlib import Path

import pytest

from ai.lab import Study
from ai.lab.files.folder import MARKER, LabPathError, find, lab_root, mark, read_marker, resolve, scan, write_atomic


def test_relative_paths_start_at_the_labs_root(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path / "lab"))
    assert lab_root() == tmp_path / "lab"
    assert resolve("a/b") == tmp_path / "lab" / "a" / "b"
    assert resolve(tmp_path / "x") == tmp_path / "x"
    monkeypatch.delenv("AI_LAB_PATH")
    monkeypatch.chdir(tmp_path)
    assert resolve("a") == tmp_path / "ai-lab" / "a"


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert resolve("~/runs/a") == tmp_path / "home" / "runs" / "a"
    assert resolve(Path("~/runs/a")) == tmp_path / "home" / "runs" / "a"
    monkeypatch.setenv("AI_LAB_PATH", "~/lab")
    assert resolve("a") == tmp_path / "home" / "lab" / "a"
    assert list(tmp_path.iterdir()) == []  # no folder called ~


def test_a_root_that_is_no_folder_is_named_with_its_variable(tmp_path, monkeypatch):
    file = tmp_path / "notes.txt"
    file.write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    for given, there in [(file, file), (file / "lab", file), ("notes.txt", file), ("link", tmp_path / "link")]:
        monkeypatch.setenv("AI_LAB_PATH", str(given))
        with pytest.raises(LabPathError, match=rf"^AI_LAB_PATH \({given}\) must be a folder, and {there} is none$"):
            resolve("a")
        assert resolve(tmp_path / "x") == tmp_path / "x"  # which does not lie there
    monkeypatch.setenv("AI_LAB_PATH", "")
    assert lab_root() == tmp_path / "ai-lab"
    (tmp_path / "ai-lab").write_text("")
    with pytest.raises(LabPathError, match=r"^AI_LAB_PATH \(not set, so ./ai-lab\) must be a folder, and .* is none$"):
        resolve("a")
    assert file.read_text() == (tmp_path / "ai-lab").read_text() == ""


def test_a_folder_that_cannot_be_made_is_named_by_what_gave_it(tmp_path, monkeypatch):
    def full(self, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", "/sealed")

    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path / "sealed"))
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(
        LabPathError,
        match=r"^AI_LAB_PATH \(.*/sealed\) must be a folder in which 'a' can be made: Permission denied: /sealed$",
    ):
        mark(resolve("a"), "trial")
    with pytest.raises(
        PermissionError, match=r"^path \(.*/b\) must be a folder that can be made: Permission denied: /sealed$"
    ):
        mark(tmp_path / "b", "trial")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("path", ["..", "../outside", "a/../../outside", "."])
def test_a_relative_path_out_of_the_root_is_refused(path):
    with pytest.raises(ValueError, match=r"must lie inside the lab's root .* or be absolute, got"):
        resolve(path)


def test_an_empty_path_is_refused():
    with pytest.raises(ValueError, match="path must name a folder, got an empty string"):
        resolve("")


def test_identity_survives_moving(tmp_path):
    identity = mark(tmp_path / "a", "trial")
    (tmp_path / "a").rename(tmp_path / "b")
    assert mark(tmp_path / "b", "trial") == identity


def test_another_kind_is_refused(tmp_path):
    mark(tmp_path / "a", "study")
    with pytest.raises(ValueError, match="holds a recorded study, not a trial"):
        mark(tmp_path / "a", "trial")


@pytest.mark.parametrize("path", [".t", "in/.t", ".in/t"])
def test_a_path_in_the_lab_that_no_list_would_show_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path / ".lab"))
    with pytest.raises(ValueError, match="path must have no part that begins with a dot, where no list looks, got"):
        resolve(path)
    assert resolve("./t") == tmp_path / ".lab" / "t"
    study = Study("s")
    with pytest.raises(ValueError, match="name must have no part that begins with a dot, where no list looks, got"):
        study.trial(path)


def test_a_strangers_folder_is_neither_taken_nor_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty and was not made by ai\.lab"):
        mark(tmp_path, "trial")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        mark(tmp_path / "file", "trial")


def test_a_later_format_is_refused_by_number(tmp_path):
    mark(tmp_path, "trial")
    (tmp_path / MARKER).write_text(json.dumps({"kind": "trial", "id": "x", "format": 99}))
    with pytest.raises(ValueError, match="is of folder format 99, this version reads up to 1"):
        read_marker(tmp_path)
    assert list(find(tmp_path)) == []


@pytest.mark.parametrize("text", ["null", "[]", "7", "{", '{"kind": "trial"}', '{"kind": 3, "id": "x", "format": 1}'])
def test_a_damaged_marker_is_named_and_hides_no_other_folder(tmp_path, text):
    for name in "ab":
        mark(tmp_path / name, "trial")
    (tmp_path / "a" / MARKER).write_text(text)
    with pytest.raises(ValueError, match=r"a: \.ai-lab is damaged: "):
        read_marker(tmp_path / "a")
    assert [path.name for path in find(tmp_path)] == ["b"]
    assert [(path.name, bool(problem)) for path, _, problem in scan(tmp_path)] == [("a", True), ("b", False)]


@pytest.mark.parametrize("kind", ["trial", "experiment", "study"])
def test_nothing_is_recorded_in_a_trials_folder(tmp_path, kind):
    mark(tmp_path / "mnist", "trial")
    with pytest.raises(ValueError, match=r"mnist/deep/lr lies in the folder of the trial .*mnist; choose another path"):
        mark(tmp_path / "mnist" / "deep" / "lr", kind)
    assert not (tmp_path / "mnist" / "deep").exists()


def test_of_threads_that_mark_at_once_all_get_the_same_identity(tmp_path):
    barrier, identities = threading.Barrier(8), []

    def make() -> None:
        barrier.wait()
        identities.append(mark(tmp_path / "a", "trial"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(identities) == 8
    assert len(set(identities)) == 1


def test_find_lists_marked_folders_by_kind(tmp_path):
    for name, kind in {"s": "study", "s/a": "trial", "s/e": "experiment", "s/e/trials/0": "trial"}.items():
        mark(tmp_path / name, kind)
    assert [str(p.relative_to(tmp_path)) for p in find(tmp_path)] == ["s", "s/a", "s/e", "s/e/trials/0"]
    assert [str(p.relative_to(tmp_path)) for p in find(tmp_path, "trial")] == ["s/a", "s/e/trials/0"]


def test_a_failed_atomic_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "meta.json"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("refused")))
    with pytest.raises(OSError, match="refused"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in Path(tmp_path).iterdir()] == ["meta.json"]
