import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai.train import (
    Classify,
    Diffusion,
    Distill,
    Hook,
    HookInterface,
    NextToken,
    Reconstruct,
    Regress,
    Trainer,
    find_lr,
    log,
    opt,
    profile,
)
from tests.devices import assert_close, lies_on


class Lines(HookInterface):
    log_interval = 1

    def __init__(self):
        self.seen = {}

    def log(self, key, value):
        self.seen[key] = value


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("as_dict", [True, False])
def test_classify_takes_classes_of_any_integer_type(dtype, as_dict, on_device):
    logits, y = torch.randn(6, 4), torch.arange(6) % 4
    batch = {"x": logits, "y": y.to(dtype)} if as_dict else (logits, y.to(dtype))
    assert on_device(Classify())(nn.Identity(), batch, 0).item() == pytest.approx(F.cross_entropy(logits, y).item())


def test_classify_logs_accuracy_and_top_k():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
    model, hook = nn.Linear(3, 3, bias=False), Lines()
    nn.init.eye_(model.weight)
    Trainer(Classify(top_k=(2,)), [(logits, torch.tensor([0, 1, 1, 2]))]).train(model, opt.sgd(model), hook)
    assert hook.seen["accuracy"] == 0.25
    assert hook.seen["accuracy_top2"] == 0.75


def test_classify_takes_mixed_targets(on_device):
    logits, y = torch.randn(5, 3), torch.rand(5, 3).softmax(1)
    wanted = -(y * logits.log_softmax(1)).sum(1).mean()
    assert on_device(Classify())(nn.Identity(), (logits, y), 0).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_diffusion_weights_every_noise_level_alike(on_device):
    # The best denoiser of N(0, s²) has weighted error (σ² + s²)/(σs)² · σ²s²/(σ² + s²) = 1 at every σ.
    s = 0.7
    x = torch.randn(50_000, 1, generator=torch.Generator().manual_seed(0)) * s
    for p_mean in (-2.0, 1.0):
        torch.manual_seed(0)
        env = Diffusion(p_mean=p_mean, p_std=0.3, sigma_data=s)
        found = on_device(env)(lambda noisy, sigma: noisy * s**2 / (s**2 + sigma[:, None] ** 2), x, 0)
        assert found.item() == pytest.approx(1.0, abs=0.03)


def test_diffusion_of_a_float64_model_is_computed_in_float64():
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale, seen = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), {}

    def model(noisy, sigma):
        seen.update(noisy=noisy, sigma=sigma[:, None])
        return noisy * scale

    loss = Diffusion(sigma_data=0.5)(model, x, 0)
    loss.backward()
    noisy, sigma = seen["noisy"], seen["sigma"].double()
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    assert loss.item() == pytest.approx((weight * (noisy * 0.7 - x) ** 2).mean().item(), rel=1e-13)
    assert scale.grad.item() == pytest.approx((weight * 2 * noisy * (noisy * 0.7 - x)).mean().item(), rel=1e-13)


def test_find_lr_puts_everything_back():
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = opt.adam(model, lr=0.5)
    before = model.weight.detach().clone()
    random = torch.get_rng_state()
    x = torch.linspace(-1, 1, 64)[:, None]
    curve = find_lr(Regress(), [(x, 3 * x)], model, optimizer)
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state
    assert len(curve.lrs) == len(curve.losses) > 50
    assert 0.01 < curve.suggestion < 2


def test_profile_attributes_time_to_its_part():
    class Slow(HookInterface):
        def step(self, step):
            sum(range(2_000_000))

    model = nn.Linear(2, 2)
    found = profile(
        Trainer(Regress(), [(torch.ones(1, 2), torch.ones(1, 2))] * 15), model, opt.sgd(model), Slow(), steps=5
    )
    assert max(found.parts_s, key=found.parts_s.get) == "hook"
    assert len(str(found).splitlines()) == 10
    with pytest.raises(ValueError, match="the data ended after 2 of 5 measured steps"):
        profile(Trainer(Regress(), [(torch.ones(1, 2), torch.ones(1, 2))] * 12), model, opt.sgd(model), steps=5)


