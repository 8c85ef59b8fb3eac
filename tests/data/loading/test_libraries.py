"""Data sets of other libraries through `create_data_loader`: the real ones, as their users have them."""

import gc
import io
import tarfile
from itertools import chain, islice

import numpy as np
import pytest
import torch

from ai.data.util import create_data_loader


def test_a_huggingface_dataset_is_read_by_index_in_its_own_format():
    import datasets

    source = datasets.Dataset.from_dict({"n": list(range(10)), "t": [str(i) for i in range(10)]})
    loader = create_data_loader(source.with_format("numpy"), 4, train=True, n_workers=0, seed=1)
    batches = list(islice(loader, 2))
    assert len(set(chain(*(batch["n"].tolist() for batch in batches)))) == 8
    assert all(list(batch["t"]) == [str(n) for n in batch["n"].tolist()] for batch in batches)


@pytest.fixture
def shards(tmp_path):
    """Three tars of eight samples each."""
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for k in range(8):
                for ending, content in (("cls", str(8 * shard + k)), ("txt", f"sample {8 * shard + k}")):
                    member = tarfile.TarInfo(f"{shard}{k}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content.encode()))
    return [str(tmp_path / f"{shard}.tar") for shard in range(3)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the tars open
@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.usefixtures("data_workers_start_warm")
def test_webdataset_tars_are_streamed_in_parts_and_resume(shards, n_workers):
    stream_and_resume(shards, n_workers)
    gc.collect()  # while the filter holds


def stream_and_resume(shards, n_workers):
    import webdataset as wds

    def made():
        source = wds.WebDataset(shards, shardshuffle=False).decode().to_tuple("cls", "txt")
        return create_data_loader(source, 5, train=True, n_workers=n_workers, shuffle=4)

    with made() as loader:
        iterator = iter(loader)
        batches = [next(iterator) for _ in range(4)]
        state = loader.state_dict()
        expected = [next(iterator)[0].tolist() for _ in range(3)]
    assert state["parts"] == max(n_workers, 1)
    for numbers, texts in batches:
        assert texts == [f"sample {n}" for n in numbers.tolist()]
    if n_workers == 0:
        assert sorted(chain(*(numbers.tolist() for numbers, _ in batches))) == list(range(20))
    with made() as again:
        again.load_state_dict(state)
        assert [numbers.tolist() for numbers, _ in islice(again, 3)] == expected


def test_a_torchvision_folder_is_read_by_index(tmp_path):
    from PIL import Image
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.fromarray(np.full((4, 4, 3), 40 * k, np.uint8)).save(tmp_path / name / f"{k}.png")
    source = ImageFolder(tmp_path, v2.PILToTensor())
    x, y = next(iter(create_data_loader(source, 6, n_workers=0)))
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert x[:, 0, 0, 0].tolist() == [0, 40, 80] * 2
    assert x.dtype == torch.uint8


@pytest.mark.parametrize(
    ("own", "shuffle"),
    [(lambda ds: ds, 0), (lambda ds: ds, 7), (lambda ds: ds.shuffle(seed=4, buffer_size=5).map(dict), 0)],
)
def test_a_huggingface_stream_resumed_twice_loses_and_repeats_nothing(own, shuffle):
    import datasets

    def loader():
        stream = datasets.Dataset.from_dict({"x": list(range(24))}).to_iterable_dataset(num_shards=4)
        return create_data_loader(own(stream), 3, train=True, n_workers=0, shuffle=shuffle)

    whole = [batch["x"].tolist() for batch in islice(loader(), 13)]
    assert sorted(chain(*whole[:8])) == list(range(24))
    for cut in range(1, 12, 2):
        first, second, third = loader(), loader(), loader()
        list(islice(first, cut))
        second.load_state_dict(first.state_dict())
        assert next(iter(second))["x"].tolist() == whole[cut]
        third.load_state_dict(second.state_dict())
        assert [batch["x"].tolist() for batch in islice(third, 12 - cut)] == whole[cut + 1 :]
