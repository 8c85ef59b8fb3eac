from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from ai.train import Trainer, opt
from ai.train.engine.batch_weight import UnknownWeight, rows

Pair = namedtuple("Pair", "x y")


@dataclass
class Sample:
    x: torch.Tensor
    name: str = "a"


@pytest.mark.parametrize(
    ("batch", "wanted"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.zeros(5, 2), torch.zeros(5)), 5),
        ([torch.zeros(5, 5), torch.zeros(5, 5)], 5),  # as torch's collate gives a pair
        (Pair(torch.zeros(4, 2), torch.zeros(4)), 4),
        (UserDict({"ids": torch.zeros(3, 7), "mask": torch.zeros(3, 7)}), 3),  # as transformers gives it
        (Sample(torch.zeros(6, 2)), 6),
        ({"a": {"b": {"c": torch.zeros(2, 9)}}, "scale": torch.tensor(3.0)}, 2),
        ([{"x": torch.zeros(9)}] * 3, 3),  # samples
        ([Sample(torch.zeros(9))] * 2, 2),
        ([(torch.zeros(3, 32, 32), 1)] * 8, 8),
        ({"x": torch.zeros(4, 2), "text": list("abcd")}, 4),
        ({"x": torch.zeros(4, 2), "classes": ["cat", "dog"]}, 4),
        ({"text": ["a", "b", "c"]}, 3),
        (torch.zeros(4, 2).numpy(), 4),
    ],
)
def test_rows_are_found_in_every_form_of_batch(batch, wanted):
    assert rows(batch) == wanted


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (3, r"the rows of a batch \(int\) cannot be told, it has nothing with a leading axis"),
        ({"x": torch.zeros(()), "y": None}, r"batch \(dict\) cannot be told, it has nothing with a leading axis"),
        ((torch.zeros(9, 2), torch.zeros(4)), r"batch \(tuple\) cannot be told, it has leading axes of 4, 9"),
        ([torch.zeros(3)] * 4, "a list of 4 tensors of one shape may be samples or fields"),
    ],
)
def test_a_weight_that_is_not_known_is_refused_where_it_matters(batch, message):
    with pytest.raises(UnknownWeight, match=message):
        rows(batch)
    model = nn.Linear(1, 1)
    plain = Trainer(lambda m, b, s: m(torch.ones(1, 1)).sum(), [batch] * 2)
    assert plain.train(model, opt.sgd(model)) == 2
    assert plain.validate(model, [batch]) == pytest.approx(model(torch.ones(1, 1)).item())
    with pytest.raises(UnknownWeight, match=message):
        plain.validate(model, [batch] * 2)
    with pytest.raises(UnknownWeight, match=message):
        Trainer(plain.env, [batch] * 2, accumulate=2).train(model, opt.sgd(model))
    weighted = Trainer(lambda m, b, s: (m(torch.ones(1, 1)).sum(), 2.0), [batch] * 2, accumulate=2)
    assert weighted.train(model, opt.sgd(model)) == 1
