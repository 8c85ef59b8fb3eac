"""Packs: what did not change is not decoded again, and nothing lies about for ever."""

import io
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ai.data import ImgDataset, packs
from ai.data.images.decode import Decoder


def save(root, name, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).save(root / name)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for k, name in enumerate(("b.png", "d.png", "f.png")):
        save(folder, name, k)
    return folder


@pytest.fixture
def decoded(monkeypatch, tmp_path):
    """Names of the files that were decoded."""
    names = []
    decode = Decoder.__call__

    def told(self, content):
        pictures = sorted((tmp_path / "set").rglob("*.png"))
        names.append(next(path.name for path in pictures if path.read_bytes() == content))
        return decode(self, content)

    monkeypatch.setattr(Decoder, "__call__", told)
    return names


def load(root, **options):
    return ImgDataset(root, 6, cache=root.parent / "packs", **options)


def test_only_new_and_changed_files_are_decoded(root, decoded):
    load(root)
    decoded.clear()
    for k, name in enumerate(("a.png", "e.png", "d.png")):
        save(root, name, 10 + k)
    os.remove(root / "b.png")
    ds = load(root)
    assert sorted(decoded) == ["a.png", "d.png", "e.png"]
    assert ds.files == ["a.png", "d.png", "e.png", "f.png"]
    for image, name in zip(ds.data["x"], ds.files, strict=True):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(root / name)))
    assert len(packs(root.parent / "packs")) == 1  # the one before is gone


def test_packs_made_in_another_way_are_neither_used_nor_removed(root, decoded):
    load(root)
    load(root, mode="L")
    decoded.clear()
    save(root, "a.png", 3)
    load(root, mode="L")
    assert decoded == ["a.png"]
    load(root)
    assert decoded == ["a.png", "a.png"]
    assert sorted(pack.n_images for pack in packs(root.parent / "packs")) == [4, 4]


def test_packs_are_listed_and_cleared(root):
    cache = root.parent / "packs"
    assert packs(cache) == []
    ds = load(root)
    (pack,) = packs(cache)
    assert (pack.root, pack.n_images) == (str(root), 3)
    assert pack.n_bytes == sum(file.stat().st_size for file in pack.path.iterdir())
    pixels = ds.data["x"].clone()
    pack.clear()
    assert packs(cache) == []
    assert np.array_equal(ds.data["x"], pixels)  # who has it open keeps it
    assert np.array_equal(load(root).data["x"], pixels)


def test_the_pack_used_last_comes_first(root):
    load(root)
    load(root, mode="L")
    os.utime(packs(root.parent / "packs")[0].path, (1, 1))
    load(root)
    assert packs(root.parent / "packs")[0].used > packs(root.parent / "packs")[1].used
    for pack in packs(root.parent / "packs"):
        os.utime(pack.path, (1, 1))
    load(root)  # no decoding, but a use
    assert [pack.used == 1 for pack in packs(root.parent / "packs")] == [False, True]


