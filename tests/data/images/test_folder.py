"""Which files of a folder count as its images."""

import os

import pytest
from PIL import Image

from ai.data import ImgDataset
from ai.data.images.folder import find_images


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    for name in ("cat/a.PNG", "cat/b.jpg", "dog/deep/c.bmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def test_endings_count_in_either_case_and_hidden_names_do_not(root):
    for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
        (root / name).mkdir()
        Image.new("RGB", (4, 4)).save(root / name / "x.png")
    (root / "cat" / "._b.jpg").write_bytes(b"a Finder's note")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "png").write_text("no ending")
    (root / "cat" / "draft.eps").write_text("%!PS")
    found = find_images(root)
    assert found.files == ["cat/a.PNG", "cat/b.jpg", "dog/deep/c.bmp"]
    assert list(found.folders) == ["cat", "dog"]
    status = os.stat(root / "cat/a.PNG")
    assert found.marks[0].tolist() == [status.st_size, status.st_ctime_ns, status.st_ino]


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "f.png")
    (root / "fox").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "again").symlink_to(root)
    (root / "cat" / "linked.png").symlink_to(root / "cat" / "a.PNG")
    found = find_images(root)
    assert found.files == ["cat/a.PNG", "cat/b.jpg", "cat/linked.png", "dog/deep/c.bmp", "fox/f.png"]
    assert list(found.folders) == ["cat", "dog", "fox"]


def test_a_pipe_does_not_count_and_a_dangling_link_is_a_file_that_cannot_be_read(root, tmp_path):
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    assert "cat/pipe.png" not in find_images(root).files
    with pytest.raises(ValueError, match=r"cat/gone\.png is no image that can be read: .*No such file"):
        ImgDataset(root, 4, cache=tmp_path / "packs")
    with pytest.warns(UserWarning, match=r"skipped 1 files in .*: cat/gone\.png"):
        ds = ImgDataset(root, 4, cache=tmp_path / "packs", on_error="skip")
    assert ds.files == ["cat/a.PNG", "cat/b.jpg", "dog/deep/c.bmp"]


def test_links_that_lead_round_in_circles_are_files_that_cannot_be_read(root):
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    (root / "round").symlink_to(root / "round")
    found = find_images(root)
    assert found.files == ["cat/a.PNG", "cat/b.jpg", "cat/self.png", "dog/deep/c.bmp"]
    assert found.marks[2].tolist() == [-1, 0, 0]
    assert list(found.folders) == ["cat", "dog"]


def test_paths_are_sorted_whatever_lies_side_by_side(tmp_path):
    names = ["a-b/x.png", "a.png/y.png", "a/x.png", "a/b.png", "a0.png", "B.png", "a/b/c.png", "a/b.d/c.png", "z.PNG"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(len(name)))
    found = find_images(tmp_path)
    assert found.files == sorted(names)
    assert found.marks[:, 0].tolist() == [len(name) for name in found.files]
    assert list(found.folders.items()) == [("a-b", 1), ("a.png", 1), ("a", 4)]
