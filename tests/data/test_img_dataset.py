"""ImgDataset: decoding against Pillow, packs that are whole or absent."""

import copy
import fcntl
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ai.data import Dataset, ImgDataset
from ai.data.batch.collate import collate
from ai.data.images.decode import Decoder
from ai.data.images.folder import find_images
from ai.data.images.pack import open_pack
from tests import warm_python


def picture(height, width, mode="RGB", seed=0):
    """A smooth random picture, which JPEG keeps well."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 4, 4), np.uint8)
    return Image.fromarray(small, "RGBA").resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for k, (name, mode) in enumerate(
        [
            ("b/one.png", "RGB"),
            ("a/two.jpg", "RGB"),
            ("a/deep/three.webp", "RGB"),
            ("c/four.bmp", "L"),
            ("b/five.png", "RGBA"),
        ]
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(30 + k, 40, mode, k).save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_text("no image")
    return root


def load(folder, size=16, **options):
    return ImgDataset(folder, size, cache=folder.parent / "packs", **options)


def test_nested_images_of_any_format_are_found_in_sorted_order(folder):
    ds = load(folder)
    assert ds.files == ["a/deep/three.webp", "a/two.jpg", "b/five.png", "b/one.png", "c/four.bmp"]
    batch = next(iter(ds.loader(5)))
    assert batch["x"].shape == (5, 3, 16, 16)
    assert batch["x"].dtype == torch.float32
    assert "y" not in batch
    assert ds.sample(3)["x"].min() >= -1


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_pixels_equal_pillows(folder, mode, channels, fit, filter):
    height, width = size = (12, 20)
    decode = Decoder(size, mode, fit, filter)
    for name in ("b/one.png", "b/five.png", "a/deep/three.webp", "c/four.bmp", "a/two.jpg"):
        source = Image.open(folder / name).convert(mode)
        h, w = source.height, source.width
        if fit == "crop":
            scale = max(height / h, width / w)
            bh, bw = min(h, round(height / scale)), min(w, round(width / scale))
            top, left = (h - bh) // 2, (w - bw) // 2
            source = source.crop((left, top, left + bw, top + bh))
        inner = (height, width)
        if fit == "pad":
            scale = min(height / h, width / w)
            inner = (round(h * scale), round(w * scale))
        bands = [b.resize(inner[::-1], getattr(Image.Resampling, filter.upper())) for b in source.split()]
        expected = np.zeros((channels, height, width), int)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        expected[:, top : top + inner[0], left : left + inner[1]] = np.stack([np.asarray(b) for b in bands])
        ours = decode(folder / name).numpy().astype(int)
        assert ours.shape == (channels, height, width)
        # Rounding of the resize; and a grey JPEG is its luminance, which Pillow recomputes from clipped colours.
        assert np.abs(ours - expected).max() <= (9 if name.endswith("jpg") and mode == "L" else 3)
        assert np.abs(ours - expected).mean() < 0.7


def test_special_files_decode(tmp_path):
    cmyk, sixteen, palette, gif, turned = (tmp_path / n for n in ("c.jpg", "s.png", "p.png", "g.gif", "t.jpg"))
    picture(20, 30, "RGB").convert("CMYK").save(cmyk)
    Image.fromarray(np.full((20, 30), 0x8001, np.uint16)).save(sixteen)
    picture(20, 30).convert("P").save(palette)
    picture(20, 30).save(gif, save_all=True, append_images=[picture(20, 30, seed=1)])
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    picture(20, 30).save(turned, exif=exif, quality=95)
    for path in (cmyk, sixteen, palette, gif):
        assert Decoder((20, 30))(path).shape == (3, 20, 30)
    assert (Decoder((20, 30), "L")(sixteen) == 0x80).all()
    upright = Decoder((30, 20))(turned).numpy().astype(int)
    errors = [
        np.abs(upright - np.asarray(picture(20, 30).rotate(angle, expand=True)).transpose(2, 0, 1)).mean()
        for angle in (-90, 90)
    ]
    assert errors[0] < 8 < 30 < errors[1]


def test_labels_from_folders_tables_and_numbers(folder):
    by_folder = load(folder, labels="folder")
    assert by_folder.classes == ("a", "b", "c")
    assert by_folder.data["y"].tolist() == [0, 0, 1, 1, 2]
    assert by_folder.data["y"].dtype == torch.uint8
    rows = [f"{name},{label}" for name, label in zip(by_folder.files, "xyxyx", strict=True)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    assert load(folder, labels="labels.csv").data["y"].tolist() == [0, 1, 0, 1, 0]
    numbers = {name: 300 + i for i, name in enumerate(by_folder.files)}
    (folder / "labels.json").write_text(json.dumps(numbers))
    with pytest.raises(
        ValueError, match=r"numbers in .*labels\.json must be 0 … n - 1 .* got 300, 301, .* give classes"
    ):
        load(folder, labels="labels.json")
    by_number = load(folder, labels=folder / "labels.json", classes=305)
    assert by_number.data["y"].tolist() == [300, 301, 302, 303, 304]
    assert by_number.data["y"].dtype == torch.int64
    (folder / "labels.json").write_text(json.dumps({"labels": [[name, 1] for name in by_folder.files]}))
    assert load(folder, labels="labels.json", classes=2).data["y"].tolist() == [1] * 5


def test_parts_keep_files_and_labels_together(folder):
    ds = load(folder, labels="folder")
    part = ds.split(0.6, 0.4)[0]
    assert [name.split("/")[0] for name in part.files] == [ds.classes[y] for y in part.data["y"].tolist()]
    both = part.concat(ds.subset([0]))
    assert both.files == [*part.files, ds.files[0]]
    assert len(both) == 4


def test_a_pack_is_read_again_and_made_anew_when_a_source_changes(folder, monkeypatch):
    first = load(folder)
    calls = []
    decode = Decoder.__call__
    monkeypatch.setattr(Decoder, "__call__", lambda self, path: calls.append(path) or decode(self, path))
    again = load(folder)
    assert calls == []
    assert torch.equal(first.data["x"], again.data["x"])
    load(folder, 17)
    assert len(calls) == 5
    picture(50, 50, seed=9).save(folder / "b" / "one.png")
    assert not torch.equal(load(folder).data["x"], first.data["x"])
    assert len(calls) == 6  # that one alone


def test_corrupt_files_are_named_or_skipped(folder):
    whole = (folder / "a/two.jpg").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an image", b"\x89PNG" + whole):
        (folder / "a/two.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=r"images/a/two\.jpg is no image that can be read: .*; on_error='skip'"):
            load(folder)
        with pytest.warns(UserWarning, match=r"skipped 1 files in .*: a/two.jpg"):
            ds = load(folder, on_error="skip", labels="folder")
        assert ds.files == ["a/deep/three.webp", "b/five.png", "b/one.png", "c/four.bmp"]
        assert ds.data["y"].tolist() == [0, 1, 1, 2]
    assert not list((folder.parent / "packs").glob("*.building"))


BUILD = """
import os, sys
from pathlib import Path
from ai.data.batch.collate import collate
from ai.data.images.decode import Decoder
from ai.data.images.folder import find_images
from ai.data.images.pack import open_pack
decode = Decoder.__call__
root = Path(sys.argv[1])
def slow(self, content):
    if sys.argv[3] == "hang" and content == (root / "7.png").read_bytes():
        print("half way", flush=True)
        sys.stdin.read()
    return decode(self, content)
