"""A network and its past self: equal after drawing, following by a share, carried by every kind of copy."""

import copy

import pytest
import torch
from torch import nn

import ai.model as m


class Net(m.Model):
    def __init__(self):
        super().__init__()
        self.q = m.Lagged(m.seq(m.fc(3, 4, "relu"), m.running_norm(4), m.fc(4, 2)))

    def forward(self, x):
        return self.q(x)


def moved(net):
    with torch.no_grad():
        for p in net.q.net.parameters():
            p += 1
    return net


def test_the_copy_equals_the_network_after_every_draw(on_device):
    net = moved(Net().init(seed=0)).init(seed=1)
    x = torch.randn(5, 3)
    assert torch.equal(on_device(net.eval())(x), on_device(net.q.target)(x))


def test_the_copy_follows_by_its_share_and_buffers_at_once(any_device):
    net = moved(Net().init(seed=0)).to(any_device)
    net(torch.randn(64, 3).to(any_device))
    before = [p.clone() for p in net.q.lagged.parameters()]
    net.q.follow(0.1)
    for old, new in zip(before, net.q.lagged.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
    assert net.q.lagged[1].count == net.q.net[1].count == 64
    net.q.follow()
    assert all(torch.equal(p, q) for p, q in zip(net.q.net.parameters(), net.q.lagged.parameters(), strict=True))


def test_the_copy_is_not_trained_and_gives_no_gradient():
    net = Net().init(seed=0)
    assert not any(p.requires_grad for p in net.q.lagged.parameters())
    assert not net.q.target(torch.randn(2, 3)).requires_grad
    net.train()
    assert not net.q.lagged.training
    assert net.q.net.training


def test_snapshots_and_copies_carry_both(tmp_path):
    net = moved(Net().init(seed=0))
    net.save(tmp_path / "net.safetensors")
    loaded, twin = Net().init(tmp_path / "net.safetensors"), copy.deepcopy(net)
    for other in (loaded, twin):
        for ours, theirs in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)
    twin.q.follow()
    assert not torch.equal(twin.q.lagged[0].weight, net.q.lagged[0].weight)


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"tau must lie in \[0, 1\], got 2"):
        m.Lagged(nn.Linear(1, 1)).follow(2)


@pytest.mark.parametrize("net", [m.fc(3, 3), m.seq(m.fc(3, 2), m.fc(2, 2))])
def test_a_network_that_was_exchanged_is_named_before_the_copy_moves(net):
    q = m.Lagged(m.fc(3, 2))
    before = q.lagged.weight.clone()
    q.net = net
    with pytest.raises(ValueError, match=r"the network has \d parameters and its copy 2, or of other shapes"):
        q.follow()
    assert torch.equal(q.lagged.weight, before)


@pytest.mark.parametrize("make", [lambda: m.Lagged(m.fc(1, 1)).bfloat16(), lambda: m.Lagged(m.fc(1, 1).bfloat16())])
def test_small_steps_of_half_precision_add_up(make, any_device):
    q = make().to(any_device)
    with torch.no_grad():
        q.net.weight.fill_(1.0), q.lagged.weight.zero_()
    for _ in range(1000):
        q.follow(0.001)
    torch.testing.assert_close(q.lagged.weight.cpu(), torch.tensor([[1 - 0.999**1000]]))  # in bfloat16 it stays at 0.25
    x = torch.ones(1, 1, dtype=torch.bfloat16, device=any_device)
    assert q.target(x).dtype == torch.bfloat16
    torch.testing.assert_close(q.target(x), q.lagged.weight.bfloat16() + q.lagged.bias.bfloat16())
    twin = m.Lagged(m.fc(1, 1)).bfloat16().to(any_device)
    twin.load_state_dict(q.state_dict())
    assert torch.equal(twin.bfloat16().lagged.weight, q.lagged.weight)
    q.float()
    assert {p.dtype for p in q.parameters()} == {torch.float32}
