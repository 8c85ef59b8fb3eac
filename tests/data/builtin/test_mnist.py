"""MNIST: real IDX files from a folder or from loopback mirrors."""

import gzip
import hashlib
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision.datasets

from ai.data import fashion_mnist_dataset, mnist_dataset
from ai.data.builtin.idx import read_idx
from ai.data.storage.paths import dataset_folder

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array, code=8):
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def arrays(n_train=60, n_test=10):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, 28, 28), np.uint8) for n in (n_train, n_test)]
    labels = [rng.integers(0, 10, n).astype(np.uint8) for n in (n_train, n_test)]
    return dict(zip(NAMES, (images[0], labels[0], images[1], labels[1]), strict=True))


def write(folder, content=None, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (content or arrays()).items():
        data = idx(array)
        (folder / (name + ".gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirrors(monkeypatch, served):
    """torchvision's table of mirrors and checksums, about files served from loopback."""
    folder, url = served
    write(folder, zipped=True)
    checksums = [(f"{n}.gz", hashlib.md5((folder / f"{n}.gz").read_bytes()).hexdigest()) for n in NAMES]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url + "gone/", url])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", checksums)
    return folder


@pytest.mark.parametrize("place", [".", "MNIST/raw", "raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_files_are_found_in_every_place_and_form(tmp_path, place, zipped):
    content = arrays()
    write(tmp_path / place, content, zipped)
    ds = mnist_dataset(tmp_path)
    train, test = ds.split()
    assert (len(ds), len(train), len(test)) == (70, 60, 10)
    batch = next(iter(test.loader(10)))
    assert batch["x"].shape == (10, 1, 28, 28)
    assert batch["x"].dtype == torch.float32
    expected = content[NAMES[2]].astype(np.float32) / 127.5 - 1
    assert np.allclose(batch["x"][:, 0], expected, atol=1e-6)
    assert batch["y"].dtype == torch.uint8
    assert batch["y"].tolist() == content[NAMES[3]].tolist()
    assert ds.classes == tuple("0123456789")


def test_bounds_are_exact(tmp_path):
    content = arrays()
    content[NAMES[0]][0, 0, :2] = 0, 255
    x = mnist_dataset(write(tmp_path, content))[0]["x"]
    assert x[0, 0, :2].tolist() == [-1, 1]


def test_the_environment_names_the_datasets_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_DATASETS_PATH", str(tmp_path))
    write(tmp_path / "mnist")
    assert len(mnist_dataset()) == 70
    monkeypatch.delenv("AI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataset_folder("mnist") == tmp_path / ".cache" / "ai" / "datasets" / "mnist"


def test_missing_files_are_downloaded_once_past_a_dead_mirror(tmp_path, mirrors):
    ds = mnist_dataset(tmp_path / "mnist")
    assert len(ds) == 70
    assert sorted(p.name for p in (tmp_path / "mnist").iterdir()) == sorted(f"{n}.gz" for n in NAMES)
    for name in NAMES:
        (mirrors / f"{name}.gz").unlink()
    assert len(mnist_dataset(tmp_path / "mnist")) == 70


def test_a_download_with_the_wrong_content_is_refused(tmp_path, mirrors):
    (mirrors / f"{NAMES[2]}.gz").write_bytes(b"something else")
    with pytest.raises(FileNotFoundError, match=r"its checksum is .*, expected"):
        mnist_dataset(tmp_path / "mnist")
    assert not [p for p in (tmp_path / "mnist").iterdir() if NAMES[2] in p.name]


def test_no_files_and_no_network_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(FileNotFoundError) as caught:
        mnist_dataset(tmp_path / "mnist")
    text = str(caught.value)
    assert "http://127.0.0.1:9/train-images-idx3-ubyte.gz" in text
    assert str(tmp_path / "mnist") in text
    assert all(name in text for name in NAMES)


def test_truncated_and_malformed_files_are_named(tmp_path):
    folder = write(tmp_path)
    path = folder / NAMES[0]
    whole = path.read_bytes()
    for content, message in (
        (whole[:-1], r"ubyte is truncated or malformed: shape \(60, 28, 28\) needs 47040 bytes, it holds 47039"),
        (whole[:9], "ubyte is truncated: 9 bytes do not hold its header of 16"),
        (b"PNG" + whole, "ubyte is not an IDX file: it starts with the bytes 50 4e 47 00"),
        (b"", r"ubyte is not an IDX file: it starts with the bytes \(none\)"),
        (gzip.compress(whole)[:-20], "ubyte is not a whole gzip file"),
        (idx(np.zeros((60, 784), np.uint8)), r"ubyte must hold uint8 images, got uint8 of shape \(60, 784\)"),
        (
            idx(np.zeros((61, 28, 28), np.uint8)),
            r"one uint8 label for each of the 61 images .*got uint8 of shape \(60,\)",
        ),
        (idx(np.zeros((60, 20, 20), np.uint8)), r"differ in size: \(20, 20\) and \(28, 28\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            mnist_dataset(folder)


def test_idx_of_every_type_is_read_in_native_order(tmp_path):
    for code, dtype in ((8, ">u1"), (9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        (tmp_path / "a").write_bytes(idx(array, code))
        read = read_idx(tmp_path / "a")
        assert read.dtype == np.dtype(dtype).newbyteorder("=")
        assert (read == array).all()


def test_fashion_mnist_has_its_own_folder_and_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_DATASETS_PATH", str(tmp_path))
    write(tmp_path / "fashion_mnist" / "FashionMNIST" / "raw", zipped=True)
    ds = fashion_mnist_dataset()
    assert len(ds) == 70
    assert ds.classes[9] == "Ankle boot"
