"""The Data section of the document that the library was asked for in, run as it stands."""

import io
import struct
from contextlib import redirect_stdout

import pytest
import torch

import ai

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHOWN = "cuda:0" if DEVICE == "cuda" else "cpu"

SNIPPET = """
import ai

batch_size = 64
device = 'cuda'

# load (download first if needed) the MNIST dataset from $AI_DATASETS_PATH/mnist
ds = ai.data.mnist_dataset()
# or alternatively, provide a path
ds = ai.data.mnist_dataset('/tmp/mnist')

# split into a train set and a validation set
train_ds, val_ds = ds.split() # standard split
train_ds, val_ds = ds.split(.9, .1) # custom split

# check length
print(len(train_ds)) # 63000
print(train_ds.length(batch_size)) # 62976 (the length accounting for dropping
                                   # the last incomplete batch)

# load and examine 100 samples
samples = val_ds.sample(100, device)
ai.util.print_info(samples['x']) # shape=[100,1,28,28] bounds=[-1.00,1.00]
                                 # dtype=float32 device=cuda:0
ai.util.print_info(samples['y']) # shape=[100] bounds=[0,9] dtype=uint8
                                 # device=cuda:0

# train loader (shuffles and loops infinitely)
train_loader = train_ds.loader(batch_size, device, train=True)
# val loader (doesnt shuffle and loops for one epoch)
val_loader = val_ds.loader(batch_size, device, train=False)

# iterate via loop:
for batch in val_loader:
    pass
# or:
val_iterator = iter(val_loader)
batch = next(val_iterator)
"""


@pytest.fixture
def mnist_sized(tmp_path, monkeypatch):
    """Files of MNIST's names, sizes and format."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    image = bytes([0, 255] + [7] * 782)
    for name, n in (("train", 60_000), ("t10k", 10_000)):
        header = bytes([0, 0, 8, 3]) + struct.pack(">3I", n, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + image * n)
        labels = bytes([0, 0, 8, 1]) + struct.pack(">I", n) + bytes(range(10)) * (n // 10)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    monkeypatch.setenv("AI_DATASETS_PATH", str(tmp_path))
    return folder


def test_the_mnist_snippet_prints_what_its_comments_say(mnist_sized):
    code = SNIPPET.replace("/tmp/mnist", str(mnist_sized)).replace("'cuda'", repr(DEVICE))
    names: dict = {}
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(code, names)
    assert printed.getvalue().splitlines() == [
        "63000",
        "62976",
        f"shape=[100,1,28,28] bounds=[-1.00,1.00] dtype=float32 device={SHOWN}",
        f"shape=[100] bounds=[0,9] dtype=uint8 device={SHOWN}",
    ]
    assert [len(part) for part in names["ds"].split()] == [60_000, 10_000]
    assert len(names["val_ds"]) == 7_000
    assert len(names["batch"]["x"]) == 64
    assert len(names["val_loader"]) == -(-7_000 // 64)
    assert len(names["train_loader"]) == 63_000 // 64


def test_every_name_of_the_section_exists():
    for name in ("Dataset", "Datagen", "DataLoader", "ImgDataset", "mnist_dataset", "cifar_dataset"):
        assert callable(getattr(ai.data, name))
    assert callable(ai.data.toy.moons_dataset)
    assert callable(ai.data.util.create_data_loader)


def test_a_custom_dataset_takes_four_arguments_by_position(tmp_path):
    paths = [str(tmp_path / f"{i}.pt") for i in range(10)]
    for i, path in enumerate(paths):
        torch.save(torch.full((2,), i, dtype=torch.uint8), path)
    ds = ai.data.Dataset(paths, torch.load, lambda x: x.float() / 10, (0.8, 0.2))
    train, val = ds.split()
    assert (len(train), len(val)) == (8, 2)
    rows = torch.cat(list(ds.loader(4, DEVICE, n_workers=0)))
    assert torch.equal(rows.cpu(), torch.arange(10)[:, None].expand(-1, 2) / 10)
