"""The slips of the first hour get one sentence with argument, rule and value, before anything is changed."""

import numpy as np
import pytest
import torch

import ai
import ai.model as m
from ai.infer import Inferencer


def dataset():
    return ai.data.Dataset({"x": torch.zeros(8, 4), "y": torch.zeros(8, dtype=torch.uint8)})


def model():
    return m.fc(4, 2)


def train(**how):
    net = model()
    trainer = ai.Trainer(ai.train.Classify(), dataset().loader(4, train=True))
    return trainer.train(net, ai.opt.sgd(net), **{"steplimit": 1, **how})


SLIPS = [
    (lambda: train(steplimit="10"), r"steplimit must be a whole number, got '10'"),
    (lambda: train(steplimit=2.5), r"steplimit must be a whole number, got 2.5"),
    (lambda: train(steplimit=True), r"steplimit must be a whole number, got True"),
    (lambda: train(timelimit="1"), r"timelimit must be a number, got '1'"),
    (lambda: train(hook=ai.train.Hook), r"hook must be an instance: Hook\(...\), not the class Hook"),
    (lambda: ai.Trainer(ai.train.Classify(), [], accumulate="2"), r"accumulate must be a whole number, got '2'"),
    (lambda: ai.Trainer(ai.train.Classify, []), r"env must be an instance: Classify\(\), not the class Classify"),
    (lambda: ai.opt.sgd(model(), lr="1e-3"), r"lr must be a number, got '1e-3'"),
    (lambda: ai.opt.adamw(model(), weight_decay="0.1"), r"weight_decay must be a number, got '0.1'"),
    (lambda: ai.opt.sgd(model(), clip_norm="1"), r"clip_norm must be a number, got '1'"),
    (lambda: dataset().loader(4.0), r"batch_size must be a whole number, got 4.0"),
    (lambda: dataset().loader("4"), r"batch_size must be a whole number, got '4'"),
    (lambda: dataset().length("4"), r"batch_size must be a whole number, got '4'"),
    (lambda: dataset().loader(4, n_workers="2"), r"n_workers must be a whole number or None, got '2'"),
    (lambda: dataset().loader(4, timeout_s="5"), r"timeout_s must be a number or None, got '5'"),
    (lambda: Inferencer(model(), 64), r"device must be a device or several, got 64: batch_size comes after it"),
    (lambda: m.fc("4", 2), r"n1 must be a whole number, got '4'"),
    (lambda: m.fc(4, 2.0), r"n2 must be a whole number, got 2.0"),
    (lambda: m.conv(3, 8, 3.0), r"k must be a whole number, got 3.0"),
    (lambda: m.seq([m.flatten(), m.fc(4, 2)]), r"seq takes modules one by one, m.seq\(a, b\), not a list of them"),
]


@pytest.mark.parametrize(("slip", "sentence"), SLIPS, ids=[sentence[:30] for _, sentence in SLIPS])
def test_a_slip_is_named(slip, sentence):
    with pytest.raises(TypeError, match=sentence):
        slip()


def test_numbers_of_numpy_and_torch_are_numbers():
    assert train(steplimit=np.int64(2), timelimit=np.float32(60)) == 2
    assert ai.opt.adam(model(), lr=np.float64(0.1)).param_groups[0]["lr"] == 0.1
    assert m.fc(np.int64(4), torch.tensor(2)).weight.shape == (2, 4)
    assert len(dataset().loader(np.int32(4))) == 2
