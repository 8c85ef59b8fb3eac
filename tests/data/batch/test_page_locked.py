"""Batches on their way through page-locked memory: what a copy still reads is not written to."""

import copy
import pickle

import numpy as np
import pytest
import torch

from ai.data import Datagen, Dataset
from ai.data.batch import page_locked
from ai.data.batch.device import to_device
from ai.data.batch.page_locked import PageLocked
from ai.data.loading.stream import StreamLoader
from tests.pretended_cuda import PretendedCuda

CUDA = torch.device("cuda", 0)


@pytest.fixture
def locked(monkeypatch):
    """The sizes of what was locked."""
    sizes, real = [], page_locked._locked
    monkeypatch.setattr(page_locked, "_locked", lambda n: (sizes.append(n), real(n))[1])
    return sizes


@pytest.fixture
def cuda():
    if torch.cuda.is_available():
        pytest.skip("a real device does not say when it copies")
    with PretendedCuda() as pretended:
        yield pretended


def sent(memory, value, n=100):
    with memory.stretch() as stretch:
        return to_device(torch.full((n,), float(value)), CUDA, stretch)


def test_a_stretch_is_filled_again_only_after_the_copies_out_of_it(cuda, locked):
    memory = PageLocked(CUDA, size=3)
    with cuda.no_sync():  # three fit without waiting for a device that does nothing
        there = [sent(memory, k) for k in range(3)]
    assert len(locked) == 3
    waited = []
    plain = cuda.waits
    cuda.waits = lambda why, clock=None: (waited.append(clock), plain(why, clock))
    there += [sent(memory, k) for k in range(3, 8)]  # the pretended device finds out what is written to too early
    del cuda.waits
    assert len(locked) == 3
    first, steps = waited[0][0], [clock[0] - waited[0][0] for clock in waited]
    assert steps == [steps[1] * k for k in range(5)]  # each for the oldest batch alone
    assert 0 < first < steps[1] * 3
    torch.cuda.synchronize()
    assert [int(x[0]) for x in there] == list(range(8))


def test_what_was_read_is_used_before_more_is_locked(cuda, locked):
    memory = PageLocked(CUDA, size=4)
    for k in range(6):
        sent(memory, k)
        torch.cuda.synchronize()
    assert locked == [400]


def test_a_batch_of_several_tensors_has_one_piece_from_the_second_on(cuda, locked):
    memory = PageLocked(CUDA, size=1)
    batch = {"x": np.arange(6, dtype=np.float64), "y": (torch.tensor(3), [torch.ones(2, 3).half()]), "z": torch.ones(0)}
    for _ in range(3):
        with memory.stretch() as stretch:
            there = to_device(batch, CUDA, stretch)
        assert there["x"].dtype == torch.float64
        assert there["x"].tolist() == [0, 1, 2, 3, 4, 5]
        assert int(there["y"][0]) == 3
        assert there["y"][1][0].cpu().tolist() == [[1, 1, 1]] * 2
        assert there["z"].shape == (0,)
    assert len(locked) <= 5
    assert locked[-1] == sum(locked[:-1])


