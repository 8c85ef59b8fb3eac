"""Tools of the ecosystem, pointed at our blocks: each does what it does for plain torch."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import ai.model as m
from tests.model.blocks import BLOCKS


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Gpt(m.Model):
    def __init__(self):
        super().__init__()
        self.embed, self.positions = m.embed(11, 16), m.pos_emb(8, 16)
        self.blocks = m.tx_enc(2, 16, 2, causal=True)
        self.head = m.fc(16, 11)

    def forward(self, codes):
        return self.head(self.blocks(self.positions(self.embed(codes))))


def linears(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


CODES = torch.arange(16).view(2, 8) % 11


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: m.fc(4, 3), nn.Linear),
        (lambda: m.fc(4, 3, bias=False, bias_init=0.0, init_gain=0.1), nn.Linear),
        (lambda: m.conv(4, 3), nn.Conv2d),
        (lambda: m.conv(4, 4, 5, 2, groups=4, padtype="reflect"), nn.Conv2d),
        (lambda: m.conv(4, 4, 3, padtype="none"), nn.Conv2d),
        (lambda: m.conv(4, 3, 4, 2, bias=False), nn.Conv2d),
    ],
)
def test_a_plain_layer_is_torchs_own(make, kind):
    layer = make()
    assert type(layer) is kind
    keys = {"weight", "bias"} if layer.bias is not None else {"weight"}
    assert set(layer.state_dict()) == keys


def test_a_plain_layer_is_drawn_as_the_block_is():
    for make in (
        lambda actv: m.fc(64, 8, actv=actv, init_gain=0.3, bias_init=2.0),
        lambda actv: m.conv(8, 8, actv=actv),
    ):
        plain, more = m.Model(make(None)).init(seed=0), m.Model(make(torch.nn.Identity())).init(seed=0)
        torch.testing.assert_close(plain.state_dict(), more.state_dict(), rtol=0, atol=0)


def test_a_weight_decay_rule_by_class_finds_every_parameter():
    model = Gpt()
    decayed, spared = set(), set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and isinstance(module, nn.Linear):
                decayed.add(parameter)
            elif name == "bias" or isinstance(module, nn.LayerNorm | nn.Embedding) or module is model.positions:
                spared.add(parameter)
    assert decayed | spared == set(model.parameters())
    assert len(decayed) == 2 * 5 + 1


def test_apply_reaches_every_layer():
    def init(module):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.constant_(module.weight, 0.5)

    for model in (Gpt(), m.to_torch(m.Model(m.seq(m.resblk(3, 8), m.flatten(), m.fc(8, 2, actv="relu"))))):
        model.apply(init)
        rest = [name for name, p in model.named_parameters() if p.dim() > 1 and not (p == 0.5).all()]
        assert rest in ([], ["positions.table"])


@pytest.mark.parametrize("make", [Gpt, lambda: m.to_torch(m.Model(m.seq(m.fc(11, 16, actv="relu"), m.lstm(16, 8))))])
def test_dynamic_quantisation_takes_every_linear_layer(make):
    from torch.ao.quantization import quantize_dynamic

    model = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor, and where its tensors come from
        small = quantize_dynamic(copy.deepcopy(model), {nn.Linear, nn.LSTM}, dtype=torch.qint8)
    kinds = [type(layer).__module__ for layer in small.modules()]
    expected = sum(isinstance(layer, nn.Linear | nn.LSTM) for layer in model.modules())
    assert sum("quantized" in kind and "dynamic" in kind for kind in kinds) >= expected > 0
    assert not linears(small)
    if isinstance(model, Gpt):
        assert (small(CODES) - model(CODES)).abs().max() < 0.2


def test_torchao_quantises_every_linear_layer():
    torchao = pytest.importorskip("torchao.quantization")
    model = Gpt().eval()
    before = model(CODES)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    kinds = {type(layer.weight).__name__ for layer in linears(model).values()}
    assert len(linears(model)) == 11
    assert kinds.isdisjoint({"Parameter", "Tensor"})
    assert 0 < (model(CODES) - before).abs().max() < 0.2


def test_linear_layers_multiply_in_8_bits_and_train():
    pytest.importorskip("torchao.float8")
    model = m.seq(m.tx_enc(1, 32, 2), m.fc(32, 64, actv="relu", scale_w=True), m.fc(64, 10))
    small = m.to_torch(model, fp8="emulated")
    kinds = {name: type(layer).__name__ for name, layer in small.named_modules() if isinstance(layer, nn.Linear)}
    assert kinds.pop("2") == "Linear"  # ten outputs are no multiple of 16
    assert set(kinds.values()) == {"Float8Linear"}
    small(torch.randn(4, 5, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())

    def rounded(x):
        scale = 448 / x.abs().max()  # the largest number of e4m3
        return (x * scale).to(torch.float8_e4m3fn).float() / scale

    layer, x = m.fc(32, 64), torch.randn(5, 32)
    torch.testing.assert_close(
        m.to_torch(layer, fp8="emulated")(x), rounded(x) @ rounded(layer.weight).T + layer.bias, rtol=1e-5, atol=1e-5
    )


def test_what_8_bits_cannot_do_is_refused():
    pytest.importorskip("torchao.float8")
    with pytest.raises(ValueError, match="multiples of 16; there is none"):
        m.to_torch(m.fc(8, 10), fp8="emulated")
    with pytest.raises(ValueError, match="fp8 must be True, False or 'emulated', not 'e4m3'"):
        m.to_torch(m.fc(16, 16), fp8="e4m3")


def test_peft_puts_lora_on_every_linear_layer():
    peft = pytest.importorskip("peft")
    model = Gpt().eval()
    before = model(CODES)
    names = list(linears(model))
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names, init_lora_weights=True))
    torch.testing.assert_close(tuned(CODES), before)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(names)
    assert all("lora_" in name for name in trained)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    changed = tuned(CODES)
    assert (changed - before).abs().max() > 0.01
    torch.testing.assert_close(tuned.merge_and_unload()(CODES), changed, rtol=1e-4, atol=1e-4)


def test_pruning_zeroes_a_share_of_all_linear_weights():
    model = Gpt()
    layers = [(layer, "weight") for layer in linears(model).values()]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=0.25)
    total = sum(layer.weight.numel() for layer, _ in layers)
    assert sum((layer.weight == 0).sum().item() for layer, _ in layers) == round(total / 4)
    model(CODES).sum().backward()


def test_flops_are_counted_as_plain_torchs():
    def flops(net, x):
        with FlopCounterMode(display=False) as counter:
            net(x)
        return counter.get_total_flops()

    x = torch.randn(2, 3, 8, 8)
    ours = m.seq(m.conv(3, 8, actv="relu"), m.conv(8, 8, stride=2), m.flatten(), m.fc(128, 4))
    theirs = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Flatten(), nn.Linear(128, 4)
    )
    assert flops(ours, x) == flops(theirs, x) > 0


class Branching(nn.Module):
    """Uses its norm only if asked, by an argument that has a default."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x, norm=None):
        x = self.conv(x)
        return x if norm is None else self.bn(x)


