"""Folders behind URLs: the same rules as for local ones, and contents that are proved."""

import io
import json
import sys
import zipfile

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from ai.data import ImgDataset, packs
from ai.data.images.decode import Decoder
from ai.data.storage.remote import RemoteFolder, local_path


def png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)).save(file, "bmp")
    return file.getvalue()


@pytest.fixture
def names():
    return {"cat/a.BMP": 0, "cat/deep/b.bmp": 1, "dog/c.bmp": 2}


@pytest.fixture
def memory(names):
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    for name, seed in names.items():
        files.pipe(f"/set/{name}", png(seed))
    files.pipe("/set/cat/.hidden.bmp", b"no image")
    files.pipe("/set/__MACOSX/x.bmp", b"no image")
    files.pipe("/set/notes.txt", b"no image")
    yield files
    files.rm("/set", recursive=True)


@pytest.fixture
def local(tmp_path, names):
    for name, seed in names.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(png(seed))
    return tmp_path / "set"


def load(path, tmp_path, **options):
    return ImgDataset(path, 6, cache=tmp_path / "packs", **options)


def test_a_folder_behind_a_url_is_as_a_local_one(memory, local, tmp_path):
    here = load(local, tmp_path, labels="folder")
    for url in ("memory://set", "memory:///set/", f"file://{local}"):
        there = load(url, tmp_path, labels="folder")
        assert there.files == here.files == ["cat/a.BMP", "cat/deep/b.bmp", "dog/c.bmp"]
        assert torch.equal(there.data["x"], here.data["x"])
        assert (there.classes, there.data["y"].tolist()) == (("cat", "dog"), [0, 0, 1])
    assert [pack.root for pack in packs(tmp_path / "packs")].count("memory:///set") == 1


def test_labels_lie_in_the_folder_or_at_a_url(memory, tmp_path):
    table = "".join(f"{name},{label}\n" for name, label in (("cat/a.BMP", 1), ("cat/deep/b.bmp", 0), ("dog/c.bmp", 1)))
    memory.pipe("/set/labels.csv", table.encode())
    memory.pipe("/other.json", json.dumps({"cat/a.BMP": "x", "cat/deep/b.bmp": "y", "dog/c.bmp": "x"}).encode())
    assert load("memory://set", tmp_path, labels="labels.csv").data["y"].tolist() == [1, 0, 1]
    assert load("memory://set", tmp_path, labels="memory://other.json").data["y"].tolist() == [0, 1, 0]
    with pytest.raises(FileNotFoundError, match=r"there is no file memory://set/none\.csv"):
        load("memory://set", tmp_path, labels="none.csv")


def test_only_what_changed_is_decoded_however_like_it_is(memory, tmp_path, monkeypatch):
    first = load("memory://set", tmp_path).data["x"].clone()
    decoded = []
    decode = Decoder.__call__
    monkeypatch.setattr(Decoder, "__call__", lambda self, content: decoded.append(content) or decode(self, content))
    assert torch.equal(load("memory://set", tmp_path).data["x"], first)
    assert decoded == []
    with memory.open("/set/dog/c.bmp", "r+b") as file:  # of equal size, and for this store of an equal time
        file.write(png(9))
    changed = load("memory://set", tmp_path).data["x"]
    assert decoded == [png(9)]
    assert torch.equal(changed[:2], first[:2])
    assert torch.equal(changed[2], decode(Decoder((6, 6)), png(9)))


def test_an_archive_behind_a_url_that_is_replaced_is_read_anew(tmp_path, names):
    files = fsspec.filesystem("memory")

    def archive(shift):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as packed:
            for name, seed in names.items():
                packed.writestr(f"inner/{name}", png(seed + shift))
        files.pipe("/all.zip", content.getvalue())
        return torch.stack([Decoder((6, 6))(png(seed + shift)) for seed in names.values()])

    for shift in (0, 5):
        expected = archive(shift)
        ds = load("zip://inner::memory://all.zip", tmp_path, labels="folder")
        assert ds.files == list(names)
        assert torch.equal(ds.data["x"], expected)
    files.rm("/all.zip")


def test_what_the_store_tells_saves_reading(memory, tmp_path, monkeypatch):
    root = RemoteFolder("memory://set")
    names, _ = root.listed()
    pictures = [name for name in names if name.lower().endswith("bmp")]
    read = root.marks(pictures)
    for name in pictures:
        root._infos[name]["ETag"] = f"of {name}"
    monkeypatch.setattr(root, "read", lambda name: pytest.fail("read"))
    told = root.marks(pictures)
    assert (told[:, 0] == read[:, 0]).all()
    assert (told[:, 1] != read[:, 1]).all()
    assert (told == root.marks(pictures)).all()


def test_a_store_that_fails_is_no_damaged_picture(memory, tmp_path, monkeypatch):
    load("memory://set", tmp_path)
    memory.pipe("/set/dog/d.bmp", png(3))
    monkeypatch.setattr(RemoteFolder, "read", lambda self, name: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(ConnectionError, match="gone"):
        load("memory://set", tmp_path, on_error="skip")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("memory://nowhere", FileNotFoundError, "path must be a folder of images, memory://nowhere is not a folder"),
        ("none-such://set", ValueError, "Protocol not known: none-such"),
        ("file:///nowhere", FileNotFoundError, "path must be a folder of images, /nowhere is not a folder"),
    ],
)
def test_urls_of_nothing_are_refused(path, error, message):
    with pytest.raises(error, match=message):
        ImgDataset(path, 6)


def test_without_fsspec_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ModuleNotFoundError, match=r"memory://set needs fsspec, .* with the extra fsspec"):
        RemoteFolder("memory://set")


def test_files_of_this_machine_are_paths():
    assert str(local_path("file:///a/b c.png")) == "/a/b c.png"
    assert str(local_path("local:///a")) == "/a"
    assert local_path("simplecache::memory://a") is None
    assert local_path("zip://a::file:///b.zip") is None
