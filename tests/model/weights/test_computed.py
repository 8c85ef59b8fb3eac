"""What `.init` draws, and what it refuses because nobody says how to draw it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import ai.model as m


def old_weight_norm(layer):
    return torch.nn.utils.weight_norm(layer)


def old_spectral_norm(layer):
    return torch.nn.utils.spectral_norm(layer)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", amount=0.25)
    return layer


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def doubled(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


COMPUTED = [parametrizations.weight_norm, parametrizations.spectral_norm, old_weight_norm, old_spectral_norm, pruned]
COMPUTED += [doubled]


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.spectral_norm.* is deprecated")
@pytest.mark.parametrize("wrap", COMPUTED, ids=lambda f: f"{f.__module__}.{f.__name__}")
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 6), lambda: m.fc(8, 6, actv="gelu"), lambda: nn.Conv1d(4, 6, 2)])
def test_a_computed_weight_is_drawn_by_its_layers_rule(wrap, make):
    def built(seed):
        torch.manual_seed(0)  # what is pruned depends on the numbers before
        return m.Model(wrap(make())).init(seed=seed)

    first, second, third = built(0), built(0), built(1)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    x = torch.randn(4, 8) if not isinstance(make(), nn.Conv1d) else torch.randn(4, 4, 5)
    first.eval(), third.eval()
    assert (first(x) != third(x)).any()
    plain = m.Model(make()).init(seed=0)
    weight = first.net.weight.detach()
    if wrap in (parametrizations.weight_norm, old_weight_norm):
        torch.testing.assert_close(weight, plain.net.weight.detach())
    elif wrap in (parametrizations.spectral_norm, old_spectral_norm):
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
        flat, expected = weight.flatten(), plain.net.weight.detach().flatten()
        assert (flat @ expected / flat.norm() / expected.norm()).item() == pytest.approx(1, abs=1e-5)
    elif wrap is pruned:
        assert (weight == 0).sum() == weight.numel() // 4
        torch.testing.assert_close(weight, plain.net.weight.detach() * first.net.weight_mask)
    else:
        torch.testing.assert_close(weight, 2 * plain.net.weight.detach())


def test_a_weight_that_something_unknown_computes_is_refused():
    layer = nn.Linear(2, 2)
    del layer.weight
    layer.weight = torch.ones(2, 2)
    with pytest.raises(ValueError, match="the weight of Linear must be a parameter, or what computes it be known"):
        m.Model(layer).init()


class Undrawn(nn.Module):
    """Draws its own numbers as it is built, and says to nobody how."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.layer = nn.Linear(3, 3)
        self.register_buffer("table", torch.arange(3), persistent=False)
        self.register_buffer("flags", torch.ones(3, dtype=torch.bool))


class Drawn(Undrawn):
    def init_params(self, rng):
        m.draw_normal(self.scale, 1.0, rng)
        self.table.copy_(torch.arange(3))
        self.flags.fill_(False)


def test_memory_that_nobody_draws_is_refused_by_name(tmp_path):
    with torch.device("meta"):
        model = m.Model(Undrawn())
    with pytest.raises(ValueError, match=r"net.scale, net.table, net.flags must be drawn by somebody"):
        model.init(seed=0)
    m.Model(Undrawn()).save(tmp_path / "x.pt")
    with torch.device("meta"):
        model = m.Model(Undrawn())
    with pytest.raises(ValueError, match=r"^net.table must be drawn by somebody"):  # no file holds it
        model.init(tmp_path / "x.pt")


def test_memory_that_a_rule_or_a_file_fills_is_accepted(tmp_path):
    with torch.device("meta"):
        model, other = m.Model(Drawn()), m.Model(Drawn())
    model.init(seed=0)
    assert model.net.table.tolist() == [0, 1, 2]
    assert model.net.flags.tolist() == [False] * 3
    model.save(tmp_path / "x.pt")
    torch.testing.assert_close(other.init(tmp_path / "x.pt").state_dict(), model.state_dict(), rtol=0, atol=0)


class Tied(m.Model):
    """A language model's two tables in one."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), m.fc(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_what_was_tied_on_the_meta_device_is_tied_and_drawn_the_same(tmp_path):
    real = Tied().init(seed=0)
    real.save(tmp_path / "x.pt")
    for options in ({"seed": 0}, {"path": tmp_path / "x.pt"}):
        with torch.device("meta"):
            model = Tied()
        model.init(**options)
        assert model.head.weight is model.embed.weight
        assert model.n_params == real.n_params == 15
        torch.testing.assert_close(model.head.weight, real.head.weight, rtol=0, atol=0)


def test_a_weight_that_two_rules_compute_is_drawn():
    layer = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(8, 6)))
    first, second = (m.Model(layer).init(seed=seed).net.weight.detach().clone() for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.linalg.matrix_norm(second, 2).item() == pytest.approx(1, abs=0.02)


def test_copies_that_would_be_twins_are_refused():
    with pytest.raises(ValueError, match=r"block must say how 0.scale is drawn, or its copies are twins: give Undrawn"):
        m.repeat(2, nn.Sequential(Undrawn()))
    assert len(m.repeat(1, Undrawn())) == 1
    first, second = m.repeat(2, Undrawn)
    assert (first.scale != second.scale).any()
    first, second = m.repeat(2, Drawn())
    assert (first.scale != second.scale).any()
    m.repeat(2, m.layer_scale(4))


def test_lazy_layers_are_named():
    with pytest.raises(ValueError, match=r"net.1.weight, net.1.bias must have a shape before it is drawn"):
        m.Model(nn.Sequential(nn.Flatten(), nn.LazyLinear(3))).init()


@pytest.mark.parametrize("norm", ["instance", "pixel"])
def test_a_small_start_that_a_norm_would_undo_is_refused(norm):
    with pytest.raises(ValueError, match=rf"init_gain \(0.1\) must be 1 with norm '{norm}'"):
        m.conv(4, 4, norm=norm, init_gain=0.1)
    branch = m.conv(4, 4, norm=norm)
    with pytest.raises(ValueError, match=r"init_gain \(0.1\) must be 1 where the branch ends in no layer"):
        m.res(branch, init_gain=0.1)
    m.res(branch)


def test_a_small_start_is_small():
    x = torch.randn(4, 8, 6, 6)
    for norm in (None, "group", "batch"):
        assert 0.05 < m.conv(8, 8, norm=norm, init_gain=0.1)(x).std() < 0.2