class Reusing(nn.Module):
    """Gives the convolution's result to the norm and to the sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.bn(x)


class Deciding(Reusing):
    def forward(self, x):
        if x.sum() > 0:
            return self.bn(self.conv(x))
        return self.conv(x)


def trained(net, x):
    for _ in range(2):
        net(x * 2 + 1)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.eval()


def norms(net):
    return sum(isinstance(module, _BatchNorm) for module in net.modules())


def test_all_norms_of_torchvisions_resnet_are_folded(on_device):
    x = torch.randn(2, 3, 32, 32)
    net = trained(torchvision.models.resnet18(num_classes=10), x)
    assert norms(net) == 20
    folded = m.fold(net)
    assert norms(folded) == 0
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(on_device(folded)(x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


class Tied(nn.Module):
    """The norm follows, but the layer's weights have another use."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return nn.functional.conv_transpose2d(self.bn(self.conv(x)), self.conv.weight)


class Reaching(nn.Module):
    """Calls a part of a sequence that it also calls as a whole."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))

    def forward(self, x):
        return self.layers(x) + self.layers[0](x)


class Within(nn.Module):
    """Calls the layer of a child that also calls it itself."""

    def __init__(self):
        super().__init__()
        self.child = Noting()

    def forward(self, x):
        return self.child(x) + self.child.conv(x)


class Noting(nn.Module):
    """Keeps what it has seen."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.seen, self.last = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), [], None

    def forward(self, x):
        y = self.bn(self.conv(x))
        self.last = y.detach()
        self.seen.append(x.shape)
        return y


class Iterating(Reaching):
    """Calls the parts of a sequence one by one."""

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Builtin(nn.Module):
    """Its forward has no signature that Python knows."""

    forward = staticmethod(torch.relu)


def test_folding_passes_over_a_forward_that_says_nothing_of_its_arguments():
    x = torch.randn(2, 3, 8, 8)
    net = trained(nn.Sequential(Iterating(), Builtin()), x)
    folded = m.fold(net)
    assert norms(folded) == 0
    torch.testing.assert_close(folded(x), net(x).detach(), rtol=1e-4, atol=1e-5)


