import copy
import io
import pickle
import subprocess
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai import model as m
from ai.train import Hook, MultiTrainer, Snapshots, Trainer, opt, schedule
from ai.train.optimizers.depth import by_block
from tests import warm_python


def env(model, batch, step):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize(
    "make", [lambda p: opt.sgd(p, lr=1.0, clip_norm=1.0), lambda p: opt.clip(torch.optim.SGD(p, lr=1.0), 1.0)]
)
def test_clipping_travels_with_every_copy_and_added_group(make, copied):
    optimizer = copied(make([nn.Parameter(torch.zeros(2))]))
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for param, gradient in zip(params, ([2.0, 3.0], [6.0]), strict=True):
        param.grad = torch.tensor(gradient)
    optimizer.step()
    found = torch.cat([p.detach() for p in params])
    assert torch.allclose(found, -torch.tensor([2.0, 3.0, 6.0]) / 7, atol=1e-5)
    io_ = io.BytesIO()
    torch.save(optimizer.state_dict(), io_)
    assert torch.load(io.BytesIO(io_.getvalue()), weights_only=True)["param_groups"]


def test_a_clipped_optimizer_clips_in_a_process_that_has_not_imported_us(tmp_path):
    optimizer = opt.sgd([nn.Parameter(torch.zeros(2))], lr=1.0, clip_value=0.5)
    (tmp_path / "o").write_bytes(pickle.dumps(optimizer))
    code = (
        "import pickle, sys, torch; o = pickle.load(open(sys.argv[1], 'rb')); p = o.param_groups[0]['params'][0];"
        "p.grad = torch.tensor([3.0, -0.25]); o.step(); print(p.tolist())"
    )
    command = [warm_python.executable(), "-c", code, str(tmp_path / "o")]  # which has imported nothing of ours
    out = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert out.stdout.strip() == "[-0.5, 0.25]", out.stderr


def test_limits_that_are_none_are_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    with pytest.raises(ValueError, match="clip needs norm or value"):
        opt.clip(optimizer)
    with pytest.raises(ValueError, match=r"clip_norm \(0.0\) must be positive"):
        opt.clip(optimizer, 0.0)
    with pytest.raises(ValueError, match="clip cannot reach an LBFGS's gradients"):
        opt.clip(torch.optim.LBFGS([nn.Parameter(torch.zeros(2))]), 1.0)


def test_several_optimizers_of_one_model_train_as_each_would_and_resume(net, batches, tmp_path):
    def together(model):
        return opt.together(opt.sgd(model[0], lr=0.1, momentum=0.9), opt.clip(opt.adamw(model[3], lr=0.01), 0.5))

    model, reference = net(), net()
    model[1].p = reference[1].p = 0.0
    parts = opt.sgd(reference[0], lr=0.1, momentum=0.9), opt.adamw(reference[3], lr=0.01, clip_norm=0.5)
    for step, batch in enumerate(batches(6)):
        for part, rate in zip(parts, (0.1, 0.01), strict=True):
            for group in part.param_groups:
                group["lr"] = rate / (step + 1)
        env(reference, batch, 0).backward()
        for part in parts:
            part.step()
            part.zero_grad()
    for limit in (3, 6):
        model = net()
        model[1].p = 0.0
        hook = Hook(snapshots=Snapshots(tmp_path), resume=True)
        Trainer(env, batches(6)).train(
            model, together(model), hook, steplimit=limit, schedule=lambda step: 1 / (step + 1)
        )
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    other = net()
    message = (
        r"the optimizer of 'model' is Together\(AdamW, SGD\), and the snapshot was saved with Together\(SGD, AdamW\)"
    )
    swapped = opt.together(opt.adamw(other[3]), opt.sgd(other[0]))
    with pytest.raises(ValueError, match=message):
        Trainer(env, batches(9)).train(other, swapped, Hook(snapshots=Snapshots(tmp_path), resume=True))


def test_what_cannot_go_together_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first = opt.sgd(model[0])
    with pytest.raises(ValueError, match="one of them is in two"):
        opt.together(first, opt.adam(model))
    with pytest.raises(ValueError, match="an LBFGS steps by closure"):
        opt.together(first, torch.optim.LBFGS(model[1].parameters()))
    with pytest.raises(TypeError, match=r"add the group to one of \.optimizers"):
        opt.together(first, opt.adam(model[1])).add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    copied = copy.deepcopy(opt.together(first, opt.adam(model[1], lr=0.5)))
    assert [group["lr"] for group in copied.param_groups] == [0.01, 0.5]
    assert copied.optimizers[0] is not first


@pytest.mark.skipif(hasattr(torch.optim, "Muon"), reason="torch from 2.9 has Muon")
def test_muon_is_refused_where_torch_has_none():
    with pytest.raises(NotImplementedError, match=r"muon needs torch 2\.9 or newer, not 2\."):
        opt.muon(nn.Linear(2, 2))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has none")