def test_regress_compares_in_float32_what_was_predicted_in_half_precision(on_device):
    target = torch.full((1, 1), 1000.4)  # bfloat16 would make it 1000
    loss = on_device(Regress())(nn.Identity(), (torch.zeros(1, 1, dtype=torch.bfloat16), target), 0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1000.4**2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Classify(label_smoothing=1), ValueError, r"label_smoothing \(1\) must lie in \[0, 1\)"),
        (lambda: Classify(class_weights=[1, -1]), ValueError, r"class_weights \(\[1.0, -1.0\]\) must not be negative"),
        (
            lambda: Trainer(Classify(top_k=(2, 5)), []).validate(
                nn.Linear(2, 3), [(torch.ones(2, 2), torch.ones(2).int())]
            ),
            ValueError,
            r"top_k \(5\) must not exceed the model's 3 logits",
        ),
        (lambda: Distill(nn.Linear), TypeError, r"teacher must be an instance: Linear\(...\), not the class Linear"),
        (lambda: Distill(nn.Linear(1, 1), Classify), TypeError, r"task must be an instance: Classify\(...\), not the"),
        (lambda: Classify()(nn.Identity(), {"x": 1}, 0), TypeError, r"not a dict with keys \['x'\]"),
        (lambda: Classify()(nn.Identity(), torch.ones(2), 0), TypeError, "not a Tensor"),
        (
            lambda: Regress()(nn.Identity(), (torch.ones(4, 1), torch.ones(4)), 0),
            ValueError,
            r"output \(4, 1\) and y \(4,\) must agree",
        ),
        (lambda: Reconstruct()(nn.Flatten(), torch.ones(2, 1, 2), 0), ValueError, r"x \(2, 1, 2\) must agree"),
        (lambda: Diffusion(p_std=0), ValueError, r"p_std \(0\) must be positive"),
        (lambda: find_lr(Regress(), [], None, None, start=1.0, end=0.1), ValueError, r"start \(1.0\) must be positive"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_log_takes_one_number():
    def bad(model, batch, step):
        log("pair", torch.ones(2))
        return model(batch).sum()

    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"log\('pair'\) takes one number, not a tensor of shape \(2,\)"):
        Trainer(bad, [torch.ones(1, 1)]).train(model, opt.sgd(model), Lines())
    log("after", lambda: 1 / 0)  # the failed step does not keep recording


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            (torch.zeros(4, 2, dtype=torch.float64), torch.zeros(4).long()),
            TypeError,
            r"'x' \(float64 \(4, 2\)\) is not of the model's type torch.float32: convert it, .*x.to\(torch.float32\)",
        ),
        (
            (torch.zeros(4, 2).numpy(), torch.zeros(4).long()),
            TypeError,
            r"'x' \(ndarray\) must be a tensor: torch.as_tensor\(x\)",
        ),
        (
            (torch.zeros(4, 2), [0, 1, 2, 0]),
            TypeError,
            r"'y' \(list\) must be a tensor: torch.as_tensor\(y\)",
        ),
        (
            (torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4).long()),
            TypeError,
            r"'x' \(uint8 \(4, 2\)\) is not of .*: convert it, .*x.float\(\) / 255",
        ),
        (
            (torch.zeros(4, 2), torch.tensor([0, 1, 2, 3])),
            ValueError,
            r"'y' holds the classes 0 to 3, and the model gives 3 logits: classes count from 0 to 2",
        ),
        (
            (torch.zeros(4, 2), torch.tensor([-1, 1, 2, 0])),
            ValueError,
            r"'y' holds the classes -1 to 2, and the model gives 3 logits",
        ),
        (
            (torch.zeros(4, 2), torch.zeros(4)),
            ValueError,
            r"'y' \(float32 \(4,\)\) must be class indices of an integer type \(y.long\(\)\), or probabilities",
        ),
        (
            (torch.zeros(4, 2), torch.zeros(4, 1).long()),
            ValueError,
            r"'y' \(int64 \(4, 1\)\) must have one class .*: drop the last axis, y.squeeze\(1\)",
        ),
        (
            (torch.zeros(4, 2), torch.zeros(3).long()),
            ValueError,
            r"'y' \(int64 \(3,\)\) must have one class where the logits \(4, 3\) have one number for each, so \(4,\)$",
        ),
        (
            {"x": torch.zeros(4, 2), "label": torch.zeros(4)},
            TypeError,
            r"must be a dict with 'x' and 'y' or a pair, not a dict with keys \['label', 'x'\]",
        ),
    ],
)
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_the_slips_of_the_first_hour_are_one_sentence_with_column_dtype_and_fix(batch, error, message, weights):
    with pytest.raises(error, match=message):
        Classify(class_weights=weights)(nn.Linear(2, 3), batch, 0)