Decoder.__call__ = slow
images, files = open_pack(Path(sys.argv[2]), root, find_images(root), Decoder((8, 8)), "raise")
print(int(images.astype(int).sum()), flush=True)
"""


@pytest.fixture
def twelve(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for i in range(12):
        picture(10, 10, seed=i).save(root / f"{i}.png")
    decode = Decoder((8, 8))
    return root, tmp_path / "packs", sum(int(decode(root / f"{i}.png").int().sum()) for i in range(12))


def build(root, packs, how="go"):
    command = [sys.executable, "-c", BUILD, str(root), str(packs), how]
    pipe = subprocess.PIPE
    return warm_python.Process(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_build_leaves_nothing_that_a_later_one_trusts(twelve):
    root, packs, expected = twelve
    with build(root, packs, "hang") as victim:
        assert victim.stdout.readline() == "half way\n"
        assert len(list(packs.glob("*.building"))) == 1
        victim.kill()
        victim.wait()
    assert not list(packs.glob("*/files.json"))
    images, files = open_pack(packs, root, find_images(root), Decoder((8, 8)), "raise")
    assert int(images.astype(int).sum()) == expected
    assert len(files) == 12
    assert not list(packs.glob("*.building"))


def test_two_builders_at_once_make_one_pack_and_the_second_says_whom_it_waits_for(twelve):
    root, packs, expected = twelve
    with build(root, packs, "hang") as first:
        assert first.stdout.readline() == "half way\n"
        with build(root, packs) as second:
            try:
                assert second.stderr.readline() == f"ai.data: waiting for process {first.pid} to pack {root}\n"
                first.stdin.close()
                assert int(first.stdout.readline()) == int(second.stdout.readline()) == expected
            finally:
                first.kill()
                second.kill()
    assert len([p for p in packs.iterdir() if p.is_dir()]) == 1


def test_a_builder_without_progress_is_not_waited_for_for_ever(twelve, monkeypatch, capsys):
    root, packs, _ = twelve
    open_pack(packs, root, find_images(root), Decoder((8, 8)), "raise")
    (lock,) = packs.glob("*.lock")
    assert lock.read_text() == str(os.getpid())
    shutil.rmtree(lock.with_suffix(""))
    monkeypatch.setattr("ai.data.images.pack._PATIENCE_S", 0.0)
    monkeypatch.setattr("ai.data.images.pack._POLL_S", 0.0)
    with open(lock, "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match=rf"process {os.getpid()} holds .* made no progress .*another cache"):
            open_pack(packs, root, find_images(root), Decoder((8, 8)), "raise")
    assert capsys.readouterr().err == f"ai.data: waiting for process {os.getpid()} to pack {root}\n"
    assert len(open_pack(packs, root, find_images(root), Decoder((8, 8)), "raise")[1]) == 12


def test_a_builder_tells_of_its_progress(twelve, monkeypatch):
    root, packs, _ = twelve
    ticks = itertools.count()
    touched = []
    monkeypatch.setattr(
        "ai.data.images.pack.time",
        SimpleNamespace(monotonic=lambda: 2.0 * next(ticks), time_ns=lambda: 0, sleep=lambda seconds: None),
    )
    monkeypatch.setattr(os, "utime", lambda path: touched.append(path.suffix))
    open_pack(packs, root, find_images(root), Decoder((8, 8)), "raise")
    assert touched == [".lock"] * 13 + [""]  # and the pack, when it is opened


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"imsize": 0}, ValueError, r"imsize must be a positive number of pixels or \(height, width\), got \(0, 0\)"),
        ({"mode": "HSV"}, ValueError, r"mode must be one of \('L', 'RGB', 'RGBA'\), got 'HSV'"),
        ({"fit": "warp"}, ValueError, "fit must be one of .* got 'warp'"),
        ({"filter": "sinc"}, ValueError, "filter must be one of .* got 'sinc'"),
        ({"on_error": "cry"}, ValueError, "on_error must be 'raise' or 'skip', got 'cry'"),
        ({"path": "/nowhere/at/all"}, FileNotFoundError, "path must be a folder of images, /nowhere/at/all is not"),
        ({"labels": "none.csv"}, FileNotFoundError, "labels must be 'folder' or a CSV or JSON file, there is no file"),
    ],
)
def test_bad_arguments_are_refused(folder, options, error, message):
    arguments = {"path": folder, "imsize": 16, "cache": folder.parent / "packs", **options}
    with pytest.raises(error, match=message):
        ImgDataset(**arguments)


def test_folders_and_labels_that_do_not_fit_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no files with an image's ending"):
        ImgDataset(tmp_path / "empty", 8)
    (folder / "labels.csv").write_text("a/two.jpg,1\n")
    with pytest.raises(ValueError, match="has no label for 4 of the 5 images"):
        load(folder, labels="labels.csv")
    with pytest.raises(ValueError, match=r"a file that ends in .csv or .json"):
        load(folder, labels="notes.txt")
    picture(9, 9).save(folder / "flat.png")
    with pytest.raises(ValueError, match=r"needs every image in a subfolder of .*, flat\.png is in none"):
        load(folder, labels="folder")


def test_broken_label_files_and_long_numbers(folder):
    for content in ("{", "[1, 2]", "3"):
        (folder / "labels.json").write_text(content)
        with pytest.raises(ValueError, match=r"labels\.json must hold \{file: label\} or"):
            load(folder, labels="labels.json")
    names = load(folder).files
    (folder / "labels.json").write_text(json.dumps({name: 10**12 + i for i, name in enumerate(names)}))
    ds = load(folder, labels="labels.json", classes=[str(10**12 + i) for i in range(5)])
    assert ds.data["y"].tolist() == [0, 1, 2, 3, 4]
    assert ds.classes[4] == str(10**12 + 4)


def test_folders_alike_but_for_their_pixels_have_packs_of_their_own(tmp_path):
    for name, level in (("one", 10), ("two", 200)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / name / "a.bmp")
        os.utime(tmp_path / name / "a.bmp", (0, 0))  # as archives do
    levels = [int(ImgDataset(tmp_path / n, 8, cache=tmp_path / "packs").data["x"].max()) for n in ("one", "two")]
    assert levels == [10, 200]


def test_names_that_are_no_text_are_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    picture(8, 8).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", path)
    for _ in range(2):
        assert [os.fsencode(name) for name in ImgDataset(tmp_path, 8, cache=tmp_path / "packs").files] == [b"\xff.png"]


def test_the_pack_is_mapped_not_read(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = load(folder)
    assert os.path.getsize(next((folder.parent / "packs").glob("*/images.npy"))) >= ds.data["x"].nbytes
    with open("/proc/self/maps") as maps:
        assert any("images.npy" in line for line in maps)


def in_the_file(ds):
    """Returns whether every image of `ds` lies in the mapped pack."""
    with open("/proc/self/maps") as maps:
        spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps if "images.npy" in line]
    return all(any(low <= ds.data["x"][i].data_ptr() < high for low, high in spans) for i in range(len(ds)))


def test_parts_stay_in_the_mapped_file(folder):
    ds = load(folder, labels="folder")
    pixels = ds.data["x"].clone()
    whole = ds.split(0.6, 0.4)
    parts = {
        "split": (whole[0], None),
        "part of a part": (whole[0].subset([2, 0]), None),
        "indices": (ds.subset([4, 1]), [4, 1]),
        "filter": (ds.filter(lambda sample: sample["y"] == 1), [2, 3]),
        "slice": (ds[1:4], [1, 2, 3]),
        "slice of a slice": (ds[1:4].subset([2, 0]), [3, 1]),
        "reversed": (ds[::-1], [4, 3, 2, 1, 0]),
        "slice of chosen": (ds.subset([4, 1, 0])[1:], [1, 0]),
        "joined folds": (whole[1].concat(whole[0]), None),
    }
    for name, (part, rows) in parts.items():
        rows = [ds.files.index(file) for file in part.files] if rows is None else rows
        assert in_the_file(part), name
        assert part.files == [ds.files[row] for row in rows], name
        assert part.data["x"].shape == (len(rows), 3, 16, 16), name
        copied = Dataset({"x": pixels[rows], "y": ds.data["y"][rows]}, postprocess=ds.postprocess)
        assert part.fingerprint() == copied.fingerprint(), name
        for options in ({}, {"resident": True}, {"n_workers": 0, "collate": collate}):
            ours, theirs = (list(d.loader(2, **options)) for d in (part, copied))
            assert all(torch.equal(a[k], b[k]) for a, b in zip(ours, theirs, strict=True) for k in "xy"), name
        assert torch.equal(part[-1]["x"], copied[-1]["x"]), name
        assert torch.equal(part.sample(2)["x"], copied.sample(2)["x"]), name
    assert not in_the_file(Dataset({"x": pixels}))


def test_a_loader_of_a_mapped_part_resumes_as_one_of_a_copy(folder):
    part = load(folder).split(0.8, 0.2)[0]
    copied = Dataset({"x": part.data["x"].tensor()}, postprocess=part.postprocess)
    loader = part.loader(2, train=True, seed=5)
    next(iter(loader))
    other = copied.loader(2, train=True)
    other.load_state_dict(loader.state_dict())
    batches = next(iter(loader)), next(iter(other))
    assert torch.equal(batches[0]["x"], batches[1]["x"])
    batches[0]["x"].zero_()  # a batch is nobody else's
    assert torch.equal(part.data["x"].tensor(), copied.data["x"])


def test_stored_images_of_a_part_can_be_printed(folder, capsys):
    from ai.util import print_info  # of the umbrella

    part = load(folder).split(0.6, 0.4)[0]
    print_info(part.data)
    print_info({"x": part.data["x"].tensor()})
    rows, copied = capsys.readouterr().out.splitlines()
    assert rows == copied
    assert rows.startswith("x: shape=[3,3,16,16] bounds=[")


def test_mapped_rows_reach_workers_and_other_datasets(folder):
    part = load(folder).split(0.6, 0.4)[0]
    pixels = part.data["x"].tensor()
    with Dataset({"x": part.data["x"]}, {"x": lambda x: 255 - x}).loader(3, n_workers=1) as loader:
        assert torch.equal(next(iter(loader))["x"], 255 - pixels)
    assert np.array_equal(np.asarray(part.data["x"]), pixels.numpy())
    assert np.asarray(part.data["x"]).dtype == np.uint8
    assert torch.equal(torch.stack(list(part.data["x"])), pixels)
    for copied in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert type(copied.data["x"]) is torch.Tensor
        assert torch.equal(copied.data["x"], pixels)
    assert type(copy.deepcopy(load(folder)).data["x"]) is torch.Tensor
    assert len(pickle.dumps(part)) < len(pickle.dumps(load(folder)))
    plain = Dataset({"x": pixels})
    assert torch.equal(part.concat(plain).data["x"], torch.cat([pixels, pixels]))
    with pytest.raises(ValueError, match=r"column 'x' must have one shape and dtype in all datasets, .*\(3, 16, 16\)"):
        part.concat(Dataset({"x": torch.zeros(1, 3, 8, 8)}))


def test_a_file_that_is_no_image_is_named_and_nothing_of_ours(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(
        ValueError, match=r"a\.png is no image that can be read: it is in no format of images that is known"
    ):
        ImgDataset(tmp_path, 8, cache=tmp_path / "packs")


def test_a_folder_that_is_nowhere_is_told_with_both_places_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_DATASETS_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    sentence = rf"^path must be a folder of images, pictrues is not a folder, nor is {tmp_path / 'pictrues'}$"
    with pytest.raises(FileNotFoundError, match=sentence):
        ImgDataset("pictrues", 8)
