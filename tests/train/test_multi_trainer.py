import math

import pytest
import torch
from torch import nn

from ai.train import AdversarialAutoencoder, Gan, Hook, MultiTrainer, opt
from ai.train.gan import gradient_penalty, r1_penalty


def test_only_the_stepped_model_gets_gradients_and_the_order_is_the_optimizers():
    models = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1), "teacher": nn.Linear(1, 1)}
    before = models["teacher"].weight.clone()
    calls = []

    def env(key, models, batch, step):
        calls.append((step, key, float(batch)))
        assert all(p.requires_grad == (name == key) for name, m in models.items() for p in m.parameters())
        return sum(m(batch.view(1, 1)) for m in models.values()).sum()

    trainer = MultiTrainer(env, [torch.tensor(float(i)) for i in range(5)], repeats={"a": 2})
    assert trainer.train(models, {"b": opt.sgd(models["b"]), "a": opt.sgd(models["a"])}) == 2
    # A repeat takes a fresh batch; the fifth batch alone makes no round.
    assert calls == [(0, "b", 0.0), (0, "a", 0.0), (0, "a", 1.0), (1, "b", 2.0), (1, "a", 2.0), (1, "a", 3.0)]
    assert torch.equal(models["teacher"].weight, before)
    assert all(p.grad is None and p.requires_grad for m in models.values() for p in m.parameters())


def test_validation_after_the_run_measures_the_averages_of_the_trained_models():
    torch.manual_seed(0)
    models = {"student": nn.Linear(1, 1), "teacher": nn.Linear(1, 1)}
    data, seen = [torch.randn(4, 1) for _ in range(6)], {}

    def env(key, models, batch, step):
        return (models["student"](batch) - models["teacher"](batch)).square().mean()

    hook = Hook(val_data=data, log=lambda step, numbers: seen.update(numbers))
    trainer = MultiTrainer(env, data, ema=0.9)
    trainer.train(models, {"student": opt.sgd(models["student"], lr=0.3)}, hook)
    own = models["student"].weight.detach().clone()
    raw = MultiTrainer(env, []).validate(models, data)["student"]
    assert trainer.validate(models, data)["student"] == seen["val_loss_student"] != raw
    with trainer.averaged(models):
        assert MultiTrainer(env, []).validate(models, data)["student"] == seen["val_loss_student"]
    assert torch.equal(models["student"].weight, own)


def test_models_may_share_modules():
    encoder = nn.Linear(1, 1)
    models = {"ae": nn.Sequential(encoder, nn.Linear(1, 1)), "d": nn.Linear(1, 1), "encoder": encoder}
    before = encoder.weight.clone()
    MultiTrainer(lambda key, m, b, s: m[key](b).sum(), [torch.ones(1, 1)]).train(
        models, {key: opt.sgd(models[key]) for key in ("ae", "d")}
    )
    assert not torch.equal(encoder.weight, before)


def test_a_teachers_mode_is_left_as_it_is():
    models = {"student": nn.Linear(2, 2), "teacher": nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())}
    models["teacher"].eval()
    models["student"].eval()

    def env(key, models, batch, step):
        assert models["student"].training
        assert not models["teacher"].training
        return (models["student"](batch) - models["teacher"](batch)).square().mean()

    MultiTrainer(env, [torch.randn(8, 2)] * 2).train(models, {"student": opt.sgd(models["student"])})
    assert models["teacher"][0].num_batches_tracked == 0


def test_one_step_is_one_round_whatever_the_repeats():
    models = {key: nn.Linear(1, 1) for key in "dg"}
    steps = []
    hook = Hook(log=lambda step, numbers: steps.append((step, sorted(numbers))), log_interval=1)
    MultiTrainer(lambda key, m, b, s: m[key](b).sum(), [torch.ones(1, 1)] * 9, repeats={"d": 3}).train(
        models, {key: opt.sgd(m) for key, m in models.items()}, hook
    )
    assert [step for step, _ in steps] == [0, 1, 2]
    assert {"loss_d", "loss_g", "lr_d", "grad_norm_g"} <= set(steps[0][1])


