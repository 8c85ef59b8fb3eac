"""Documents of tokens as rows: what stands where, what may be seen, and resuming."""

from itertools import islice

import numpy as np
import pytest
import torch

from ai.data import block_mask, packed_tokens
from ai.data.storage.memory_mapped import Rows

DOCUMENTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10]]


def whole(ds):
    (batch,) = ds.loader(len(ds))
    return {key: value.tolist() for key, value in batch.items()}


def test_the_line_is_cut_into_rows_and_every_token_but_the_first_is_learnt_once():
    batch = whole(packed_tokens(DOCUMENTS, 4, separator=0))
    assert batch == {
        "x": [[1, 2, 3, 0], [4, 5, 0, 6], [7, 8, 9, 0]],
        "y": [[2, 3, 0, 4], [5, 0, 6, 7], [8, 9, 0, 10]],
    }


def test_boundaries_tell_document_and_position_and_no_document_predicts_the_next():
    batch = whole(packed_tokens(DOCUMENTS, 4, separator=0, boundaries=True))
    assert batch["y"] == [[2, 3, 0, -100], [5, 0, -100, 7], [8, 9, 0, -100]]
    assert batch["document"] == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert batch["position"] == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 2, 3]]


def test_whole_documents_are_fitted_into_rows():
    ds = packed_tokens([*DOCUMENTS, list(range(20, 29))], 4, cut=False, boundaries=True)
    batch = whole(ds)
    tokens = [token for row in batch["x"] for token in row if token]
    assert sorted(tokens) == [*range(1, 11), *range(20, 29)]
    rows = zip(batch["x"], batch["y"], batch["document"], batch["position"], strict=True)
    for x, y, document, position in rows:
        for k in range(4):
            follows = k < 3 and document[k + 1] == document[k] >= 0
            assert y[k] == (x[k + 1] if follows else -100)
            assert position[k] == (0 if k == 0 or document[k] != document[k - 1] else position[k - 1] + 1)
    assert len(ds) == 5


@pytest.mark.parametrize("seed", range(5))
def test_fitting_keeps_every_token_and_wastes_little(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 90, 200)
    ends = np.cumsum(sizes)
    documents = [np.arange(end - size, end) + 1 for size, end in zip(sizes, ends, strict=True)]
    ds = packed_tokens(documents, 64, cut=False)
    x = ds.data["x"]
    assert sorted(x[ds.data["document"] >= 0].tolist()) == list(range(1, int(ends[-1]) + 1))
    assert len(ds) <= -(-int(ends[-1]) // 64) + 2


def test_a_mask_sees_the_tokens_before_in_the_own_document(on_device):
    mask = on_device(block_mask)(torch.tensor([[0, 0, 1, -1]]))
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_line_in_a_file_stays_there_and_resumes_exactly(tmp_path, dtype):
    np.save(tmp_path / "line.npy", np.arange(1001, dtype=dtype))
    ds = packed_tokens(np.load(tmp_path / "line.npy", mmap_mode="r"), 10)
    assert len(ds) == 100
    train, held_out = ds.split(0.9, 0.1)
    assert isinstance(train.data["x"], Rows)
    assert len(held_out) == 10
    loader = train.loader(4, train=True)
    reference = [batch["x"] for batch in islice(loader, 30)]
    first = train.loader(4, train=True)
    list(islice(first, 13))
    again = train.loader(4, train=True)
    again.load_state_dict(first.state_dict())
    assert all(torch.equal(a["x"], b) for a, b in zip(again, reference[13:], strict=False))
    batch = next(iter(ds.loader(3)))
    assert torch.equal(batch["x"], torch.arange(30).view(3, 10))
    assert torch.equal(batch["y"], torch.arange(1, 31).view(3, 10))


@pytest.mark.parametrize(
    ("documents", "options", "error", "message"),
    [
        (DOCUMENTS, {"length": 0}, ValueError, "length must be at least 1 token, got 0"),
        (DOCUMENTS, {"length": 4, "boundaries": True}, ValueError, "boundaries needs a separator"),
        (DOCUMENTS, {"length": 50}, ValueError, r"more than length \(50\) tokens, got 10"),
        ([[0.5]], {"length": 1}, TypeError, r"documents\[0\] must be one row of whole numbers, got torch.float64"),
        ([["a"]], {"length": 1}, TypeError, r"documents\[0\] must be one row of whole numbers, got list"),
        ([[]], {"length": 1}, ValueError, "documents must hold at least one token, got none"),
        (np.arange(9), {"length": 2, "cut": False}, TypeError, "documents must be a list of them"),
        (["text"], {"length": 2}, TypeError, r"documents\[0\] must be one row of whole numbers, got str"),
        ("text", {"length": 2}, TypeError, "documents must be a list of them, each a row of tokens, got str"),
    ],
)
def test_what_cannot_be_is_refused(documents, options, error, message):
    with pytest.raises(error, match=message):
        packed_tokens(documents, **options)


def test_documents_of_several_types_keep_their_numbers():
    ds = packed_tokens([np.arange(3, dtype=np.uint8), np.arange(3) + 300], 3, cut=False)
    assert sorted(ds.data["x"].flatten().tolist()) == [0, 1, 2, 300, 301, 302]
    lines = packed_tokens([np.arange(3, dtype=np.uint16), np.arange(3) + 70_000], 5)
    assert next(iter(lines.loader(1)))["x"].tolist() == [[0, 1, 2, 70_000, 70_001]]


@pytest.mark.parametrize("place", ["memory", "file"])
def test_tokens_that_lie_apart_in_memory_are_those_of_the_line(tmp_path, place):
    np.save(tmp_path / "line.npy", np.arange(60, dtype=np.int32).reshape(30, 2))
    both = np.load(tmp_path / "line.npy", mmap_mode="r" if place == "file" else None)
    for line, first, step in ((both[:, 1], 1, 2), (both.reshape(-1)[4::3], 4, 3), (both.reshape(-1)[::-1], 59, -1)):
        batch = next(iter(packed_tokens(line, 4).loader(2)))
        assert batch["x"].flatten().tolist() == [first + step * k for k in range(8)]
        assert batch["y"].flatten().tolist() == [first + step * k for k in range(1, 9)]


def test_a_mask_needs_rows_of_documents():
    with pytest.raises(ValueError, match=r"document must be a tensor \[batch, length\], got \[4\]"):
        block_mask(torch.tensor([0, 0, 1, -1]))
