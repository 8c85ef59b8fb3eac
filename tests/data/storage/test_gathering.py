"""Rows that are gathered into memory from where they go on."""

import pytest
import torch

from ai.data import Dataset
from ai.data.storage import columns
from ai.data.storage.gathering import gather_into
from ai.data.storage.memory_mapped import Mapped

ROWS = torch.tensor([3, 0, 0, 2])


def empty(shape, dtype):
    return torch.empty(shape, dtype=dtype, pin_memory=True)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("row", [(), (3,), (32767,), (32768,), (3, 224, 224), (32771,), (2, 0)])
def test_rows_of_any_length_are_those_of_index_select(row, device):
    source = torch.randn(4, *row)
    gathered = gather_into(source, ROWS, empty)
    assert gathered.is_pinned() or not gathered.numel()  # torch locks no pages of nothing
    assert torch.equal(gathered, source[ROWS])


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize(
    "source",
    [
        torch.arange(40000 * 4).view(40000, 4).t(),
        torch.randn(4, 70000, dtype=torch.float64),
        torch.randn(4, 70000).half().as_subclass(Mapped),
        torch.rand(4, 50000, requires_grad=True),
        torch.rand(4, 33000) > 0.5,
        torch.randn(4, 2, 33000)[:, 1],
    ],
    ids=["columns first", "float64", "mapped", "with gradients", "booleans", "apart in memory"],
)
def test_whatever_lies_in_memory_is_gathered(source, device):
    for rows in (ROWS, ROWS[:0]):
        gathered = gather_into(source, rows, empty)
        assert gathered.is_pinned() or not gathered.numel() or source.requires_grad  # which is locked on its way
        assert gathered.shape == (len(rows), *source.shape[1:])
        assert torch.equal(gathered, source.as_subclass(torch.Tensor)[rows])


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_what_has_no_rows_in_memory_is_gathered_where_it_likes(device):
    gathered = gather_into(torch.eye(4).to_sparse(), ROWS, empty)
    assert gathered.is_sparse
    assert torch.equal(gathered.to_dense(), torch.eye(4)[ROWS])


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_batch_is_gathered_into_page_locked_memory_at_once(device, monkeypatch):
    x, y = torch.randn(64, 40000), torch.arange(64)
    gathered = []

    def noted(source, rows, empty):
        gathered.append(gather_into(source, rows, empty))
        return gathered[-1]

    monkeypatch.setattr(columns, "gather_into", noted)
    ds = Dataset({"x": x, "y": y})
    for batch, expected in zip(ds.loader(16, device), ds.loader(16), strict=True):
        assert batch["x"].is_cuda
        assert torch.equal(batch["x"].cpu(), expected["x"])
        assert torch.equal(batch["y"].cpu(), expected["y"])
    assert len(gathered) == 2 * 4  # and none for the loader on the CPU
