import pytest
import torch
from torch import nn

from ai.train import Trainer, opt
from ai.train.engine.finite import not_finite

INF, NAN = float("inf"), float("nan")
LARGEST = torch.finfo(torch.float32).max
SPARSE = torch.tensor([0.0, INF, -INF]).to_sparse()


@pytest.mark.parametrize(
    ("grads", "bad"),
    [
        ([], 0),
        ([torch.zeros(3), torch.ones(0)], 0),
        ([torch.zeros(3), torch.tensor([0.0, NAN])], 1),
        ([torch.tensor([INF, -INF])], 1),
        ([torch.tensor([-INF]), torch.zeros(2)], 1),
        ([torch.full((4,), LARGEST)], 0),  # the sum alone is infinite
        ([torch.full((4,), 6e4, dtype=torch.float16)], 0),
        ([torch.full((4,), 6e4, dtype=torch.float16), torch.tensor([INF], dtype=torch.bfloat16)], 1),
        ([torch.tensor([1 + 2j, 3j])], 0),
        ([torch.tensor([1 + 2j, complex(0, NAN)])], 1),
        ([torch.eye(3).to_sparse()], 0),
        ([SPARSE], 1),
        ([torch.full((2,), LARGEST).to_sparse()], 0),
        ([torch.zeros(4, 3).T, torch.full((4, 3), NAN).T], 1),
    ],
)
def test_what_is_not_finite_is_found_and_nothing_else(grads, bad, on_device):
    assert float(on_device(not_finite)(torch.tensor(0.0), grads)) == bad
    assert float(on_device(not_finite)(torch.tensor(NAN), grads)) == 1


def test_rows_of_a_sparse_embedding_that_are_not_finite_are_skipped():
    torch.manual_seed(0)
    model = nn.Embedding(5, 2, sparse=True)
    before = model.weight.detach().clone()

    def env(model, batch, step):
        return model(batch).sum() * (INF if step == 1 else 1.0)

    data = [torch.tensor([0, 0, 2]), torch.tensor([1, 3]), torch.tensor([2])]
    Trainer(env, data, on_nan="skip").train(model, torch.optim.SGD(model.parameters(), lr=1.0), [])
    assert torch.allclose(before - model.weight, torch.tensor([[2.0], [0], [2], [0], [0]]).expand(5, 2))


def test_gradients_whose_sum_alone_is_infinite_are_used(any_device):
    model = nn.Linear(1, 4, bias=False)
    nn.init.zeros_(model.to(any_device).weight)
    Trainer(lambda m, b, s: m(b).sum(), [torch.full((1, 1), 2e38, device=any_device)], on_nan="skip").train(
        model, opt.sgd(model, lr=1e-38), []
    )
    assert torch.allclose(model.weight.cpu(), torch.full((4, 1), -2.0))
