"""Deep Q-learning against its equations, row by row."""

import math

import pytest
import torch
import torch.nn.functional as F

import ai.model as m
from ai.train import DQN
from ai.train.rl.dqn import quantile_huber


class Categories(m.Model):
    def __init__(self, n=7):
        super().__init__()
        values, advantages = (m.seq(m.fc(3, a * n), m.rearrange("b (a s) -> b a s", a=a)) for a in (1, 4))
        self.q = m.Lagged(m.duel(values, advantages))

    def forward(self, obs):
        logits = self.q(obs)
        return logits.softmax(2) @ torch.linspace(-2, 3, logits.shape[2])


class Net(m.Model):
    def __init__(self, quantiles=None):
        super().__init__()
        self.q = m.Lagged(
            m.seq(m.fc(3, 4 * (quantiles or 1)), *((m.rearrange("b (a q) -> b a q", a=4),) if quantiles else ()))
        )

    def forward(self, obs):
        q = self.q(obs)
        return q if q.ndim == 2 else q.mean(2)


def made(quantiles=None):
    """A model whose lagged copy is another network, and a batch."""
    return beside(lambda: Net(quantiles))


def beside(make):
    model, other = make().init(seed=0), make().init(seed=1)
    model.q.lagged.load_state_dict(other.q.net.state_dict())
    rng = torch.Generator().manual_seed(0)
    batch = {
        "obs": torch.randn(10, 3, generator=rng),
        "action": torch.randint(4, (10,), generator=rng),
        "n_step_reward": torch.randn(10, generator=rng),
        "next_obs": torch.randn(10, 3, generator=rng),
        "next_discount": torch.tensor([0.9, 0.0] * 5),
        "index": torch.arange(10),
    }
    return model, batch


def huber(error, delta):
    return error**2 / 2 if abs(error) <= delta else delta * (abs(error) - delta / 2)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_that_of_the_equations(double, masked, on_device):
    model, batch = made()
    legal = torch.arange(40).view(10, 4) % 3 > 0
    if masked:
        batch["next_legal"] = legal
    want = 0.0
    for k in range(10):
        now, later = model.q(batch["obs"][k]).detach(), batch["next_obs"][k]
        judge = model.q(later).detach() if double else model.q.target(later)
        choices = [a for a in range(4) if legal[k, a] or not masked]
        best = max(choices, key=lambda a, judge=judge: float(judge[a]))
        goal = batch["n_step_reward"][k] + batch["next_discount"][k] * model.q.target(later)[best]
        want += huber(float(now[batch["action"][k]] - goal), 0.7) / 10
    got = on_device(DQN(double=double, huber=0.7))(model, batch, 1)
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_gradients_reach_the_network_alone(on_device):
    model, batch = made()
    on_device(DQN())(model, batch, 1).backward()
    assert model.q.net[0].weight.grad.abs().sum() > 0
    assert model.q.lagged[0].weight.grad is None


def test_quantiles_are_judged_one_by_one(on_device):
    rng = torch.Generator().manual_seed(0)
    predicted, goal = torch.randn(6, 5, generator=rng), torch.randn(6, 3, generator=rng)
    for delta in (0.5, 1.0):
        want = torch.zeros(6)
        for row in range(6):
            for i in range(5):
                level = (i + 0.5) / 5
                for j in range(3):
                    u = float(goal[row, j] - predicted[row, i])
                    want[row] += abs(level - (u < 0)) * huber(u, delta) / delta / 3
        torch.testing.assert_close(on_device(quantile_huber)(predicted, goal, delta), want)


def test_quantile_loss_finds_the_quantiles():
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(20_000, generator=rng)
    q = torch.zeros(1, 4, requires_grad=True)
    for _ in range(300):
        (g,) = torch.autograd.grad(quantile_huber(q, drawn[None], 0.01).sum(), q)
        q.data -= 0.05 * g
    want = torch.quantile(drawn, torch.tensor([1, 3, 5, 7]) / 8)
    torch.testing.assert_close(q.detach()[0], want, atol=0.05, rtol=0)


@pytest.mark.parametrize("double", [False, True])
def test_with_quantiles_the_best_action_is_that_of_the_mean(double, on_device):
    model, batch = made(quantiles=5)
    later = batch["next_obs"]
    judge = (model.q(later) if double else model.q.target(later)).mean(2).argmax(1)
    rows = torch.arange(10)
    goal = batch["n_step_reward"][:, None] + batch["next_discount"][:, None] * model.q.target(later)[rows, judge]
    want = quantile_huber(model.q(batch["obs"])[rows, batch["action"]], goal).mean()
    torch.testing.assert_close(on_device(DQN(double=double))(model, batch, 1), want)


