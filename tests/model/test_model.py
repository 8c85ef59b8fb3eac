import copy
import inspect
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ai.model as m
from ai.model.activation import _MODULES


def small():
    return m.Model(m.seq(m.fc(3, 4, actv="relu"), m.fc(4, 2)))


def test_torch_seed_decides_without_a_seed():
    torch.manual_seed(5)
    first = small().init()
    torch.manual_seed(5)
    assert torch.equal(first.net[0].weight, small().init().net[0].weight)
    assert not torch.equal(first.net[0].weight, small().init().net[0].weight)


def test_plain_torch_modules_are_drawn_too():
    class Plain(m.Model):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(16, 4), nn.LayerNorm(4)
            )
            self.attention = nn.MultiheadAttention(4, 2)
            self.memory = nn.GRU(4, 4)
            self.bilinear = nn.Bilinear(4, 4, 4)

    first, second = Plain().init(seed=0), Plain().init(seed=0)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    third = Plain().init(seed=1)
    for key, value in first.named_parameters():
        if value.dim() > 1:
            assert (value != third.get_parameter(key)).any(), key


def test_forget_gates_start_open_and_padding_stays_zero():
    lstm = m.lstm(3, 4)
    assert lstm.bias_ih_l0.view(4, 4).tolist() == [[0] * 4, [1] * 4, [0] * 4, [0] * 4]
    assert not lstm.bias_hh_l0.any()
    table = m.init_module(nn.Embedding(5, 3, padding_idx=2))
    assert table.weight.any(1).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("actv", ["relu", "gelu", "silu", "tanh"])
def test_initial_cross_entropy_of_a_ten_class_mlp_is_near_chance(actv):
    x = torch.randn(256, 784, generator=torch.Generator().manual_seed(1000))
    y = torch.randint(10, (256,), generator=torch.Generator().manual_seed(1001))
    layers = m.seq(
        m.fc(784, 128, actv=actv), m.repeat(3, lambda: m.fc(128, 128, actv=actv)), m.fc(128, 128), m.fc(128, 10)
    )
    losses = [F.cross_entropy(m.Model(layers).init(seed=seed)(x), y).item() for seed in range(6)]
    assert max(losses) <= 2.6, losses  # chance is 2.303
    assert m.Model(layers).init(seed=0)(x).std() > 0.05  # small, not zero


def sizes(block, *shapes, seed=0):
    """Standard deviations after each of twenty blocks."""
    rng = torch.Generator().manual_seed(1000 + seed)  # not the weights' seed, which would draw equal numbers
    x, *rest = (torch.randn(shape, generator=rng) for shape in shapes)
    found = []
    with torch.no_grad():
        for layer in m.Model(m.repeat(20, block)).init(seed=seed).net:
            x = layer(x, *rest)
            found.append(x.std().item())
    return found


# What no rule of drawing can do: a sigmoid's deviation is below a half whatever goes in, and relu² squares all errors
# of size. The exceptions by block: hardswish enlarges errors by a tenth a layer, which is too much where a style lets
# some of the mean pass; selu has a slope above one, for which there is no sum to stay; and softplus, never negative,
# is mostly mean to a second layer.
SMOOTH = ["gelu", "gelu_tanh", "silu", "swish", "mish", "softplus"]
ACTIVATIONS = ["relu", "lrelu", "leaky_relu", "prelu", "elu", "selu", "tanh", "hardswish", *SMOOTH]
IMAGE, TOKENS, Z = (4, 32, 8, 8), (8, 16, 64), (4, 16)


def wide(actv, least, most):
    """The random walk of a product of n-by-n matrices goes with 1 / n, except where weights sum to zero."""
    return least if m.activation.is_centred(actv, least) else most


def fc_chain(actv):
    n = wide(actv, 128, 768)
    return lambda: m.fc(n, n, actv=actv), (64, n)


def conv_chain(actv):
    n = wide(actv, 64, 192)  # without a border: zero padding takes away energy
    return lambda: m.conv(n, n, actv=actv, padtype="circular"), (4, n, 4, 4)