def test_folding_runs_a_forward_without_a_trace():
    net = Noting().eval()
    folded = m.fold(net)
    assert norms(folded) == 0
    assert (folded.seen, folded.last) == ([], None)


@pytest.mark.parametrize("make", [Iterating, lambda: nn.Sequential(*[Iterating()] * 2)])
def test_a_norm_is_folded_whoever_calls_it(make, on_device):
    x = torch.randn(2, 3, 8, 8)
    net = trained(make(), x)
    folded = m.fold(net)
    assert norms(folded) == 0
    torch.testing.assert_close(on_device(folded)(x), net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [Branching, Reusing, Deciding, Tied, Reaching, Within])
def test_a_norm_is_not_folded_where_it_need_not_follow(make):
    x = torch.randn(2, 3, 8, 8)
    net = trained(make(), x)
    folded = m.fold(net)
    assert norms(folded) == 1
    torch.testing.assert_close(folded(x), net(x).detach())


def test_a_norm_that_two_layers_share_is_not_folded():
    first, second = Reusing(), Reusing()
    second.bn = first.bn

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Sequential(first.conv, first.bn), nn.Sequential(second.conv, nn.ReLU())
            self.third = nn.ModuleDict({"bn": first.bn})

        def forward(self, x):
            return self.third["bn"](self.first(x) + self.second(x))

    x = torch.randn(2, 3, 8, 8)
    net = trained(Both(), x)
    torch.testing.assert_close(m.fold(net)(x), net(x).detach())


@pytest.mark.reference("to_torch of every block", "the block itself")
@pytest.mark.parametrize("name", BLOCKS)
def test_plain_modules_compute_the_same(name, on_device):
    model = m.Model(BLOCKS[name].make()).init(seed=0).double().eval()
    inputs = BLOCKS[name].inputs(torch.float64)
    plain = m.to_torch(model)
    torch.manual_seed(1)
    expected = on_device(model)(*inputs)  # there too: noise is the device's own
    torch.manual_seed(1)
    torch.testing.assert_close(on_device(plain)(*inputs), expected, rtol=1e-10, atol=1e-10)
    kinds = {type(layer).__name__ for layer in plain.modules()}
    assert not kinds & {"_Linear", "_LSTM", "_GRU", "_RMS"}
    if name != "conv all options":  # a filter behind a border that is not zeros
        assert "_Conv" not in kinds


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [0.5, 1, 2, 4])
@pytest.mark.parametrize("blur", [None, (1, 3, 3, 1), (1, 2, 5)])
def test_plain_convolutions_compute_the_same_up_to_the_border(k, stride, blur, on_device):
    layer = m.conv(4, 6, k, stride, "lrelu", blur=blur, groups=2, scale_w=True, gain=1.4, clamp=1.0).double()
    x, plain = torch.randn(2, 4, 8, 8).double(), m.to_torch(layer)
    torch.testing.assert_close(on_device(plain)(x), layer(x), rtol=1e-10, atol=1e-10)
    assert any(type(part) in (nn.Conv2d, nn.ConvTranspose2d) for part in plain)


def test_conversion_keeps_sharing_ties_modes_and_the_original():
    block = m.fc(4, 4, actv="relu")
    net = m.Model(m.seq(block, m.fc(4, 4), block))
    net.net[1].weight = block.weight
    net.net[0].eval()
    plain = m.to_torch(net.set_req_grad(False, "net.1.bias"))
    assert type(net.net[0]).__name__ == "_Linear"
    assert plain.net[0] is plain.net[2]
    assert plain.net[0][0].weight is plain.net[1].weight
    scaled = [m.fc(4, 4, scale_w=True) for _ in range(2)]
    scaled[1].weight = scaled[0].weight
    first, second = m.to_torch(m.seq(*scaled))
    assert first.weight is second.weight
    assert not plain.net[0].training
    assert plain.training
    assert not plain.net[1].bias.requires_grad


def test_conversion_leaves_what_somebody_has_changed():
    layer = m.fc(4, 4, actv="relu")
    watched, larger, plain = copy.deepcopy(layer), copy.deepcopy(layer), copy.deepcopy(layer)
    watched.register_full_backward_hook(lambda *_: None)
    larger.register_buffer("seen", torch.zeros(1))
    kinds = [type(part).__name__ for part in m.to_torch(m.seq(watched, larger, plain))]
    assert kinds == ["_Linear", "_Linear", "Sequential"]