def test_a_class_in_place_of_an_instance_is_named(net, batches):
    with pytest.raises(TypeError, match=r"env must be an instance: Classify\(\), not the class Classify"):
        Trainer(Classify, [])
    model = net()
    with pytest.raises(TypeError, match=r"'model' must be an instance: Linear\(...\), not the class Linear"):
        Trainer(Classify(), batches(1)).train(nn.Linear, opt.sgd(model))
    with pytest.raises(TypeError, match=r"the optimizer of 'model' must be an instance: SGD\(...\), not the class SGD"):
        Trainer(Classify(), batches(1)).train(model, torch.optim.SGD)


def test_keys_smoothing_and_weights_of_classes_are_chosen(on_device):
    torch.manual_seed(0)
    model, x, y = nn.Linear(2, 3), torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 0, 1])
    weights = torch.tensor([1.0, 2.0, 5.0])
    batch = {"image": x, "label": y.to(torch.uint8)}
    env = Classify(x="image", y="label", label_smoothing=0.1, class_weights=weights)
    loss, weight = on_device(env)(model, batch, 0)
    smoothed = torch.nn.functional.one_hot(y, 3) * 0.9 + 0.1 / 3
    by_row = -(smoothed * weights * model(x).log_softmax(1)).sum(1)
    assert loss.item() == pytest.approx((by_row.sum() / weights[y].sum()).item(), rel=1e-5)
    assert weight.item() == weights[y].sum().item()
    # Accumulated, it is that of the large batch.
    results = []
    for data, n in (([batch], 1), ([{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}], 2)):
        copied = copy.deepcopy(model)
        Trainer(env, data, accumulate=n).train(copied, opt.sgd(copied, lr=0.5))
        results.append(copied.weight.detach())
    assert torch.allclose(*results, atol=1e-6)
    mixed = nn.functional.one_hot(y, 3).float()
    assert on_device(Classify(class_weights=weights))(model, (x, mixed), 0)[0].item() == pytest.approx(
        Classify(class_weights=weights)(model, (x, y), 0)[0].item(), rel=1e-5
    )
    with pytest.raises(ValueError, match=r"class_weights \(2,\) must be one for each of 3 classes"):
        Classify(class_weights=[1.0, 2.0])(model, (x, y), 0)
    assert Regress(x="a", y="b")(nn.Identity(), {"a": torch.ones(2, 1), "b": torch.zeros(2, 1)}, 0) == 1.0
    assert Reconstruct(x="a")(nn.Identity(), {"a": torch.ones(2, 1)}, 0) == 0.0


def logged(env, model, batch):
    """The loss of a batch, and what the environment logs beside it."""
    hook = Lines()
    Trainer(env, [batch]).train(model, opt.sgd(model, lr=0.0), hook)
    return {key: value for key, value in hook.seen.items() if key == "loss" or key.startswith("accuracy")}