@pytest.mark.parametrize("name", ["files.json", "images.npy", "sources.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_pack_is_made_anew_and_hides_no_other(root, name, content):
    cache = root.parent / "packs"
    pixels = load(root).data["x"].clone()
    (pack,) = packs(cache)
    load(root, mode="L")
    (pack.path / name).write_bytes(content)
    assert len(packs(cache)) == 2
    again = load(root)
    assert np.array_equal(again.data["x"], pixels)
    assert again.files == ["b.png", "d.png", "f.png"]
    save(root, "a.png", 3)  # the damaged one is no earlier pack to take from
    assert np.array_equal(load(root).data["x"][1:], pixels)


def test_sizes_are_whole_numbers_of_any_library(root):
    assert load(root).data["x"].shape == ImgDataset(root, np.int64(6), cache=root.parent / "p").data["x"].shape
    with pytest.raises(ValueError, match=r"imsize must be a whole number of pixels or .* got 8\.5"):
        ImgDataset(root, 8.5)


def test_a_pack_of_a_format_before_is_made_anew_and_removed(root, decoded):
    load(root)
    (pack,) = packs(root.parent / "packs")
    sources = json.loads((pack.path / "sources.json").read_text())
    (pack.path / "sources.json").write_text(json.dumps({**sources, "format": 3, "marks": [[1, 2]] * 3}))
    (pack.path / "files.json").write_text(json.dumps(["b.png", "d.png", "f.png"]))
    for newer in ("names.json", "marks.npy", "digests.npy"):
        (pack.path / newer).unlink()
    older = pack.path.rename(pack.path.with_name("older"))
    assert [pack.n_images for pack in packs(root.parent / "packs")] == [0]
    decoded.clear()
    load(root)
    assert sorted(decoded) == ["b.png", "d.png", "f.png"]
    assert not older.exists()


def test_a_picture_rewritten_with_equal_size_and_time_is_decoded_again(root):
    name = root / "b.bmp"
    for seed in (7, 8):
        save(root, "b.bmp", seed)
        os.utime(name, ns=(10**18, 10**18))
        status = os.stat(name)
        assert (status.st_size, status.st_mtime_ns) == (174, 10**18)
        assert np.array_equal(load(root).data["x"][0].permute(1, 2, 0), np.asarray(Image.open(name)))
    # and at once after a pack was made, however coarse the clock of the files
    for seed in range(20, 30):
        with open(name, "r+b") as file:
            pixels = np.random.default_rng(seed).integers(0, 256, 100, np.uint8)
            file.seek(54)
            file.write(pixels.tobytes())
        assert np.array_equal(load(root).data["x"][0].permute(1, 2, 0), np.asarray(Image.open(name)))


def test_folders_of_one_moment_that_change_places_change_their_pixels(tmp_path, monkeypatch):
    root = tmp_path / "set"
    contents = []
    for value in range(2):
        buffer = io.BytesIO()
        Image.new("RGB", (6, 6), (value, 0, 0)).save(buffer, "bmp")
        contents.append(buffer.getvalue())
    files = [root / name / "a.bmp" for name in ("one", "two")]
    for file in files:
        file.parent.mkdir(parents=True)
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    look = os.stat

    def in_one_moment(path, *, dir_fd=None, **options):
        if dir_fd is None:
            return look(path, **options)
        found = look(path, dir_fd=dir_fd)
        names = ("st_mode", "st_size", "st_ino", "st_dev")
        return SimpleNamespace(st_ctime_ns=10**18 + 1, **{name: getattr(found, name) for name in names})

    monkeypatch.setattr("ai.data.images.folder.os.stat", in_one_moment)
    assert load(root).data["x"][:, 0, 0, 0].tolist() == [0, 1]
    (root / "one").rename(tmp_path / "x")
    (root / "two").rename(root / "one")
    (tmp_path / "x").rename(root / "two")
    assert load(root).data["x"][:, 0, 0, 0].tolist() == [1, 0]


def test_times_of_whole_seconds_are_waited_for(monkeypatch):
    from ai.data.images import pack
    from ai.data.images.folder import Found

    waited = []
    for changed, now in ((5 * 10**9, 5.5), (5 * 10**9 + 1, 5.001), (5 * 10**9, 7.1), (9 * 10**9, 5.0)):
        clock = SimpleNamespace(time_ns=lambda now=now: round(now * 1e9), sleep=waited.append)
        monkeypatch.setattr(pack, "time", clock)
        pack._let_tick(Found(["a"], np.array([[1, changed, 0]]), {}))
    assert waited == [pytest.approx(1.5), pytest.approx(0.019), 2.0]


def test_files_that_were_touched_renamed_or_copied_are_not_decoded_again(root, decoded):
    before = load(root).data["x"].clone()
    decoded.clear()
    os.utime(root / "b.png")
    os.chmod(root / "d.png", 0o600)
    os.rename(root / "f.png", root / "a.png")
    shutil.copy(root / "b.png", root / "c.png")
    ds = load(root)
    assert decoded == []
    assert ds.files == ["a.png", "b.png", "c.png", "d.png"]
    assert torch.equal(ds.data["x"], before[[2, 0, 0, 1]])
    assert len(packs(root.parent / "packs")) == 1


def test_a_pack_knows_what_it_skipped(root):
    (root / "c.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"skipped 1 files in .*: c\.png"):
        first = load(root, on_error="skip")
    again = load(root, on_error="skip")
    assert first.files == again.files == ["b.png", "d.png", "f.png"]
    assert torch.equal(first.data["x"], again.data["x"])