ODD = {
    "columns first": torch.arange(6.0).view(2, 3).t(),
    "channels last": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "one number again and again": torch.ones(1).expand(5),
    "complex": torch.view_as_complex(torch.arange(6.0).view(3, 2)),
    "conjugate": torch.view_as_complex(torch.arange(6.0).view(3, 2)).conj(),
    "booleans": torch.tensor([True, False]),
    "a number": torch.tensor(2),
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_form_a_tensor_has_it_arrives_as_it_was(name, cuda):
    memory = PageLocked(CUDA, size=1)
    for _ in range(2):
        with memory.stretch() as stretch:
            there = to_device(ODD[name], CUDA, stretch)
        assert there.device == CUDA
        assert torch.equal(there.cpu(), ODD[name])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_has_no_one_shape_is_left_to_torch(cuda, locked):
    rows = torch.nested.nested_tensor([torch.arange(2.0), torch.arange(3.0)])
    with PageLocked(CUDA).stretch() as stretch:
        there = stretch.holding(rows)
        assert there.is_pinned()
        assert [row.tolist() for row in there.unbind()] == [[0, 1], [0, 1, 2]]
        sparse = torch.eye(3).to_sparse()
        assert torch.equal(stretch.holding(sparse).to_dense(), torch.eye(3))
    assert locked == []


def test_what_is_page_locked_already_or_lies_there_is_not_copied_here(cuda, locked):
    memory = PageLocked(CUDA)
    own, there = torch.ones(3).pin_memory(), torch.ones(3, device="cuda")
    with memory.stretch() as stretch:
        to_device(own, CUDA, stretch)
        assert to_device(there, CUDA, stretch) is there
    assert locked == []


def fails(memory):
    with memory.stretch() as stretch:
        to_device(torch.ones(100), CUDA, stretch)
        raise RuntimeError("out of memory")


def test_a_stretch_whose_batch_failed_is_not_lost(cuda, locked):
    memory = PageLocked(CUDA, size=1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            fails(memory)
    assert locked == [400]
    sent(memory, 1)
    assert locked == [400]


def test_threads_do_not_wait_for_each_other_and_a_copy_has_its_own(cuda):
    memory = PageLocked(CUDA, size=1)
    with memory.stretch() as first, memory.stretch() as second:
        assert first is not second
        for twin in (copy.deepcopy(memory), copy.copy(memory), pickle.loads(pickle.dumps(memory))):
            with twin.stretch() as other:
                assert other not in (first, second)


@pytest.mark.parametrize("how", ["gathered", "thread", "inline", "lists"])
def test_a_loader_locks_a_few_batches_whatever_it_gives(how, cuda, locked):
    x = torch.randn(64, 50)
    if how == "lists":
        ds = Dataset({"x": list(x)})
    else:
        ds = Dataset({"x": x}, preprocess=None if how == "gathered" else {"x": lambda x: x * 1})
    options = {"thread": {"n_workers": 1, "worker": "thread"}, "inline": {"n_workers": 0}}.get(how, {})
    with ds.loader(4, "cuda", **options) as loader:
        got = [batch["x"] for _ in range(2) for batch in loader]
    torch.cuda.synchronize()
    assert torch.equal(torch.cat(got).cpu(), torch.cat([x, x]))
    assert 1 <= len(locked) <= 4


class Counting:
    """A source of episodes of one step each."""

    def start(self, seed, worker):
        pass

    def __next__(self):
        return {"obs": torch.zeros(2), "action": torch.zeros(1), "reward": torch.zeros(1)}

    def update_params(self, state_dict, version):
        pass


@pytest.mark.parametrize("kind", ["dataset", "stream", "episodes"])
def test_a_closed_loader_holds_no_page_locked_memory_and_still_gives_batches(kind, cuda, locked):
    if kind == "episodes":
        loader = Datagen(Counting()).loader(4, "cuda", n_workers=0)
    elif kind == "stream":
        loader = StreamLoader(Numbers(), 4, "cuda", n_workers=0)
    else:
        loader = Dataset({"x": torch.arange(12.0)}).loader(4, "cuda")
    n_locked = 0
    for _ in range(2):
        if kind == "episodes":
            assert [next(loader)["obs"].is_cuda for _ in range(3)] == [True] * 3
        else:
            assert torch.cat([batch["x"] for batch in loader]).tolist() == list(range(12))
        assert len(locked) > n_locked
        n_locked = len(locked)
        loader.close()
        assert not loader._finish._page_locked._free


class Numbers(torch.utils.data.IterableDataset):
    def __iter__(self):
        return ({"x": float(k)} for k in range(12))


def test_memory_given_back_while_a_batch_is_made_is_counted_once(cuda, locked):
    memory = PageLocked(CUDA, size=2)
    sent(memory, 0)
    with memory.stretch() as held:
        sent(memory, 1)
        memory.give_back()
        assert held.empty((2,), torch.int64).fill_(7).tolist() == [7, 7]
    for k in range(6):
        sent(memory, k)
    assert memory._n_made == len(memory._free) == 2