@pytest.mark.parametrize("left_out", [-100, 255, 1])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 5.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_is_left_out_weighs_nothing(left_out, weights, smoothing, on_device):
    torch.manual_seed(0)
    model, x, y = nn.Linear(2, 3), torch.randn(4, 2), torch.tensor([0, left_out, 2, 0])
    there = y != left_out
    how = {"class_weights": weights, "label_smoothing": smoothing}
    env = Classify(ignore_index=left_out, top_k=(2,), **how)
    loss, weight = on_device(env)(model, (x, y), 0)
    wanted = nn.functional.cross_entropy(model(x[there]), y[there], weight=weights, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert weight.item() == (3 if weights is None else 7)
    assert logged(env, model, (x, y)) == pytest.approx(logged(Classify(top_k=(2,), **how), model, (x[there], y[there])))


def test_a_batch_in_which_nothing_counts_does_nothing(any_device):
    torch.manual_seed(0)
    model, x, y = nn.Linear(2, 3).to(any_device), torch.randn(4, 2), torch.tensor([0, 255, 2, 1])
    x, y = x.to(any_device), y.to(any_device)
    env = Classify(class_weights=[0.0, 1.0, 5.0], ignore_index=255)
    results = []
    for data in ([(x, y)], [(x[:2], y[:2]), (x[2:], y[2:])]):
        copied = copy.deepcopy(model)
        Trainer(env, data, accumulate=len(data)).train(copied, opt.sgd(copied, lr=0.5))
        results.append(copied.weight.detach())
    assert torch.allclose(*results, atol=1e-6)
    assert not torch.equal(results[0], model.weight)
    nothing = Trainer(Classify(ignore_index=255), []).validate(model, [(x, y), (x, torch.full_like(y, 255))])
    assert nothing == pytest.approx(Trainer(Classify(ignore_index=255), []).validate(model, [(x, y)]))


def test_pixels_without_a_label_count_neither_in_the_loss_nor_in_what_is_logged():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4)
    y = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    y[:, 0] = 255
    conv = nn.Conv2d(3, 3, 1)
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)
    found = logged(Classify(ignore_index=255), conv, (logits, y))
    there = y != 255
    hits = (logits.argmax(1) == y)[there]
    wanted = nn.functional.cross_entropy(logits.movedim(1, -1)[there], y[there].long())
    assert found == pytest.approx({"loss": wanted.item(), "accuracy": hits.float().mean().item()})


@pytest.mark.parametrize(("env", "low", "high"), [(Classify(), -100, 2), (Classify(ignore_index=2), -100, 1)])
def test_a_class_that_torch_leaves_out_unasked_is_refused(env, low, high):
    y = torch.tensor([0, -100, 2, 1])
    with pytest.raises(ValueError, match=rf"classes {low} to {high}, .*one that is to be left out is ignore_index"):
        env(nn.Linear(2, 3), (torch.randn(4, 2), y), 0)


def test_the_weights_of_many_pixels_fit_in_half_precision(on_device):
    logits, y = torch.zeros(1, 2, 300, 300, dtype=torch.float16), torch.zeros(1, 300, 300, dtype=torch.uint8)
    mixed = torch.full((1, 2, 300, 300), 0.5, dtype=torch.float16)
    for target in (y, mixed):
        lost = on_device(lambda x, y: Classify(class_weights=[1, 1])(lambda x: x, (x, y), 0))
        loss, weight = lost(logits, target)
        assert (loss.item(), weight.item()) == (pytest.approx(math.log(2), rel=1e-5), 90000)


def test_pixels_are_classified_as_rows_are(on_device):
    logits = torch.randn(2, 3, 4, 4)
    y = torch.randint(0, 3, (2, 4, 4))
    found = on_device(lambda x, y: Classify()(lambda x: x, (x, y), 0))(logits, y)
    assert found.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item())