def slow_projection(chance, reward, discount, least, greatest):
    """Algorithm 1 of Bellemare et al. 2017, where a return on a place of the support keeps its chance."""
    n = len(chance)
    step = (greatest - least) / (n - 1)
    out = [0.0] * n
    for j in range(n):
        b = (min(max(reward + discount * (least + j * step), least), greatest) - least) / step
        low, high = math.floor(b), math.ceil(b)
        out[low] += chance[j] * (1.0 if low == high else high - b)
        if low < high:
            out[high] += chance[j] * (b - low)
    return torch.tensor(out)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_categories_are_projected_as_in_the_algorithm(double, masked, on_device):
    model, batch = beside(Categories)
    batch["n_step_reward"] *= 2  # some beyond the support's ends
    batch["next_discount"][4:] = 0.81
    batch["weight"] = torch.rand(10, generator=torch.Generator().manual_seed(1))
    legal = torch.arange(40).view(10, 4) % 3 > 0
    if masked:
        batch["next_legal"] = legal
    places, loss, divergence = torch.linspace(-2, 3, 7), [], []
    for k in range(10):
        seen, later = batch["obs"][k : k + 1], batch["next_obs"][k : k + 1]
        judge = ((model.q(later) if double else model.q.target(later))[0].softmax(1) * places).sum(1).detach()
        best = max((a for a in range(4) if legal[k, a] or not masked), key=lambda a, judge=judge: float(judge[a]))
        chance = model.q.target(later)[0, best].softmax(0).tolist()
        reward, discount = float(batch["n_step_reward"][k]), float(batch["next_discount"][k])
        goal = slow_projection(chance, reward, discount, -2, 3)
        assert float(goal.sum()) == pytest.approx(1)
        log_p = model.q(seen)[0, batch["action"][k]].log_softmax(0).detach()
        loss.append(-(goal * log_p).sum())
        divergence.append(sum(p * (math.log(p) - float(q)) for p, q in zip(goal.tolist(), log_p, strict=True) if p > 0))
    sent = {}
    env = DQN(double=double, support=(-2, 3), priorities=lambda index, priority: sent.update(found=priority))
    got = on_device(env)(model, batch, 1)
    torch.testing.assert_close(got.detach(), (torch.stack(loss) * batch["weight"]).mean())
    torch.testing.assert_close(sent["found"].cpu(), torch.tensor(divergence) + 1e-6, atol=1e-5, rtol=1e-4)
    got.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.q.net.parameters())


def test_categories_learn_the_chances_of_returns():
    model, batch = beside(Categories)
    batch |= {"obs": torch.zeros(10, 3), "action": torch.zeros(10, dtype=torch.long), "next_discount": torch.zeros(10)}
    batch["n_step_reward"] = torch.tensor([-2.0] * 3 + [3.0] * 7)
    batch["next_obs"] = torch.full((10, 3), torch.nan)  # what is shown beyond a true end counts for nothing
    parameters, env = list(model.q.net.parameters()), DQN(support=(-2, 3))
    for step in range(1, 150):
        for p, gradient in zip(parameters, torch.autograd.grad(env(model, batch, step), parameters), strict=True):
            p.data -= gradient
    with torch.no_grad():
        chance, value = model.q(batch["obs"][:1])[0, 0].softmax(0), model(batch["obs"][:1])[0, 0]
    torch.testing.assert_close(chance, torch.tensor([0.3, 0, 0, 0, 0, 0, 0.7]), atol=0.01, rtol=0)
    assert float(value) == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("make", [Net, lambda: Categories(1)])
def test_a_support_without_logits_is_refused(make):
    model, batch = beside(make)
    with pytest.raises(
        ValueError, match=r"with a support model.q must give logits \(B, A, S\), S at least 2, got \(10,"
    ):
        DQN(support=(0, 1))(model, batch, 1)


@pytest.mark.parametrize("quantiles", [None, 5])
def test_what_a_network_says_beyond_a_true_end_counts_for_nothing(quantiles, on_device):
    model, batch = made(quantiles)
    ended = batch["next_discount"] == 0
    lost = on_device(DQN())
    want = lost(model, batch, 1)
    batch["next_obs"][ended] = torch.nan
    assert torch.equal(lost(model, batch, 1), want)


def test_the_copy_follows_now_and_then_or_a_little_each_time(on_device):
    for loss, followed in ((DQN(follow_every=3), (0, 3)), (DQN(follow_every=1, tau=0.5), (0, 1, 2, 3))):
        for step in range(4):
            model, batch = made()
            before = model.q.lagged[0].weight.clone()
            on_device(loss)(model, batch, step)
            want = torch.lerp(before, model.q.net[0].weight, loss.tau) if step in followed else before
            torch.testing.assert_close(model.q.lagged[0].weight, want)
    with torch.no_grad():  # validation moves nothing
        model, batch = made()
        before = model.q.lagged[0].weight.clone()
        DQN()(model, batch, 0)
        assert torch.equal(model.q.lagged[0].weight, before)