KEEPERS = {
    "fc": fc_chain,
    "conv": conv_chain,
    "conv with norm": lambda actv: (lambda: m.conv(32, 32, norm="batch", actv=actv), IMAGE),
    "res": lambda actv: (lambda: m.res(m.seq(m.fc(64, 64, actv=actv), m.fc(64, 64))), (256, 64)),
    "resblk": lambda actv: (lambda: m.resblk(32, 32, actv=actv), IMAGE),
    "resblk without se": lambda actv: (lambda: m.resblk(32, 32, actv=actv, norm="group", se=False), IMAGE),
    "tx_enc_blk": lambda actv: (lambda: m.tx_enc_blk(64, 4, actv=actv), TOKENS),
    "tx_dec_blk": lambda actv: (lambda: m.tx_dec_blk(64, 4, actv=actv), TOKENS, TOKENS),
    "modconv": lambda actv: (lambda: m.modconv(384, 384, 16, k=1, actv=actv), (4, 384, 4, 4), Z),
    "modconv adalin": lambda actv: (lambda: m.modconv(32, 32, 16, "adalin", actv=actv), IMAGE, Z),
    "modfc": lambda actv: (lambda: m.modfc(512, 512, 16, actv=actv), (64, 512), (64, 16)),
    "modresblk": lambda actv: (lambda: m.modresblk(32, 32, 16, actv=actv), IMAGE, Z),
}
EXCEPTIONS = {
    "hardswish": ("modconv", "modfc"),
    "selu": ("resblk", "resblk without se"),
    "softplus": ("res", "tx_dec_blk", "modresblk"),
}
KEPT = [(kind, actv) for actv in ACTIVATIONS for kind in KEEPERS if kind not in EXCEPTIONS.get(actv, ())]
KEPT += [("tx_enc_blk", "relu2"), ("tx_dec_blk", "relu2")]


@pytest.mark.parametrize(("kind", "actv"), KEPT)
def test_activations_keep_their_size_through_twenty_blocks(kind, actv):
    found = sizes(*KEEPERS[kind](actv))
    assert min(found) > 0.5, found
    assert max(found) < 2, found


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (lambda: m.fc(512, 512), (64, 512)),
        (lambda: m.fc(512, 512, scale_w=True, lr_mult=0.01), (64, 512)),
        (lambda: m.conv(64, 64, scale_w=True, padtype="circular"), (4, 64, 8, 8)),
        (lambda: m.res(m.sa(64, 4)), TOKENS),
        (lambda: m.res(m.mlp(64, 256)), TOKENS),
        (lambda: m.tx_enc_blk(64, 4, norm="rms", qk_norm=True, rotary=True), TOKENS),
    ],
)
def test_blocks_without_an_activation_keep_the_size_too(block, shape):
    found = sizes(block, shape)
    assert min(found) > 0.5, found
    assert max(found) < 2, found


def test_every_activation_has_been_looked_at():
    assert {*ACTIVATIONS, "relu2", "sigmoid"} == set(_MODULES)


@pytest.mark.parametrize("name", [name for name in _MODULES if name not in ("sigmoid",)])
def test_gains_keep_the_second_moment(name):
    z = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5 * (z[1] - z[0])
    f = m.actv(name).double()
    after = m.actv_gain(name, after=True)
    assert after**2 * (f(z).square() * weight).sum().item() == pytest.approx(1, abs=1e-4)
    if name != "tanh":  # no gain does it for a bounded function
        assert (f(m.actv_gain(name) * z).square() * weight).sum().item() == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("name", [name for name in _MODULES if m.activation.is_centred(name, 32)])
def test_gains_of_centred_weights_keep_the_standard_deviation(name):
    z = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5 * (z[1] - z[0])
    f = m.actv(name).double()

    def variance(y):
        return (y.square() * weight).sum().item() - (y * weight).sum().item() ** 2

    assert variance(f(m.actv_gain(name, centred=True) * z)) == pytest.approx(1, abs=1e-4)
    assert m.actv_gain(name, after=True, centred=True) ** 2 * variance(f(z)) == pytest.approx(1, abs=1e-4)


def test_few_inputs_are_not_centred_for_their_mean_counts():
    assert m.fc(2, 100, actv="silu").weight.sum(1).std() > 1
    assert m.fc(32, 100, actv="silu").weight.sum(1).abs().max() < 1e-5
    assert m.conv(4, 8, actv="gelu").weight.sum((1, 2, 3)).abs().max() < 1e-5
    assert m.fc(32, 100, actv="relu").weight.sum(1).std() > 1