@pytest.mark.parametrize("loss", ["non_saturating", "hinge", "wgan_gp"])
def test_gan_losses_equal_their_formulas(loss):
    torch.manual_seed(0)
    d, g = nn.Linear(2, 1), nn.Linear(3, 2)
    env, real = Gan(3, loss=loss), torch.randn(5, 2)
    torch.manual_seed(1)
    found = env("d", {"d": d, "g": g}, real, 0)
    torch.manual_seed(1)
    fake = g(torch.randn(5, 3))
    on_real, on_fake = d(real), d(fake)
    if loss == "non_saturating":
        wanted = -(torch.sigmoid(on_real).log() + (1 - torch.sigmoid(on_fake)).log()).mean()
    elif loss == "hinge":
        wanted = (1 - on_real).clamp(min=0).mean() + (1 + on_fake).clamp(min=0).mean()
    else:  # a linear discriminator has the same gradient everywhere: its weight
        wanted = (on_fake - on_real).mean() + 10 * (d.weight.norm() - 1) ** 2
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_d_step_does_not_build_the_generators_graph(on_device):
    d, g = nn.Linear(2, 1), nn.Linear(3, 2)
    on_device(Gan(3))("d", {"d": d, "g": g}, torch.randn(5, 2), 0).backward()
    assert all(p.grad is None for p in g.parameters())
    assert all(p.grad is not None for p in d.parameters())


def test_r1_is_lazy_and_weighted_by_its_interval(on_device):
    d, g, real = nn.Linear(2, 1), nn.Linear(3, 2), torch.randn(5, 2)

    def loss(step, r1):
        torch.manual_seed(0)
        return on_device(Gan(3, r1=r1, r1_interval=4))("d", {"d": d, "g": g}, real, step).item()

    penalty = d.weight.detach().square().sum().item()
    assert loss(4, 2.0) - loss(4, 0.0) == pytest.approx(2.0 / 2 * 4 * penalty, rel=1e-4)
    assert loss(3, 2.0) == loss(3, 0.0)


def test_penalties_equal_their_formulas(on_device):
    x = torch.randn(4, 3, requires_grad=True)
    assert on_device(lambda x: r1_penalty((x**2).sum(1), x))(x).item() == pytest.approx(
        (4 * x**2).sum(1).mean().item(), rel=1e-5
    )
    assert on_device(lambda x: gradient_penalty(lambda v: 3 * v[:, 0], x, x))(x).item() == pytest.approx(4.0, rel=1e-4)


def test_adversarial_autoencoder_trains_each_part():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(4, 2), nn.Linear(2, 4)

    models = {"ae": Autoencoder(), "d": nn.Linear(2, 1)}
    before = {key: [p.clone() for p in m.parameters()] for key, m in models.items()}
    trainer = MultiTrainer(AdversarialAutoencoder(), [torch.randn(8, 4)] * 3)
    assert trainer.train(models, {key: opt.adam(m) for key, m in models.items()}) == 3
    for key, m in models.items():
        assert all(not torch.equal(a, b) for a, b in zip(before[key], m.parameters(), strict=True))
    assert set(trainer.validate(models, [torch.randn(8, 4)])) == {"ae", "d"}


def gan_round(key, models, x, step):
    fake = models["g"](x.flip(1))
    if key == "g":
        return -models["d"](fake).mean()
    return (models["d"](fake.detach()) - models["d"](x)).mean() + models["d"](x).square().mean()


def trained_pair(data, **how):
    torch.manual_seed(0)
    models = {"d": nn.Linear(3, 1), "g": nn.Linear(3, 3)}
    trainer = MultiTrainer(gan_round, data, **how)
    steps = trainer.train(models, {key: opt.sgd(m, lr=0.1) for key, m in models.items()})
    return steps, [p.detach() for m in models.values() for p in m.parameters()]


def test_accumulated_rounds_equal_those_of_the_large_batch():
    x = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0))
    whole = trained_pair(list(x))
    parts = trained_pair([part for batch in x for part in (batch[:1], batch[1:])], accumulate=2)
    assert whole[0] == parts[0] == 4
    for a, b in zip(whole[1], parts[1], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer looks at it
@pytest.mark.parametrize(
    ("how", "tolerance"),
    [
        ({"precision": "bf16"}, 0.02),
        ({"compile": {"backend": "aot_eager"}}, 1e-6),
        ({"ema": 0.9}, 0.0),
        ({"on_nan": "skip"}, 0.0),
    ],
)
def test_rounds_under_every_option_end_where_the_plain_ones_do(how, tolerance):
    data = list(torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0)))
    plain, found = trained_pair(data), trained_pair(data, **how)
    assert plain[0] == found[0] == 4
    for a, b in zip(plain[1], found[1], strict=True):
        assert float((a - b).abs().max()) <= tolerance


