"""PPO's loss against the equations written out for one step at a time."""

import math

import pytest
import torch

import ai.model as m
from ai.train import PPO, Hook, Trainer, opt


class Net(torch.nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.policy, self.value = torch.nn.Linear(3, 4, dtype=dtype), torch.nn.Linear(3, 1, dtype=dtype)

    def forward(self, obs):
        return m.Categorical(self.policy(obs)), self.value(obs).squeeze(-1)


def batch_of(n=16, shape=()):
    rng = torch.Generator().manual_seed(0)
    rand = lambda *s: torch.randn(*s, generator=rng, dtype=torch.float64)  # noqa: E731
    size = (n, *shape)
    return {
        "obs": rand(*size, 3),
        "action": torch.randint(4, size, generator=rng),
        "log_prob": -rand(*size).abs() - 0.5,
        "advantage": rand(*size),
        "target": rand(*size) * 2,
        "value": rand(*size),
    }


def slow(model, batch, clip, value_weight, entropy, clip_value, normalize):
    rows = []
    advantages = batch["advantage"]
    for k in range(len(advantages)):
        policy, value = model(batch["obs"][k : k + 1])
        p = policy.logits[0].softmax(0)
        ratio = p[batch["action"][k]] / batch["log_prob"][k].exp()
        a = advantages[k]
        if normalize:
            a = (a - advantages.mean()) / (advantages.std() + 1e-8)
        surrogate = torch.minimum(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
        error = (value[0] - batch["target"][k]) ** 2
        if clip_value is not None:
            moved = min(max(value[0] - batch["value"][k], -clip_value), clip_value)
            error = max(error, (batch["value"][k] + moved - batch["target"][k]) ** 2)
        rows.append(-surrogate + value_weight * error + entropy * (p * p.log()).sum())
    return torch.stack(rows).mean()


@pytest.mark.parametrize("clip_value", [None, 0.3])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_that_of_the_equations(normalize, clip_value, on_device):
    torch.manual_seed(0)
    model, batch = Net(), batch_of()
    loss = PPO(clip=0.1, value_weight=0.7, entropy=0.02, clip_value=clip_value, normalize=normalize)
    got = on_device(loss)(model, batch, 0)
    want = slow(model, batch, 0.1, 0.7, 0.02, clip_value, normalize)
    torch.testing.assert_close(got, want)
    ours, theirs = (torch.autograd.grad(loss, model.parameters()) for loss in (got, want))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_ratio_beyond_all_numbers_is_clipped_or_pulled_back(on_device):
    mean = torch.zeros(2, 1, requires_grad=True)
    batch = {
        "obs": torch.zeros(2, 1),
        "action": torch.zeros(2, 1),
        "log_prob": torch.full((2,), -200.0),
        "advantage": torch.tensor([1.0, -1.0]),
        "target": torch.zeros(2),
    }

    def lost(mean, log_std, batch):
        net = lambda obs: (m.Gaussian(mean - 0.01, log_std), obs.sum(1))  # noqa: E731
        return PPO(normalize=False, value_weight=0.0)(net, batch, 0)

    loss = on_device(lost)(mean, torch.full((1,), -3.0), batch)
    assert loss.item() == pytest.approx(0.5 * (-1.2 + math.exp(20)), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, mean)
    assert gradient[0].item() == 0  # clipped
    assert 0 < gradient[1].item() < math.inf  # away from what was bad: the action lies above the mean


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        *((0.25, 2.0, 0.5), (0.5, 2.0, 1.0), (1.0, 2.0, 2.0), (1.5, 2.0, 3.0), (1.75, 2.0, 0.0)),
        *((0.25, -2.0, 0.0), (0.5, -2.0, -1.0), (1.5, -2.0, -3.0), (1.75, -2.0, -3.5), (1.0, 0.0, 0.0)),
    ],
)
def test_gradients_end_beyond_the_clip_and_not_at_its_edge(ratio, advantage, slope):
    log_prob = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    class Sure:
        def log_prob(self, action):
            return log_prob

        def entropy(self):
            return torch.zeros(1)

    zero = torch.zeros(1, dtype=torch.float64)
    batch = {"obs": zero, "action": zero, "target": zero, "advantage": zero + advantage}
    batch["log_prob"] = -torch.tensor([ratio], dtype=torch.float64).log()
    PPO(clip=0.5, normalize=False, value_weight=0.0)(lambda obs: (Sure(), zero), batch, 0).backward()
    assert -log_prob.grad.item() == pytest.approx(slope)  # of a gain by the logarithm of a ratio: ratio · advantage


