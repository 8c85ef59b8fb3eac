"""Iterators that threads share: each batch is given once."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ai.data import Datagen, Dataset
from ai.data.batch.order import Order, Position
from ai.data.loading.stream import StreamLoader


@pytest.fixture(autouse=True)
def _threads_switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def taken_by_threads(take, n_threads=4):
    with ThreadPoolExecutor(n_threads) as executor:
        return [item for part in executor.map(lambda _: take(), range(n_threads)) for item in part]


class Numbered:
    """Rollouts of 8 numbered steps."""

    def start(self, seed, worker):
        self.n = 0

    def __next__(self):
        first, self.n = self.n, self.n + 8
        return {"obs": np.zeros(9), "action": np.arange(first, self.n), "reward": np.zeros(8)}

    def update_params(self, state_dict, version):
        pass


def slow(x):
    return torch.stack([x, *(x + k for k in range(20))])[0]


@pytest.mark.parametrize(
    "loader",
    [
        Dataset(torch.arange(400), postprocess=slow).loader(1),
        Dataset([str(i) for i in range(400)], lambda text: np.array(int(text)), slow).loader(
            1, worker="thread", n_workers=2
        ),
        StreamLoader(range(400), 1, n_workers=0, postprocess=slow),
    ],
    ids=["gather", "workers", "stream"],
)
def test_threads_that_share_an_iterator_get_each_batch_once(loader):
    iterator = iter(loader)
    got = taken_by_threads(lambda: [int(batch) for batch in iterator])
    assert sorted(got) == list(range(400))
    assert loader.state_dict()["batch"] == 400


def test_threads_that_share_passes_get_each_step_once():
    loader = Datagen(Numbered()).passes(1, batches=8)
    got = taken_by_threads(lambda: [int(next(loader)["action"]) for _ in range(80)])
    assert sorted(got) == list(range(320))


def test_threads_that_share_generated_batches_draw_as_often_as_the_ratio_says():
    loader = Datagen(Numbered()).loader(4, n_workers=0, replay_ratio=1)
    taken_by_threads(lambda: [next(loader) for _ in range(40)])
    figures = loader.stats()
    assert 640 <= figures["steps"] <= 640 + 8
    assert loader.state_dict()["n_used"] == 640


def test_one_order_is_looked_into_at_several_places_at_once():
    n = 3 << 20
    order = Order(n, 4096, True, False, False)
    starts = [0, 100, 300, 700]
    apart = [[order.indices(Position(0, start + k)) for k in range(12)] for start in starts]
    with ThreadPoolExecutor(4) as executor:
        at_once = list(executor.map(lambda at: [order.indices(Position(0, at + k)) for k in range(12)], starts))
    for ours, theirs in zip(at_once, apart, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_a_loader_and_its_iterator_are_copied_and_pickled_with_their_place():
    loader = Dataset(torch.arange(10)).loader(2)
    iterator = iter(loader)
    next(iterator)
    for twin in (copy.deepcopy(iterator), pickle.loads(pickle.dumps(iterator))):
        assert next(twin).tolist() == [2, 3]
    assert next(iterator).tolist() == [2, 3]


def test_an_evaluation_that_was_begun_again_ends_the_one_before():
    loader = StreamLoader(range(6), 2, n_workers=0)
    first = iter(loader)
    assert next(first).tolist() == [0, 1]
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(RuntimeError, match="this iterator has ended: its loader was iterated again since"):
        next(first)


def stop(_x):
    raise StopIteration


def test_a_function_that_raises_stop_iteration_does_not_end_the_loop():
    for loader in (
        Dataset(torch.arange(4), postprocess=stop).loader(2),
        StreamLoader(range(4), 2, n_workers=0, postprocess=stop),
    ):
        with loader, pytest.raises(RuntimeError, match="postprocess raised StopIteration"):
            list(loader)
    for loader in (Dataset(["a"]).loader(1, collate=stop, n_workers=0),):
        with pytest.raises(RuntimeError, match="collate raised StopIteration"):
            list(loader)
