"""A default device of the user's does not reach what lies and is drawn on the CPU."""

import numpy as np
import pytest
import torch

from ai.data import Dataset, ReplayBuffer, augment
from tests.devices import assert_close, lies_on

X = torch.arange(96, dtype=torch.float32).view(16, 1, 2, 3)
Y = torch.arange(16) % 3


def data(**how):
    return Dataset({"x": X, "y": Y}, **how)


def replay(device):
    buffer = ReplayBuffer(64, alpha=1.0, n_step=2, seed=0)
    for _ in range(3):
        obs = np.arange(9, dtype=np.float32)[:, None]
        buffer.add({"obs": obs, "action": np.zeros(8, np.int64), "reward": np.ones(8, np.float32)})
    first = buffer.sample(4)
    buffer.update_priorities(first["index"], torch.ones(4, device="cpu"))
    return [first, buffer.sample(3)]


def batches(loader):
    return [batch for batch, _ in zip(loader, range(3), strict=False)]


USES = {
    "in order": lambda device: batches(data().loader(4, device)),
    "shuffled": lambda device: batches(data().loader(4, device, train=True)),
    "resident": lambda device: batches(data().loader(4, device, train=True, resident=True)),
    "numbers in lists": lambda device: batches(Dataset({"x": [1, 2, 3, 4]}).loader(2, device, train=True)),
    "preprocessed": lambda device: batches(data(preprocess={"x": lambda x: 2 * x}).loader(4, device, n_workers=0)),
    "changed": lambda device: [len(batches(data().then({"x": augment.flip()}).loader(4, device, train=True)))],
    "split": lambda device: [part.sample(2, device) for part in data().split(0.5, 0.5)],
    "by class": lambda device: [part.sample(2, device) for part in data().split(0.5, 0.5, stratify="y")],
    "chosen": lambda device: batches(data().subset([3, 1, 2]).loader(2, device)),
    "replay": replay,
}


@pytest.mark.parametrize("name", USES)
def test_batches_are_the_same_under_a_default_device(name, device):
    expected = USES[name](device)
    with torch.device(device if device == "cpu" else "cuda"):
        found = USES[name](device)
    if name == "changed":
        assert found == expected
    else:
        assert_close(found, expected)
        assert lies_on(found, "cpu" if name == "replay" else device)
