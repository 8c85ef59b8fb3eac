"""Shards of a dataset: the same whoever makes them, and gone on with after an end that nobody wanted."""

import shutil

import fsspec
import numpy as np
import pytest
import torch

from ai.data import Dataset, Shards, write_shards
from ai.data.util import create_data_loader


def noisy(sample, rng):
    return {"x": np.full((2, 3), sample["x"], np.uint8), "y": sample["y"], "noise": rng.random()}


def made(preprocess=noisy, n=10):
    data = {"x": list(range(n)), "y": np.arange(n) % 3}
    return Dataset(data, preprocess, postprocess={"x": lambda x: x.float()}, classes=["a", "b", "c"])


def content(shards):
    (batch,) = create_data_loader(shards, 100, n_workers=0)
    return batch


def test_shards_hold_what_a_loader_gives_before_its_postprocess(tmp_path):
    shards = write_shards(made(), tmp_path / "s", per_shard=np.int64(4), n_workers=0, seed=5)
    assert [file[-10:] for file in shards.files] == ["000000.npz", "000001.npz", "000002.npz"]
    assert shards.classes == ("a", "b", "c")
    (expected,) = made().loader(10, n_workers=0, seed=5)
    batch = content(shards)
    assert batch["x"].dtype == torch.uint8
    for key in ("x", "y", "noise"):
        assert torch.equal(batch[key].float(), expected[key].float())


def test_workers_change_nothing(tmp_path):
    texts = Dataset(list("0123456789"), lambda text, rng: np.array([float(text), rng.random()]))  # no torch in workers
    write_shards(texts, tmp_path / "a", per_shard=2, n_workers=0)
    write_shards(texts, tmp_path / "b", per_shard=2, n_workers=2)
    for k in range(5):
        a, b = ((tmp_path / name / f"{k:06}.npz").read_bytes() for name in ("a", "b"))
        assert a == b


def test_an_interrupted_writing_is_told_and_gone_on_with(tmp_path):
    def fails(sample, rng):
        if sample["x"] == 7:
            raise OSError("the disk is gone")
        return noisy(sample, rng)

    root = tmp_path / "s"
    with pytest.raises(RuntimeError, match="the disk is gone"):
        write_shards(made(fails), root, per_shard=2, n_workers=0)
    with pytest.raises(ValueError, match=r"s holds 3 of 5 shards: its writing was interrupted, .*resume=True"):
        Shards(root)
    (root / ".000003.npz.left").write_bytes(b"half")
    with pytest.raises(FileExistsError, match="holds shards already: give another folder, or resume=True"):
        write_shards(made(), root, per_shard=2)
    for other, options in ((made(n=11), {}), (made(), {"seed": 1}), (made(), {"per_shard": 5})):
        with pytest.raises(ValueError, match=r"resume=True needs the shards' own"):
            write_shards(other, root, resume=True, n_workers=0, **{"per_shard": 2, **options})
    seen = []

    def counted(sample, rng):
        seen.append(sample["x"])
        return noisy(sample, rng)

    again = write_shards(made(counted), root, per_shard=2, n_workers=0, resume=True)
    assert min(seen) == 6
    whole = content(write_shards(made(), tmp_path / "whole", per_shard=2, n_workers=0))
    assert all(torch.equal(content(again)[key], whole[key]) for key in whole)
    assert not list(root.glob(".*"))
    write_shards(made(fails), root, per_shard=2, n_workers=0, resume=True)  # nothing is left to do


def test_shards_are_read_wherever_they_are_moved(tmp_path):
    write_shards(made(), tmp_path / "s", per_shard=4, n_workers=0)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "s"), "/moved", recursive=True)
    moved = Shards("memory://moved")
    assert moved.classes == ("a", "b", "c")
    assert torch.equal(content(moved)["x"], content(Shards(tmp_path / "s"))["x"])
    memory.rm("/moved/000001.npz")
    with pytest.raises(ValueError, match="holds 2 of 3 shards"):
        Shards("memory://moved")
    memory.rm("/moved", recursive=True)


def test_columns_may_have_any_name(tmp_path):
    columns = {"file": torch.arange(3), "a/b": torch.rand(3), "allow_pickle": torch.rand(3, 2) > 0.5}
    batch = content(write_shards(Dataset(columns), tmp_path / "s", n_workers=0))
    assert batch.keys() == columns.keys()
    assert all(torch.equal(batch[name], column) for name, column in columns.items())


def test_what_no_shard_can_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="shards hold numbers, column 'x' is made of list"):
        write_shards(Dataset({"x": ["a", "b"]}), tmp_path / "a")
    with pytest.raises(ValueError, match=r"of numpy's types, column 'x' is torch\.bfloat16"):
        write_shards(Dataset({"x": torch.ones(2, dtype=torch.bfloat16)}), tmp_path / "a2")
    with pytest.raises(TypeError, match=r"dataset must be an ai\.data\.Dataset, got list"):
        write_shards([1, 2], tmp_path / "b")
    with pytest.raises(ValueError, match="per_shard must be at least 1 sample, got 0"):
        write_shards(made(), tmp_path / "b", per_shard=0)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.npz").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"must hold no other files .*mine\.npz"):
        write_shards(made(), tmp_path / "c", n_workers=0)
    shutil.rmtree(tmp_path / "c")