def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    both = opt.muon(model, lr=0.02, adamw_lr=1e-3, weight_decay=0.1, skip=lambda name, param: name == "3.weight")
    muon, adamw = both.optimizers
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [(4, 4)]
    assert [[tuple(p.shape) for p in g["params"]] for g in adamw.param_groups] == [
        [(5, 4), (2, 4)],
        [(4,), (4,), (4,), (2,)],
    ]
    assert [g["weight_decay"] for g in both.param_groups] == [0.1, 0.1, 0.0]
    before = [p.detach().clone() for p in model.parameters()]
    Trainer(lambda m, b, s: F.cross_entropy(m(b), torch.zeros(3, dtype=torch.long)), [torch.arange(3)] * 2).train(
        model, both
    )
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="LayerNorm has no matrices for muon: use adamw"):
        opt.muon(nn.LayerNorm(3))
    assert isinstance(opt.build({"name": "adafactor", "lr": 0.1}, model), torch.optim.Adafactor)


def test_muon_takes_kernels_as_matrices_where_they_have_a_rate():
    model = nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 1, 2))
    made = opt.muon(model, kernel_lr=0.1, weight_decay=0.5, skip=lambda name, param: name == "2.weight")
    muon, adamw = made.optimizers
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [(3, 2, 2, 2), (4, 3, 1, 1)]
    assert [[tuple(p.shape) for p in g["params"]] for g in adamw.param_groups] == [[(1, 4, 2, 2)], [(1,)]]
    before = model[1].weight.detach().clone()
    gradient = torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    model[1].weight.grad = gradient.clone()
    made.step()
    # the closest orthogonal matrix by its singular values, which five steps of the polynomial bring to 0.68 … 1.2
    u, _, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    step = (0.95 * before - model[1].weight).detach().flatten(1) / (0.1 * 0.2 * 4**0.5)
    stretch = (u.mT @ step @ v.mT).diagonal()
    assert (stretch > 0.65).all()
    assert (stretch < 1.25).all()
    torch.testing.assert_close(u @ torch.diag(stretch) @ v, step, atol=1e-4, rtol=0)
    assert model[0].weight.grad is None  # which is passed over
    assert len(opt.muon(nn.Conv2d(2, 3, 2, bias=False), kernel_lr=0.1).param_groups) == 1
    with pytest.raises(ValueError, match="Conv2d has no matrices for muon"):
        opt.muon(nn.Conv2d(2, 3, 2))


def step_by_hand(weight, gradients, momentum, rows, *, nesterov=True, steps=5, decay=1 - 0.1 * 0.5):
    """Returns a kernel after steps of Muon: Jordan et al. 2024, and the scale of Liu et al. 2025, in float64."""
    average = torch.zeros_like(weight)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        x = (1 - momentum) * gradient + momentum * average if nesterov else average
        x = rows(x).reshape(len(rows(x)), -1)
        scale = 0.2 * max(x.shape) ** 0.5
        x = x / x.norm()
        for _ in range(steps):  # with `x @ x.T` on the short side or the long one it is the same polynomial
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        weight = weight * decay - 0.1 * scale * rows(x.reshape(rows(weight).shape))
    return weight


@pytest.mark.parametrize("options", [{}, {"nesterov": False, "ns_steps": 3}])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3, bias=False),
        nn.Conv2d(3, 8, 3, bias=False).to(memory_format=torch.channels_last),
        nn.Conv1d(2, 9, 2, bias=False),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.ConvTranspose2d(3, 5, 2, bias=False),
    ],
)
def test_a_step_of_a_kernel_is_the_published_one_with_its_options(layer, options, any_device):
    layer = copy.deepcopy(layer).double().to(any_device)
    turned = isinstance(layer, nn.ConvTranspose2d)  # whose kernels are (in, out, ...)
    generator = torch.Generator().manual_seed(0)
    shape = layer.weight.shape
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    how = {"nesterov": options.get("nesterov", True), "steps": options.get("ns_steps", 5)}
    expected = step_by_hand(
        layer.weight.detach().cpu(), gradients, 0.9, lambda x: x.transpose(0, 1) if turned else x, **how
    )
    made = opt.muon(layer, kernel_lr=0.1, weight_decay=0.5, momentum=0.9, **options)
    strides = layer.weight.stride()
    for gradient in gradients:
        layer.weight.grad = gradient.clone().to(any_device)
        made.step()
        assert torch.equal(layer.weight.grad.cpu(), gradient)
    torch.testing.assert_close(layer.weight.detach().cpu(), expected, atol=1e-10, rtol=0)
    assert layer.weight.stride() == strides


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 or newer")
def test_kernels_learn_as_torchs_muon_would_have_their_matrices_learn(any_device):
    kernel, matrix = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(27, 8, bias=False)
    kernel.to(any_device), matrix.to(any_device)
    start = matrix.weight.detach().clone()
    kernel.weight.data = start.reshape(8, 3, 3, 3).clone()
    ours, theirs = opt.muon(kernel, kernel_lr=0.1), opt.muon(matrix, lr=0.1, adjust_lr_fn="match_rms_adamw")
    gradient = torch.randn(8, 27, generator=torch.Generator().manual_seed(0)).to(any_device)
    kernel.weight.grad, matrix.weight.grad = gradient.reshape(8, 3, 3, 3), gradient.clone()
    ours.step(), theirs.step()
    # theirs is computed in bfloat16
    torch.testing.assert_close(kernel.weight.flatten(1) - start, matrix.weight - start, atol=3e-3, rtol=0)