def test_steps_that_are_masked_out_count_for_nothing(on_device):
    torch.manual_seed(0)
    model, batch = Net(), batch_of(6, (5,))
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    loss = PPO(entropy=0.1)
    got = on_device(loss)(model, {**batch, "mask": mask}, 0)
    flat = {key: value[mask] for key, value in batch.items()}
    torch.testing.assert_close(got, loss(model, flat, 0))


@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf])
def test_whatever_stands_in_the_padding_reaches_no_gradient(padding, on_device):
    torch.manual_seed(0)
    model, batch = Net(), batch_of(6, (5,))
    batch["mask"] = torch.arange(5) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    filled = dict(batch)
    for key in ("log_prob", "advantage", "target", "value"):
        filled[key] = batch[key].where(batch["mask"], padding)
    loss = on_device(PPO(clip_value=0.2))
    for got, want in zip(
        *(torch.autograd.grad(loss(model, b, 0), model.parameters()) for b in (filled, batch)), strict=True
    ):
        assert torch.equal(got, want)


def test_clip_and_entropy_may_be_functions_of_the_step(on_device):
    torch.manual_seed(0)
    model, batch = Net(), batch_of()
    falling = PPO(clip=lambda step: 0.2 / (1 + step), entropy=lambda step: 0.1 * step)
    for step, clip, entropy in ((0, 0.2, 0.0), (3, 0.05, 0.3)):
        torch.testing.assert_close(
            on_device(falling)(model, batch, step), PPO(clip=clip, entropy=entropy)(model, batch, 0)
        )


def test_illegal_actions_have_no_part_in_the_policy(on_device):
    torch.manual_seed(0)
    model, batch = Net(), batch_of()
    batch["legal"] = torch.rand(16, 4) < 0.5
    batch["legal"][torch.arange(16), batch["action"]] = True
    on_device(PPO(entropy=0.1))(model, batch, 0).backward()
    never = ~batch["legal"].any(0)
    assert model.policy.bias.grad.isfinite().all()
    assert (model.policy.bias.grad[never] == 0).all()
    twin = Net()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():  # a logit that is masked everywhere changes nothing
        batch["legal"][:, 3] = batch["action"] == 3
    keep = batch["action"] != 3
    some = {key: value[keep] for key, value in batch.items()}
    with torch.no_grad():
        before = PPO()(twin, some, 0)
        twin.policy.bias[3] += 5
        torch.testing.assert_close(PPO()(twin, some, 0), before)


def test_recurrent_models_are_given_what_their_sequence_began_with():
    seen = []

    class Recurrent(Net):
        def forward(self, obs, memory):
            seen.append((tuple(obs.shape), memory))
            return *super().forward(obs), memory

    batch = {**batch_of(4, (5,)), "memory": torch.randn(4, 5, 7), "mask": torch.ones(4, 5, dtype=torch.bool)}
    PPO()(Recurrent(), batch, 0)
    assert seen[0][0] == (4, 5, 3)
    assert torch.equal(seen[0][1], batch["memory"][:, 0])


def test_single_steps_of_a_model_with_a_memory_are_refused():
    batch = {**batch_of(), "memory": torch.randn(16, 2, 3)}  # whose own rows would be taken for moments
    with pytest.raises(ValueError, match=r"a batch with memory must be of sequences: give Datagen\.passes a sequence"):
        PPO()(Net(), batch, 0)


def test_what_is_logged_is_what_it_says():
    torch.manual_seed(0)
    model, batch, lines = Net(), batch_of(), {}
    with torch.no_grad():
        policy, value = model(batch["obs"])
        ratio = (policy.log_prob(batch["action"]) - batch["log_prob"]).exp()
    hook = Hook(log=lambda step, numbers: lines.update(numbers), log_interval=1)
    Trainer(PPO(clip=0.3), [batch]).train(model, opt.sgd(model, lr=1e-9), hook)
    assert lines["clipped"] == pytest.approx(((ratio - 1).abs() > 0.3).double().mean().item())
    assert lines["kl"] == pytest.approx((ratio - 1 - ratio.log()).mean().item())
    assert lines["entropy"] == pytest.approx(policy.entropy().mean().item())
    left = (batch["target"] - value).square().mean() / batch["target"].var(correction=0)
    assert lines["explained"] == pytest.approx(1 - left.item())
    assert math.isfinite(lines["policy_loss"] + lines["value_loss"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"clip": 0}, "clip must be positive, got 0"),
        ({"clip_value": 0}, "clip_value must be positive or None, got 0"),
        ({"entropy": math.inf}, "entropy must be finite, got inf"),
        ({"value_weight": math.inf}, "value_weight must be finite, got inf"),
    ],
)
def test_options_out_of_range_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        PPO(**how)


