import math

import pytest
import torch
from torch import nn

from ai.train import Contrastive, Trainer, opt


def by_hand(first, second, temperature):
    """Equation 1 of the paper, pair by pair."""
    z = torch.cat([first, second]).double()
    n, total = len(first), 0.0
    similar = [[float(torch.cosine_similarity(a, b, dim=0)) / temperature for b in z] for a in z]
    for i in range(2 * n):
        others = sum(math.exp(similar[i][k]) for k in range(2 * n) if k != i)
        total -= similar[i][(i + n) % (2 * n)] - math.log(others)
    return total / (2 * n)


def test_the_loss_is_the_papers(on_device):
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    for batch in ((first, second), {"x": first, "y": second}):
        assert on_device(Contrastive(temperature=0.3))(nn.Identity(), batch, 0).item() == pytest.approx(
            by_hand(first, second, 0.3), rel=1e-5
        )


def test_views_are_drawn_twice():
    drawn = []

    def view(x):
        drawn.append(x + torch.randn(x.shape))
        return drawn[-1]

    torch.manual_seed(0)
    loss = Contrastive(view)(nn.Identity(), torch.zeros(4, 3), 0)
    assert len(drawn) == 2
    assert not torch.equal(*drawn)
    assert loss.item() == pytest.approx(by_hand(*drawn, 0.5), rel=1e-5)


def test_rows_are_told_apart_after_training():
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    model = nn.Linear(8, 8)
    env = Contrastive(lambda x: x + 0.5 * torch.randn(x.shape))
    before = Trainer(env, []).validate(model, [x])
    Trainer(env, [x] * 100).train(model, opt.adam(model, lr=0.02))
    assert Trainer(env, []).validate(model, [x]) < before - 0.2


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"temperature \(0\) must be positive"):
        Contrastive(temperature=0)
    with pytest.raises(ValueError, match=r"output \(4, 1, 2\) must be one vector a row"):
        Contrastive()(nn.Unflatten(1, (1, 2)), (torch.ones(2, 2), torch.ones(2, 2)), 0)
