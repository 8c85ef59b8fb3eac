"""Packs: what did not change is not decoded again, and nothing lies about for ever."""

import os

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
def decoded(monkeypatch):
    names = []
    decode = Decoder.__call__
    monkeypatch.setattr(
        Decoder, "__call__", lambda self, path: names.append(os.path.basename(path)) or decode(self, path)
    )
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


def test_a_pack_of_the_format_before_is_taken_over_without_decoding(tmp_path, monkeypatch):
    from ai.data.images import pack

    Image.new("RGB", (9, 9), (10, 20, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(pack, "_FORMAT", 2)
    before = ImgDataset(tmp_path, 8, cache=tmp_path / "packs").sample(1)["x"]
    monkeypatch.undo()
    monkeypatch.setattr(pack.Decoder, "__call__", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(ImgDataset(tmp_path, 8, cache=tmp_path / "packs").sample(1)["x"], before)
    assert len(packs(tmp_path / "packs")) == 1