def test_a_value_of_another_shape_is_refused():
    model = lambda obs: (m.Categorical(obs), obs[:, :1])  # noqa: E731
    with pytest.raises(ValueError, match=r"the model's value \(16, 1\) and target \(16,\) must agree"):
        PPO()(model, batch_of(), 0)


def test_a_batch_of_one_step_learns_from_its_advantage_as_it_is():
    alone = {key: value[:1] for key, value in batch_of().items()}
    model = Net()
    assert PPO()(model, alone, 0).item() == PPO(normalize=False)(model, alone, 0).item()
    padded = {key: torch.stack([value, value.flip(0)], 1)[:1] for key, value in batch_of().items()}
    padded["mask"] = torch.tensor([[True, False]])
    assert PPO()(model, padded, 0).item() == PPO()(model, alone, 0).item()


def test_equal_advantages_are_no_reason_to_move_whatever_rounding_makes_of_their_mean(on_device):
    lost = on_device(lambda batch: PPO(value_weight=0)(lambda obs: (m.Categorical(obs), obs.sum(1)), batch, 0))
    for value in (0.1, 1000.1, -33.3):
        for n in (7, 100, 999):
            logits = torch.zeros(n, 2, requires_grad=True)
            batch = {
                "obs": logits,
                "action": torch.zeros(n, dtype=torch.int64),
                "log_prob": torch.full((n,), 0.5).log(),
            }
            batch |= {"advantage": torch.full((n,), value), "target": torch.zeros(n)}
            lost(batch).backward()
            assert logits.grad.abs().max() == 0, (value, n)
    batch["advantage"][0] += 1  # where they differ, that counts
    logits.grad = None
    lost(batch).backward()
    assert logits.grad[0, 1] / logits.grad[1, 1] == pytest.approx(1 - n, rel=0.05), "one step up, the others down"
    batch["advantage"][0] = torch.nan
    assert lost(batch).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("values", [(10.0, 10.25), (400.0, -400.0)])
def test_advantages_in_half_precision_are_normalised_as_in_single(values, dtype, on_device):
    lost = on_device(lambda batch: PPO(value_weight=0)(lambda obs: (m.Categorical(obs), obs.sum(1)), batch, 0))

    def gradient(advantage):
        logits = torch.zeros(64, 2, requires_grad=True)
        batch = {"obs": logits, "action": torch.zeros(64, dtype=torch.int64), "log_prob": torch.full((64,), 0.5).log()}
        batch |= {"advantage": advantage, "target": torch.zeros(64)}
        lost(batch).backward()
        return logits.grad

    advantage = torch.tensor(values).repeat(32)
    half = gradient(advantage.to(dtype))
    assert torch.equal(half, gradient(advantage))  # these numbers are the same in all three types
    assert half[0, 0] * 64 == pytest.approx(-0.5 * math.copysign(math.sqrt(63 / 64), values[0] - values[1]), rel=1e-4)


@pytest.mark.parametrize("key", ["log_prob", "advantage", "value"])
def test_a_column_where_a_number_a_row_belongs_is_refused(key):
    batch = batch_of()
    with pytest.raises(ValueError, match=rf"{key} must have shape \(16,\), got \(16, 1\)"):
        PPO(clip_value=0.1)(Net(), {**batch, key: batch[key][:, None]}, 0)


def test_what_a_batch_lacks_is_named_with_where_it_comes_from():
    batch = batch_of()
    del batch["log_prob"], batch["value"]
    with pytest.raises(ValueError, match=r"must hold \['log_prob', 'value'\], got .*: act as ai.game.ByPolicy does"):
        PPO(clip_value=0.1)(Net(), batch, 0)


def test_a_policy_of_several_choices_scored_one_by_one_is_refused():
    batch = batch_of()
    model = lambda obs: (m.Categorical(obs[:, None]), obs[:, 0])  # noqa: E731
    with pytest.raises(ValueError, match=r"the policy's log_prob must have shape \(16,\), got \(16, 1\)"):
        PPO()(model, {**batch, "action": torch.zeros(16, 1, dtype=torch.long)}, 0)


def test_a_mask_needs_a_policy_that_can_be_restricted():
    model = lambda obs: (m.Gaussian(obs, torch.zeros(3)), obs[:, 0])  # noqa: E731
    with pytest.raises(TypeError, match=r"a batch with legal needs a policy of one choice, .* got Gaussian"):
        PPO()(model, batch_of() | {"legal": torch.ones(16, 3)}, 0)


def test_a_model_without_a_value_is_named():
    batch = {key: torch.zeros(2) for key in ("action", "log_prob", "advantage", "target")} | {"obs": torch.zeros(2, 2)}
    with pytest.raises(TypeError, match=r"the model must give \(policy, value\), got Categorical"):
        PPO()(m.Categorical, batch, 0)
