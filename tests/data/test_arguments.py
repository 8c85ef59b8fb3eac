"""Numbers at the doors of the package: what is none is named, with its value."""

import numpy as np
import pytest
import torch

from ai.data import Datagen, Dataset, ReplayBuffer, augment, packed_tokens, sampling
from ai.data.loading.stream import StreamLoader


class Coins:
    def start(self, seed, worker):
        pass

    def update_params(self, state_dict, version):
        pass

    def __next__(self):
        raise StopIteration


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StreamLoader(range(5), 2.5), "batch_size must be a whole number, got 2.5"),
        (lambda: StreamLoader(range(5), 2, shuffle="9"), "shuffle must be a whole number, got '9'"),
        (lambda: Dataset(torch.arange(9)).sample(2.0), "n must be a whole number, got 2.0"),
        (lambda: ReplayBuffer("20"), "capacity must be a whole number, got '20'"),
        (lambda: ReplayBuffer(20, alpha="1"), "alpha must be a number or None, got '1'"),
        (lambda: ReplayBuffer(20).sample(2.0), "batch_size must be a whole number, got 2.0"),
        (lambda: sampling.in_blocks(10.0), "n must be a whole number, got 10.0"),
        (lambda: sampling.by_length([1, 2], 2.5), "window must be a whole number, got 2.5"),
        (lambda: augment.rand_augment("2"), "n_changes must be a whole number, got '2'"),
        (lambda: augment.aug_mix(alpha="1"), "alpha must be a number, got '1'"),
        (lambda: augment.mixup("10"), "n_classes must be a whole number, got '10'"),
        (lambda: augment.flip("0.5"), "p must be a number, got '0.5'"),
        (lambda: augment.rand_augment(magnitude=None), "magnitude must be a number, got None"),
        (lambda: augment.aug_mix(depth="1"), "depth must be a whole number or None, got '1'"),
        (lambda: Datagen(Coins()).loader(8, n_workers=None), "n_workers must be a whole number, got None"),
        (lambda: Datagen(Coins()).passes(2, gamma=None), "gamma must be a number, got None"),
        (lambda: Datagen(Coins()).passes(2, batches=None), "batches must be a whole number, got None"),
        (lambda: Dataset(torch.arange(9)).loader(2, seed=None), "seed must be a whole number, got None"),
        (lambda: Dataset(torch.arange(9)).split(0.5, 0.5, seed=None), "seed must be a whole number, got None"),
        (lambda: Dataset(torch.arange(9)).sample(2, seed="1"), "seed must be a whole number, got '1'"),
        (lambda: ReplayBuffer(20, gamma=None), "gamma must be a number, got None"),
        (lambda: Datagen(Coins()).loader(8, engine=5), r"engine must start workers, as ai.data.Ray\(\) does, got 5"),
        (lambda: Dataset(torch.arange(9)).loader(2, collate=5), "collate must be callable, got 5"),
        (
            lambda: Dataset(torch.arange(9)).loader(2, sampler=torch.utils.data.RandomSampler(range(9))),
            r"sampler must be one of ai\.data\.sampling, or like them a function of places, got <torch",
        ),
        (lambda: packed_tokens([[1, 2]], "3"), "length must be a whole number, got '3'"),
    ],
)
def test_what_is_no_number_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_numbers_of_numpy_are_numbers():
    assert len(ReplayBuffer(np.int64(20), alpha=np.float32(0.5))) == 0
    assert len(Dataset(torch.arange(9)).sample(np.int64(2))) == 2
    with pytest.raises(ValueError, match="alpha must be a number, got nan"):
        augment.mixup(10, float("nan"))
    with pytest.raises(ValueError, match="alpha must be positive and finite, got inf"):
        augment.aug_mix(alpha=float("inf"))
    with pytest.raises(ValueError, match="replay_ratio must be positive and finite, got inf"):
        Datagen(Coins()).loader(8, replay_ratio=float("inf"))
    parts = Dataset(torch.arange(10)).split(np.float32(0.5), np.float32(0.5))
    assert [len(part) for part in parts] == [5, 5]
    with pytest.raises(ValueError, match=r"ratios must be positive and sum to 1, got \(nan, 0.5\)"):
        Dataset(torch.arange(10)).split(float("nan"), 0.5)
    with pytest.raises(ValueError, match=r"all fractions, all counts or all index lists, got \(True, 9\)"):
        Dataset(torch.arange(10)).split(True, 9)