def test_what_is_no_kernel_is_left_to_adamw_whatever_its_axes():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.token = nn.Parameter(torch.randn(2, 3, 4)), nn.Parameter(torch.randn(1, 1, 4))

    named = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 2))
    model = nn.Sequential(m.param(1, 4, 5), Experts(), m.conv(2, 3, actv="relu"), m.modconv(2, 3, 4), named)
    names = {id(param): name for name, param in model.named_parameters()}
    parts = opt.muon(model, kernel_lr=0.1).optimizers
    kernels = next(one for one in parts if type(one).__name__ == "KernelMuon")
    found = [names[id(param)] for group in kernels.param_groups for param in group["params"]]
    assert found == ["2.weight", "3.weight", "4.parametrizations.weight.original1"]


def test_kernels_of_half_precision_whose_gradients_have_a_norm_beyond_it_learn():
    layer = nn.Conv2d(3, 8, 3, bias=False).half()
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.full_like(layer.weight, 6e4)
    opt.muon(layer, kernel_lr=0.1).step()
    assert (layer.weight < before).all()


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 1, 3, bias=False), nn.ConvTranspose2d(5, 3, 3, bias=False)])
def test_kernels_that_two_ranks_share_unevenly_learn_as_a_whole(layer):
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    layer = copy.deepcopy(layer)
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        half = -(-len(layer.weight) // 2)
        local = torch.randn_like(layer.weight[:half])
        how = {"shape": layer.weight.shape, "stride": layer.weight.stride(), "run_check": False}
        layer.weight = nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)], **how))
        before = layer.weight.to_local().detach().clone()
        layer.weight.grad = DTensor.from_local(torch.ones_like(local), mesh, [Shard(0)], **how)
        opt.muon(layer, kernel_lr=0.1).step()
        assert layer.weight.placements == (Shard(0),)
        assert (layer.weight.to_local() != before).any()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"momentm": 0.9}, "opt.muon has no option 'momentm'; its options are"),
        ({"momentum": -1.0}, r"momentum \(-1.0\) must not be negative"),
        ({"weight_decay": -1.0}, r"weight_decay \(-1.0\) must not be negative"),
    ],
)
def test_options_of_kernels_alone_are_checked_as_those_of_matrices(options, says):
    with pytest.raises((TypeError, ValueError), match=says):
        opt.muon(nn.Conv2d(2, 3, 2, bias=False), kernel_lr=0.1, **options)


def test_kernels_must_be_real_and_of_two_axes():
    with pytest.raises(ValueError, match=r"not torch.complex64 of shape \(3, 2, 2, 2\)"):
        opt.muon(nn.Conv2d(2, 3, 2, bias=False, dtype=torch.complex64), kernel_lr=0.1)
    made = opt.muon(nn.Conv2d(2, 3, 2, bias=False), kernel_lr=0.1)
    with pytest.raises(ValueError, match=r"not torch.float32 of shape \(3,\)"):
        made.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert len(made.param_groups) == 1


def test_layers_of_a_vision_transformer_are_its_blocks():
    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.patches = nn.Conv2d(3, 4, 2)
            block = lambda: nn.ModuleDict({"norm": nn.LayerNorm(4), "fc": nn.Linear(4, 4)})  # noqa: E731
            self.blocks = nn.ModuleList(block() for _ in range(12))
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 10)

    groups = opt.layerwise_decay(0.75)(ViT())
    factors = sorted({group["lr_factor"] for group in groups})
    assert len(factors) == 14
    assert factors[0] == pytest.approx(0.75**13)  # 0.024
    assert factors[-1] == 1.0
    layers = by_block(ViT())
    assert (layers["token"], layers["patches.weight"], layers["blocks.0.fc.bias"], layers["head.weight"]) == (
        0,
        0,
        1,
        13,
    )