def test_skip_leaves_out_the_bad_update_of_one_model_alone(any_device):
    def bad(key, models, x, step):
        loss = gan_round(key, models, x, step)
        return loss * float("nan") if (step, key) == (0, "g") else loss

    torch.manual_seed(0)
    models = {"d": nn.Linear(3, 1).to(any_device), "g": nn.Linear(3, 3).to(any_device)}
    before = {key: m.weight.detach().clone() for key, m in models.items()}
    data = [torch.randn(8, 3).to(any_device)]
    MultiTrainer(bad, data, on_nan="skip").train(models, {key: opt.sgd(m, lr=0.1) for key, m in models.items()})
    assert torch.equal(models["g"].weight, before["g"])
    assert not torch.equal(models["d"].weight, before["d"])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="loss must be 'non_saturating', 'hinge' or 'wgan_gp', not 'lsgan'"):
        Gan(3, loss="lsgan")
    with pytest.raises(KeyError, match="Gan trains the models 'g' and 'd', not 'e'"):
        Gan(3)("e", {"g": nn.Linear(3, 2), "d": nn.Linear(2, 1)}, torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match=r"repeats\['d'\] \(-1\) must not be negative"):
        MultiTrainer(Gan(3), [], repeats={"d": -1})
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"'e' must be among the models \['g'\]"):
        MultiTrainer(Gan(3), []).train({"g": model}, {"e": opt.sgd(model)})


@pytest.mark.slow
def test_gan_covers_all_eight_gaussians():
    torch.manual_seed(0)
    angles = torch.arange(8) * (2 * math.pi / 8)
    centres, sigma = torch.stack([angles.cos(), angles.sin()], 1) * 2, 0.1

    def mlp(n_in, n_out, width=96):
        return nn.Sequential(
            nn.Linear(n_in, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, n_out),
        )

    class Data:
        def __iter__(self):
            while True:
                yield centres[torch.randint(8, (256,))] + sigma * torch.randn(256, 2)

    models = {"g": mlp(8, 2), "d": mlp(2, 1)}
    opts = {key: opt.adam(models[key], lr=1e-3, betas=(0.0, 0.99)) for key in ("d", "g")}
    steps = 2000
    trainer = MultiTrainer(Gan(8, r1=0.2, r1_interval=4), Data(), ema=0.995)
    found = []

    def task(models, step):
        distance = torch.cdist(models["g"](torch.randn(2000, 8)), centres)
        near = distance.min(1)
        counts = torch.bincount(near.indices[near.values < 4 * sigma], minlength=8)
        found.append(counts)
        return {"modes": int((counts >= 60).sum())}

    trainer.train(models, opts, Hook(task=task, task_interval=steps), steplimit=steps)
    assert (found[-1] >= 0.03 * 2000).all(), found[-1]


def test_an_autoencoder_against_a_judge_of_images_has_the_two_losses_written_out(on_device):
    class Auto(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.d = nn.Linear(4, 2), nn.Linear(2, 4)

        def encode(self, x):
            return self.e(x)

        def decode(self, z):
            return self.d(z)

    torch.manual_seed(0)
    models, x = {"ae": Auto(), "d": nn.Linear(4, 1)}, torch.randn(8, 4)
    env = AdversarialAutoencoder(weight=0.5, on="images")
    made = models["ae"].decode(models["ae"].encode(x))
    real, fake = models["d"](x).sigmoid(), models["d"](made).sigmoid()
    assert on_device(env)("d", models, x, 0).item() == pytest.approx(
        -(real.log() + (1 - fake).log()).mean().item(), rel=1e-5
    )
    wanted = (made - x).square().mean() - 0.5 * fake.log().mean()
    assert on_device(env)("ae", models, x, 0).item() == pytest.approx(wanted.item(), rel=1e-5)
    env("ae", models, x, 0).backward()
    assert all(p.grad is not None for p in models["ae"].parameters())
    with pytest.raises(ValueError, match="on must be 'codes' or 'images', not 'pixels'"):
        AdversarialAutoencoder(on="pixels")


def test_all_that_a_discriminator_sees_is_augmented_and_the_draws_are_the_runs():
    seen, drawn = [], []

    def augment(x, generator):
        drawn.append(int(torch.randint(2**30, (), generator=generator)))
        return x + 100

    class Judge(nn.Linear):
        def forward(self, x):
            seen.append(float(x.detach().min()))
            return super().forward(x)

    env = Gan(2, augment=augment, r1=1.0)
    models = {"g": nn.Linear(2, 3), "d": Judge(3, 1)}
    for _ in range(2):
        torch.manual_seed(3)
        env("d", models, torch.zeros(4, 3), 0).backward()
        env("g", models, torch.zeros(4, 3), 0).backward()
    assert len(seen) == 6
    assert min(seen) > 50
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn[:3])) == 3
    assert models["g"].weight.grad is not None