@pytest.mark.parametrize("actv", ["relu", "lrelu", "silu"])
def test_equalised_layers_keep_the_size_of_what_goes_through_them(actv):
    x = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    for layer in (m.fc(512, 512, actv=actv, scale_w=True), m.fc(512, 512, actv=actv, scale_w=True, lr_mult=0.01)):
        torch.manual_seed(1)
        m.init_module(layer)
        assert layer(x).square().mean().item() == pytest.approx(1, abs=0.1)
    image = x.view(256, 128, 2, 2)
    published = m.conv(128, 512, 1, actv="lrelu", scale_w=True, gain=2**0.5)  # the gain is the user's, not twice
    assert m.init_module(published, seed=0)(image).square().mean().item() == pytest.approx(2 * 0.52, abs=0.1)


def test_residual_branches_start_small_but_not_at_zero():
    model = m.Model(m.res(m.seq(m.fc(64, 64, actv="relu"), m.fc(64, 64)))).init(seed=0)
    x = torch.randn(256, 64)
    branch = model(x) - x
    assert 0.1 < branch.std() < 0.5


def test_a_mismatch_lists_all_names_and_changes_nothing(tmp_path):
    m.Model(m.seq(m.fc(3, 4), m.fc(4, 2), m.fc(2, 2))).init().save(tmp_path / "a.pt")
    model = m.Model(m.seq(m.fc(3, 4, bias=False), m.fc(5, 2), m.null(), m.fc(2, 2))).init()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"missing: net.3.weight, net.3.bias; unexpected: net.0.bias, net.2.weight"
    ) as e:
        model.init(tmp_path / "a.pt")
    assert "misshapen: net.1.weight (model (2, 5), file (2, 4))" in str(e.value)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    with pytest.warns(UserWarning, match="did not fit whole; missing: net.3.weight"):
        model.init(tmp_path / "a.pt", strict=False)
    assert not torch.equal(model.net[0].weight, before["net.0.weight"])


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("bad.pt", "wb") as file:
        torch.save({"net.weight": Hostile()}, file)
    with pytest.raises(ValueError, match="nothing that runs code"):
        small().init("bad.pt")
    with open("raw.pt", "wb") as file:
        pickle.dump(Hostile(), file)
    with pytest.raises(ValueError, match="nothing that runs code"):
        small().init("raw.pt")
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_missing_or_damaged_file_is_named(ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    with pytest.raises(FileNotFoundError, match=f"x.{ending}"):
        small().init(path)
    model = small().init()
    model.save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="path"):
        small().init(path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="dict of tensors by name, got list"):
        small().init(tmp_path / "list.pt")


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_tied_weights_survive(ending, tmp_path):
    def tied():
        model = m.Model(m.seq(m.fc(4, 4), m.fc(4, 4)))
        model.net[1].weight = model.net[0].weight
        return model.init()

    model = tied()
    assert model.n_params == 24
    model.save(tmp_path / f"m.{ending}")
    loaded = tied().init(tmp_path / f"m.{ending}")
    assert loaded.net[0].weight is loaded.net[1].weight
    assert torch.equal(loaded.net[0].weight, model.net[0].weight)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    model = small().init()
    model.save(tmp_path / "m.pt")
    before = (tmp_path / "m.pt").read_bytes()
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "m.pt")
    assert (tmp_path / "m.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["m.pt"]


def test_names_of_a_compiled_model_load(tmp_path):
    model = small().init()
    m.save_state({f"_orig_mod.{key}": value for key, value in model.state_dict().items()}, tmp_path / "m.pt")
    torch.testing.assert_close(small().init(tmp_path / "m.pt").state_dict(), model.state_dict(), rtol=0, atol=0)


def test_freezing_by_pattern():
    model = small().set_req_grad(False, "net.0.*")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    with pytest.raises(ValueError, match=r"pattern \('encoder.\*'\) must match .* net.0.weight"):
        model.set_req_grad(True, "encoder.*")


def test_summary_names_layers_shapes_and_totals():
    model = small().init()
    model.net[1].eval()
    table = model.summary(torch.zeros(5, 3))
    assert "net.0" in table
    assert "(5, 4)" in table
    assert table.splitlines()[-1].split() == ["total", "26"]
    assert model.net[0].training
    assert not model.net[1].training


def test_help_shows_what_a_model_is_made_with_and_called_with():
    class Net(m.Model):
        def __init__(self, width: int, depth: int = 2):
            super().__init__(nn.Linear(width, depth))

    assert list(inspect.signature(m.Model).parameters) == ["net"]
    assert str(inspect.signature(Net)) == "(width: int, depth: int = 2)"
    assert "width" not in inspect.signature(Net(3)).parameters


def test_a_model_without_net_or_forward_says_so():
    with pytest.raises(NotImplementedError, match="Model must be given a net or define forward"):
        m.Model()(1)
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module, not function"):
        m.Model(lambda x: x)
    with pytest.raises(ValueError, match=r"seed \(1\) must be None with a path"):
        small().init("x.pt", seed=1)


def test_a_model_knows_the_plain_arguments_it_was_made_with():
    class Sized(m.Model):
        def __init__(self, n, sizes=(), block=None):
            super().__init__(m.fc(n, 2))

    made = Sized(3, sizes=[1, 2])
    assert (made.init_args, made.init_kwargs) == ((3,), {"sizes": [1, 2]})
    assert copy.deepcopy(made).init_kwargs == {"sizes": [1, 2]}
    other = Sized(3, block=lambda n: n)  # no file can say this
    assert (other.init_args, other.init_kwargs) == (None, None)
    assert m.Model(m.fc(2, 2)).init_args is None


def _norms(model):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("make", [lambda: Doubled(8), lambda: nn.BatchNorm2d(8)], ids=["another norm", "a hook"])
def test_a_norm_that_does_more_than_its_name_says_is_not_folded(make):
    norm = make()
    if type(norm) is nn.BatchNorm2d:
        norm.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for model in (nn.Sequential(nn.Conv2d(3, 8, 3), norm), m.conv(3, 8, norm=lambda nc: norm)):
        torch.testing.assert_close(m.fold(model)(x), model.eval()(x).detach())


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: m.seq(m.conv(3, 8, norm="batch", actv="relu"), m.resblk(8, 8), m.conv(8, 4, 1, norm="batch")), 0),
        (lambda: m.conv(3, 8, norm="batch", bias=True, scale_w=True, lr_mult=0.5, actv="silu", stride=0.5), 0),
        (lambda: m.conv(3, 8, stride=2, blur=(1, 3, 3, 1), norm=lambda nc: m.norm.batch(nc, affine=False)), 0),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)), 1),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)), 1),
        (lambda: m.seq(m.conv(3, 8, norm="group"), m.norm.batch(8)), 1),
    ],
)
def test_a_folded_network_computes_the_same_with_fewer_norms(make, left, on_device):
    torch.manual_seed(0)
    model = make()
    for _ in range(3):  # statistics and affine parts that are not 1 and 0
        model(torch.randn(16, 3, 8, 8) * 2 + 1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    folded, x = m.fold(model), torch.randn(4, 3, 8, 8)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not folded.training
    assert _norms(folded) == left <= _norms(model)
    torch.testing.assert_close(on_device(folded)(x), model.eval()(x).detach(), atol=1e-4, rtol=1e-4)


def test_orthogonal_layers_are_drawn_so_at_init_too_with_the_gain_nearest_to_them():
    head = m.orthogonal(m.fc(8, 2, scale_w=True, lr_mult=0.5), 0.01)
    net = m.Model(m.orthogonal(m.seq(m.conv(2, 8, 3, actv="tanh"), m.global_avg(), head), 1.5))
    for seed in (0, 1, 0):
        net.init(seed=seed)
        conv = net.net[0].weight.flatten(1)
        torch.testing.assert_close(conv @ conv.T, 1.5**2 * torch.eye(8), atol=1e-5, rtol=0)
        used = head.weight * head.weight_scale
        torch.testing.assert_close(used @ used.T, 0.01**2 * torch.eye(2), atol=1e-8, rtol=0)
        assert (net.net[0].bias == 0).all()
    twin = copy.deepcopy(net).init(seed=0)
    assert torch.equal(twin.net[0].weight, net.net[0].weight)


def test_a_module_without_weights_cannot_be_orthogonal():
    with pytest.raises(
        ValueError, match="module must have weights of two axes or more to be orthogonal, ReLU has none"
    ):
        m.orthogonal(torch.nn.ReLU())