def test_stages_of_a_residual_network_follow_one_another():
    stage = lambda: nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)))  # noqa: E731
    model = nn.ModuleDict(
        {"stem": nn.Linear(2, 2), "a": stage(), "down": nn.Linear(2, 2), "b": stage(), "head": nn.Linear(2, 2)}
    )
    assert {name.rpartition(".")[0]: layer for name, layer in by_block(model).items()} == {
        "stem": 0,
        "a.0.0": 1,
        "a.1.0": 2,
        "down": 2,
        "b.0.0": 3,
        "b.1.0": 4,
        "head": 5,
    }


def test_a_rate_falls_where_a_measured_metric_stands_still_and_is_resumed(net, batches, tmp_path):
    rates = []
    losses = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.5, 5: 2.5, 6: 1.0, 7: 1.5, 8: 1.5}

    def train(limits, folder):
        rates.clear()
        for limit in limits:
            model = net()
            optimizer = opt.sgd(model, lr=1.0)
            optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
            hook = Hook(
                task=lambda m, step: {"error": losses.get(step, 9.0)},
                task_interval=1,
                snapshots=Snapshots(folder),
                resume=True,
                sanity=False,
            )
            rate = schedule.plateau("error", factor=0.5, patience=1)
            Trainer(env, batches(9)).train(model, optimizer, hook, steplimit=limit, schedule=rate)
        return list(rates)

    whole = train([9], tmp_path / "whole")
    assert whole == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25]
    for cut in (3, 4, 5):
        assert train([cut, 9], tmp_path / str(cut)) == whole
    with pytest.raises(ValueError, match=r"the factor of plateau \(1.0\) must lie in \(0, 1\)"):
        schedule.plateau(factor=1.0)


def rates_of(rate, metrics):
    """The factors that a schedule gives, told of a metric before each step."""
    found = []
    for step, value in enumerate(metrics):
        rate.observe(step, {"val_loss": value})
        found.append(rate(step))
    return found


def test_a_plateau_within_another_schedule_still_sees_what_is_measured(net, batches, tmp_path):
    plateau = partial(schedule.plateau, "val_loss", factor=0.5, patience=0)
    assert rates_of(schedule.warm_up(4, plateau()), [1.0] * 6) == [0.25, 0.25, 0.1875, 0.125, 0.0625, 0.03125]
    later = schedule.sequence((2, schedule.constant(0.8)), (9, plateau()))
    assert rates_of(later, [1.0] * 5) == [0.8, 0.8, 1.0, 0.5, 0.25]  # what came before its turn does not count
    again = schedule.sequence((2, schedule.constant(0.8)), (9, plateau()))
    again.load_state_dict(later.state_dict())
    assert again(5) == 0.25
    rates = {}
    for limits in ([6], [3, 6]):
        for limit in limits:
            model = net()
            hook = Hook(
                log=lambda s, n: rates.setdefault(s, n["lr"]) if "lr" in n else None,
                log_interval=1,
                task=lambda m, s: {"val_loss": 1.0},
                task_interval=1,
                snapshots=Snapshots(tmp_path / str(len(limits))),
                resume=True,
            )
            rate = schedule.warm_up(2, plateau())
            Trainer(env, batches(9)).train(model, opt.sgd(model, lr=1.0), hook, steplimit=limit, schedule=rate)
        assert rates == {0: 0.5, 1: 1.0, 2: 0.5, 3: 0.25, 4: 0.125, 5: 0.0625}
        rates.clear()


def test_one_plateau_of_several_models_counts_a_measurement_once():
    models = {key: torch.nn.Linear(1, 1) for key in "ab"}
    optimizers = {key: opt.sgd(model, lr=1.0) for key, model in models.items()}
    data = [torch.zeros(1, 1)] * 6
    trainer = MultiTrainer(lambda key, models, batch, step: models[key](batch).sum() * 0, data)
    hook = Hook(task=lambda m, s: {"val_loss": 1.0}, task_interval=1)
    trainer.train(models, optimizers, hook, schedule=schedule.plateau("val_loss", factor=0.5, patience=2))
    # The first measurement is the best; the fourth is the third without improvement.
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers.values()] == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"schedule's 'gen' must be among the optimizers \['a', 'b'\]"):
        trainer.train(models, optimizers, schedule={"gen": schedule.constant()})


def test_a_schedule_that_follows_what_nobody_measures_says_so(net, batches, capsys):
    model = net()
    with pytest.raises(ValueError, match="the schedule follows 'val_loss', which only a hook measures"):
        Trainer(env, batches(2)).train(model, opt.sgd(model), [], schedule=schedule.plateau())
    hook = Hook(val_data=batches(1), val_interval=1)
    rate = schedule.plateau("val_los", mode="min")
    Trainer(env, batches(2)).train(model, opt.sgd(model), hook, schedule=rate)
    said = "the schedule followed 'val_los', which was never measured; the metrics were ['val_loss']"
    assert said in capsys.readouterr().err
