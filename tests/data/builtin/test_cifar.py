"""CIFAR from small files in the real formats."""

import hashlib
import io
import pickle
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
import torchvision.datasets

from ai.data import cifar_dataset


def records(n, n_labels, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (n, n_labels + 3072)).astype(np.uint8)
    rows[:, :n_labels] %= 10
    return rows


def files(n_classes):
    if n_classes == 10:
        made = {f"data_batch_{i}.bin": records(4, 1, i) for i in range(1, 6)} | {"test_batch.bin": records(3, 1, 9)}
        return made, ("batches.meta.txt", "\n".join(f"c{i}" for i in range(10)) + "\n\n")
    made = {"train.bin": records(20, 2, 1), "test.bin": records(3, 2, 9)}
    return made, ("fine_label_names.txt", "\n".join(f"c{i}" for i in range(100)))


def write(folder, n_classes, as_archive):
    content, (names, text) = files(n_classes)
    inner = "cifar-10-batches-bin" if n_classes == 10 else "cifar-100-binary"
    encoded = {name: rows.tobytes() for name, rows in content.items()} | {names: text.encode()}
    if as_archive:
        with tarfile.open(folder / f"cifar-{n_classes}-binary.tar.gz", "w:gz") as tar:
            for name, data in encoded.items():
                info = tarfile.TarInfo(f"{inner}/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        (folder / inner).mkdir()
        for name, data in encoded.items():
            (folder / inner / name).write_bytes(data)
    return content


@pytest.mark.parametrize("n_classes", [10, 100])
@pytest.mark.parametrize("as_archive", [False, True])
def test_images_and_fine_labels_are_read(tmp_path, n_classes, as_archive):
    content = write(tmp_path, n_classes, as_archive)
    ds = cifar_dataset(tmp_path, n_classes=n_classes)
    train, test = ds.split()
    assert (len(train), len(test)) == (20, 3)
    rows = content["test_batch.bin" if n_classes == 10 else "test.bin"]
    batch = next(iter(test.loader(3)))
    n_labels = 1 if n_classes == 10 else 2
    assert batch["y"].tolist() == rows[:, n_labels - 1].tolist()
    expected = rows[:, n_labels:].reshape(3, 3, 32, 32) / 127.5 - 1
    assert np.allclose(batch["x"], expected, atol=1e-6)
    assert batch["x"].dtype == torch.float32
    assert ds.classes[3] == "c3"
    assert len(ds.classes) == n_classes


def python_2_pickle(content):
    """The bytes that Python 2 wrote: protocol 2, text as byte strings, numpy under its old name."""
    return pickle.dumps(content, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_pickles(folder, n_classes):
    """Torchvision's files, with what `write` writes."""
    content, (_, text) = files(n_classes)
    inner = folder / ("cifar-10-batches-py" if n_classes == 10 else "cifar-100-python")
    inner.mkdir()
    label_key = b"labels" if n_classes == 10 else b"fine_labels"
    n_labels = 1 if n_classes == 10 else 2
    for name, rows in content.items():
        data = {b"data": rows[:, n_labels:].copy(), label_key: rows[:, n_labels - 1].tolist()}
        (inner / name.removesuffix(".bin")).write_bytes(python_2_pickle(data))
    names = {b"label_names" if n_classes == 10 else b"fine_label_names": [n.encode() for n in text.split()]}
    (inner / ("batches.meta" if n_classes == 10 else "meta")).write_bytes(python_2_pickle(names))
    return inner


@pytest.mark.parametrize("n_classes", [10, 100])
def test_torchvisions_files_are_read_without_running_them(tmp_path, n_classes):
    inner = write_pickles(tmp_path, n_classes)
    label_key = b"labels" if n_classes == 10 else b"fine_labels"
    ours = cifar_dataset(tmp_path, n_classes=n_classes)
    (tmp_path / "binary").mkdir()
    write(tmp_path / "binary", n_classes, as_archive=False)
    binary = cifar_dataset(tmp_path / "binary", n_classes=n_classes)
    assert torch.equal(ours.data["x"], binary.data["x"])
    assert torch.equal(ours.data["y"], binary.data["y"])
    assert ours.classes == binary.classes
    assert ours.default_split == binary.default_split

    test = inner / ("test_batch" if n_classes == 10 else "test")
    whole = test.read_bytes()
    for bad, message in (
        (whole[:-100], "is truncated or malformed"),
        (pickle.dumps(eval), "it refers to builtins.eval, which CIFAR's files do not"),
        (
            python_2_pickle({b"data": np.zeros((2, 5), np.uint8), label_key: [1, 2]}),
            r"malformed: uint8 of shape \(2, 5\)",
        ),
        (python_2_pickle({b"nothing": 1}), "is malformed: b'data'"),
    ):
        test.write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            cifar_dataset(tmp_path, n_classes=n_classes)


def test_malformed_files_are_named(tmp_path):
    write(tmp_path, 10, as_archive=False)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        ValueError, match=r"data_batch_2.bin is truncated or malformed: 12287 bytes are no multiple of 3073"
    ):
        cifar_dataset(tmp_path)
    path.write_bytes(b"\xff" * 3073)
    with pytest.raises(ValueError, match="it holds the label 255, labels must be below 10"):
        cifar_dataset(tmp_path)


def test_a_truncated_archive_and_another_number_of_classes_are_refused(tmp_path):
    write(tmp_path, 10, as_archive=True)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-3000])
    with pytest.raises(ValueError, match="is truncated or malformed"):
        cifar_dataset(tmp_path)
    with pytest.raises(ValueError, match="n_classes must be 10 or 100, got 11"):
        cifar_dataset(n_classes=11)


@pytest.fixture
def served(tmp_path):
    """A web server on this machine, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SilentHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.parametrize("n_classes", [10, 100])
def test_what_torchvision_names_is_downloaded_checked_and_read(tmp_path, served, monkeypatch, n_classes):
    folder, url = served
    source = getattr(torchvision.datasets, f"CIFAR{n_classes}")
    inner = write_pickles(folder, n_classes)
    with tarfile.open(folder / source.filename, "w:gz") as tar:
        tar.add(inner, inner.name)
    monkeypatch.setattr(source, "url", url + source.filename)
    with pytest.raises(FileNotFoundError, match=f"its checksum is .*, expected {source.tgz_md5}"):
        cifar_dataset(tmp_path / "here", n_classes=n_classes)
    assert not list((tmp_path / "here").iterdir())
    digest = hashlib.md5((folder / source.filename).read_bytes()).hexdigest()
    monkeypatch.setattr(source, "tgz_md5", digest)
    ds = cifar_dataset(tmp_path / "here", n_classes=n_classes)
    assert torch.equal(ds.data["x"], cifar_dataset(folder, n_classes=n_classes).data["x"])
    assert [path.name for path in (tmp_path / "here").iterdir()] == [source.filename]


def test_no_files_and_no_network_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", "http://127.0.0.1:9/a.tar.gz")
    with pytest.raises(
        FileNotFoundError, match=r"could not be downloaded .*put cifar-100-python.tar.gz there, or its files train"
    ):
        cifar_dataset(tmp_path, n_classes=100)