def test_next_tokens_count_alike_in_batches_of_unlike_lengths(on_device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 5))
    tokens = torch.tensor([[1, 2, 3, 4], [2, 3, 0, 0]])
    loss, count = on_device(NextToken(ignore_index=0))(model, {"x": tokens}, 0)
    rows = [(1, 2), (2, 3), (3, 4), (2, 3)]
    wanted = -torch.stack([model[0].weight[a].log_softmax(0)[b] for a, b in rows]).mean()
    assert (loss.item(), count.item()) == (pytest.approx(wanted.item(), rel=1e-5), 4)
    parts = [NextToken(ignore_index=0)(model, {"x": row[None]}, 0) for row in tokens]
    assert sum(a * n for a, n in parts).item() / 4 == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("tokens", [[1, 7, 2], [1, 2, 7], [1, -1, 2]])
def test_a_token_beyond_the_vocabulary_is_named(tokens):
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    said = rf"those of 'x' are from {min(tokens)} to {max(tokens)}, 3 in a row"
    with pytest.raises(IndexError, match=rf"they must lie in the model's vocabulary.*{said}"):
        NextToken()(model, {"x": torch.tensor([tokens])}, 0)


def test_a_mistake_in_the_model_is_not_taken_for_one_in_the_tokens():
    def model(tokens):
        raise IndexError("list index out of range")

    with pytest.raises(IndexError, match=r"^list index out of range; if it is the tokens"):
        NextToken()(model, {"x": torch.tensor([[1, 2]])}, 0)


def test_distillation_equals_its_formula_and_leaves_the_teacher_as_it_was(any_device):
    torch.manual_seed(0)
    teacher, student, x, y = (
        nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)),
        nn.Linear(2, 3),
        torch.randn(5, 2),
        torch.arange(5) % 3,
    )
    there = copy.deepcopy(teacher).to(any_device), copy.deepcopy(student).to(any_device)
    batch = x.to(any_device), y.to(any_device)
    loss = Distill(there[0], Classify(), temperature=2.0, share=0.25)(there[1], batch, 0)
    assert lies_on(loss, any_device)
    p, q = (teacher[0](x) / 2).softmax(1), (student(x) / 2).softmax(1)
    soft = (p * (p.log() - q.log())).sum(1).mean() * 4
    wanted = 0.25 * soft + 0.75 * torch.nn.functional.cross_entropy(student(x), y)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.backward()
    assert there[0].training
    assert there[0][0].weight.grad is None
    wanted.backward()
    assert_close(there[1].weight.grad, student.weight.grad)
    weighted, weight = Distill(teacher, Classify(class_weights=[1, 2, 5]), temperature=2.0, share=0.25)(
        student, (x, y), 0
    )
    own, whole = Classify(class_weights=[1, 2, 5])(student, (x, y), 0)
    assert (weighted.item(), weight) == (pytest.approx((0.25 * soft + 0.75 * own).item(), rel=1e-5), whole)
    with pytest.raises(ValueError, match=r"temperature \(0\) must be positive"):
        Distill(teacher, temperature=0)


class Normalised(nn.Module):
    """An environment with statistics of its own."""

    def __init__(self):
        super().__init__()
        self.norm, self.modes = nn.BatchNorm1d(2), []

    def forward(self, model, batch, step):
        self.modes.append(self.training)
        return model(self.norm(batch)).square().mean()


def test_an_environment_is_in_evaluation_mode_where_its_models_are():
    env, model, batch = Normalised(), nn.Linear(2, 1), torch.randn(4, 2)
    trainer = Trainer(env, [batch])
    trainer.validate(model, [batch, batch])
    assert not env.norm.num_batches_tracked
    trainer.train(model, opt.sgd(model), Hook(val_data=[batch], val_interval=1))
    assert env.norm.num_batches_tracked == 1
    assert env.modes == [False] * 3 + [True, False]
    assert env.training
    env.norm.eval()  # what the user has frozen stays
    trainer.train(model, opt.sgd(model), Hook(val_data=[batch], val_interval=1))
    assert env.norm.num_batches_tracked == 1