def test_priorities_are_the_errors_and_weights_weigh(on_device):
    model, batch = made()
    sent = {}
    on_device(DQN(priorities=lambda index, priority: sent.update(index=index, priority=priority)))(model, batch, 1)
    rows = torch.arange(10)
    goal = (
        batch["n_step_reward"]
        + batch["next_discount"] * model.q.target(batch["next_obs"])[rows, model.q(batch["next_obs"]).argmax(1)]
    )
    error = (model.q(batch["obs"])[rows, batch["action"]] - goal).detach()
    torch.testing.assert_close(sent["priority"].cpu(), error.abs() + 1e-6)
    weight = torch.rand(10)
    want = (weight * F.huber_loss(error, torch.zeros(10), reduction="none")).mean()
    torch.testing.assert_close(on_device(DQN())(model, {**batch, "weight": weight}, 1).detach(), want)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"follow_every": 0}, "follow_every must be at least 1, got 0"),
        ({"tau": 0}, r"tau must lie in \(0, 1\], got 0"),
        ({"huber": 0}, "huber must be positive, got 0"),
        ({"support": (1, 1)}, r"support must be \(least, greatest\), finite numbers, got \(1, 1\)"),
        ({"support": 10}, r"support must be \(least, greatest\), finite numbers, got 10"),
        ({"support": (None, 1)}, r"support must be \(least, greatest\), finite numbers, got \(None, 1\)"),
        ({"support": (0, 1, 2)}, r"support must be \(least, greatest\), finite numbers, got \(0, 1, 2\)"),
        ({"support": (0, float("inf"))}, r"support must be \(least, greatest\), finite numbers, got \(0, inf\)"),
    ],
)
def test_options_out_of_range_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        DQN(**how)


@pytest.mark.parametrize("key", ["action", "n_step_reward", "next_discount", "weight"])
def test_a_column_where_a_number_a_row_belongs_is_refused(key):
    model, batch = made()
    batch["weight"] = torch.ones(10)
    with pytest.raises(ValueError, match=rf"{key} must have shape \(10,\), got \(10, 1\)"):
        DQN()(model, {**batch, key: batch[key][:, None]}, 0)


def test_draws_without_the_parts_of_a_target_are_refused():
    model, batch = made()
    del batch["n_step_reward"]
    with pytest.raises(
        ValueError, match=r"the batch must hold \['n_step_reward'\], got .* give ReplayBuffer a finite n"
    ):
        DQN()(model, batch, 0)


@pytest.mark.parametrize("quantiles", [None, 5])
def test_actions_kept_as_bytes_are_numbers(quantiles):
    model, batch = made(quantiles)
    as_bytes = {**batch, "action": batch["action"].to(torch.uint8)}
    assert DQN()(model, as_bytes, 1).item() == DQN()(model, batch, 1).item()
    with pytest.raises(TypeError, match=r"action must be whole numbers, got torch\.float32"):
        DQN()(model, {**batch, "action": batch["action"].float()}, 1)


def test_what_is_legal_now_but_not_known_of_later_is_refused():
    model, batch = made()
    with pytest.raises(ValueError, match=r"must hold next_legal: give ReplayBuffer next_keys=\('obs', 'legal'\)"):
        DQN()(model, {**batch, "legal": torch.ones(10, 4, dtype=torch.bool)}, 1)


@pytest.mark.parametrize("kind", [Net, lambda: Net(5), Categories])
def test_after_a_true_end_nothing_need_be_legal_and_only_there(kind, device):
    model, batch = beside(kind)
    batch["next_discount"] = torch.tensor([0.0, 0.9] * 5)
    batch = {key: column.to(device) for key, column in batch.items()}
    model.to(device)
    loss = DQN(support=(-2, 3) if kind is Categories else None)
    legal = torch.ones(10, 4, dtype=torch.bool, device=device)
    all_legal = loss(model, {**batch, "next_legal": legal}, 1).item()
    legal[::2] = False
    assert loss(model, {**batch, "next_legal": legal}, 1).item() == all_legal
    legal[3] = False
    if device == "cuda":  # which is not waited for
        assert math.isnan(loss(model, {**batch, "next_legal": legal}, 1).item())
        return
    with pytest.raises(ValueError, match=r"next_legal must allow an action .*, row 3 allows none"):
        loss(model, {**batch, "next_legal": legal}, 1)


def test_one_step_of_a_true_end_without_a_legal_action_is_worth_its_reward():
    model = Net().init(seed=0)
    after = {"next_obs": torch.ones(1, 3), "next_discount": torch.zeros(1), "next_legal": torch.zeros(1, 4)}
    batch = {"obs": torch.ones(1, 3), "action": torch.tensor([2]), "n_step_reward": torch.tensor([7.0]), **after}
    want = (float(model.q(batch["obs"])[0, 2].detach()) - 7) ** 2 / 2
    assert DQN(huber=100.0)(model, batch, 1).item() == pytest.approx(want, rel=1e-6)
